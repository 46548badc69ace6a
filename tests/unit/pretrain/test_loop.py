"""The training loop with an engine and a stage that only take notes."""

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.checkpoints import Share, list_checkpoints, open_checkpoint
from pretrain.engine import World
from pretrain.feed import Fed
from pretrain.loop import Progress, seed_everything, train
from pretrain.run_folder import METRICS, RunFolder, claim, read_metrics, run_path
from pretrain.sampler import Position
from pretrain.saver import CannotGoOn
from tests.unit.pretrain.training import make_config

POOLS_PER_EPOCH = 3


class NotedLosses:
    def __init__(self, value: float) -> None:
        self.value = value

    def total(self, world_size: int = 1) -> torch.Tensor:
        return torch.tensor(self.value * world_size)

    def logged(self) -> dict[str, float]:
        return {"loss": self.value, "loss_mlm": self.value / 2}


class CountingStage:
    """Batches are pool numbers; the loss of pool k is k."""

    data_sha256 = "abc"
    pools_per_epoch = POOLS_PER_EPOCH

    def batches(self, position: Position, rank: int, world_size: int) -> Iterator[Fed]:
        while True:
            number = position.epoch * POOLS_PER_EPOCH + position.pool
            position = position.after(POOLS_PER_EPOCH)
            yield Fed(number, position, num_tokens=100)

    def loss(self, model: object, batch: int, step: int) -> NotedLosses:
        return NotedLosses(float(batch))

    def validate(self, model: object, rank: int, world_size: int) -> dict[str, float]:
        return {}


class NotingEngine:
    module, grad_norm, optimizer_steps, updated = None, 0.25, 0, True

    def __init__(self) -> None:
        self.world = World(0, 1, torch.device("cpu"))
        self.notes: list[tuple[str, float]] = []

    def set_learning_rate(self, factor: float) -> float:
        self.notes.append(("rate", factor))
        return factor

    def backward(self, loss: torch.Tensor) -> None:
        self.notes.append(("backward", loss.item()))

    def step(self) -> None:
        self.notes.append(("step", 0.0))

    def snapshot(self, copy: bool) -> Share:
        self.notes.append(("snapshot", float(copy)))
        return Share({"weight": torch.zeros(1)}, {})

    def max_over_ranks(self, value: float) -> float:
        return value


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def run_loop(
    folder: Path, progress: Progress | None = None, engine: NotingEngine | None = None, **overrides: Any
) -> tuple[NotingEngine, RunFolder]:
    config = make_config(folder, **{"optimizer__steps": 4, "optimizer__warmup_steps": 4, **overrides})
    claim(config).close()
    run, engine = RunFolder(run_path(config), config.optimizer.steps), engine or NotingEngine()
    progress = progress or Progress()
    run.begin(progress.step)
    train(config, CountingStage(), engine, run, progress)
    run.end("finished", progress.step)
    return engine, run


def test_each_step_sets_its_rate_then_takes_its_pools_in_order(folder: Path) -> None:
    engine, _ = run_loop(folder, data__pools_per_step=2)
    assert engine.notes[:5] == [("rate", 0.25), ("backward", 0.0), ("step", 0.0), ("backward", 1.0), ("step", 0.0)]
    assert [value for what, value in engine.notes if what == "backward"] == list(range(8))
    assert [value for what, value in engine.notes if what == "rate"] == [0.25, 0.5, 0.75, 1.0]


def test_rows_hold_means_over_pools_and_count_tokens(folder: Path) -> None:
    _, run = run_loop(folder, data__pools_per_step=2)
    rows = read_metrics(run.path / METRICS)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["loss"] for row in rows] == [0.5, 2.5, 4.5, 6.5]
    assert [row["tokens"] for row in rows] == [200, 400, 600, 800]
    assert rows[0]["grad_norm"] == 0.25
    assert rows[2]["epoch"] == pytest.approx(2.0), "six of three pools an epoch"


def test_rows_come_every_so_many_steps_and_at_the_end(folder: Path) -> None:
    _, run = run_loop(folder, tracking__every=3)
    assert [row["step"] for row in read_metrics(run.path / METRICS)] == [3, 4]


def test_checkpoints_come_every_so_many_steps_at_the_end_and_are_pruned(folder: Path) -> None:
    _, run = run_loop(folder, checkpoint__every=3)
    assert [path.name for path in list_checkpoints(run.path)] == ["step_00000003", "step_00000004"]
    _, run = run_loop(folder, name="pruned", checkpoint__every=1, checkpoint__keep=2)
    assert [path.name for path in list_checkpoints(run.path)] == ["step_00000003", "step_00000004"]


def test_a_continued_run_takes_the_pools_that_the_first_one_would_have_taken(folder: Path) -> None:
    _, run = run_loop(folder, checkpoint__every=2)
    first = open_checkpoint(list_checkpoints(run.path)[0])
    progress = Progress.of(first)
    assert (progress.step, progress.position, progress.tokens) == (2, Position(0, 2), 200)
    engine, run = run_loop(folder, progress)
    assert [value for what, value in engine.notes if what == "backward"] == [2.0, 3.0]
    assert [row["step"] for row in read_metrics(run.path / METRICS)] == [1, 2, 3, 4]


def test_a_stop_request_ends_training_after_a_step_and_a_checkpoint(folder: Path) -> None:
    config = make_config(folder, optimizer__steps=4)
    claim(config).close()
    run, engine = RunFolder(run_path(config), 4), NotingEngine()
    run.begin(0)
    run.terminated = True
    progress = train(config, CountingStage(), engine, run, Progress())
    assert progress.step == 1
    assert [path.name for path in list_checkpoints(run.path)] == ["step_00000001"]


def test_random_numbers_depend_on_where_the_data_stands_and_on_nothing_before() -> None:
    def draw(seed: int, position: Position, rank: int) -> float:
        torch.rand(3)
        seed_everything(seed, position, rank)
        return torch.rand(1).item()

    keys = [(0, Position(0, 1), 0), (0, Position(1, 0), 0), (0, Position(0, 1), 1), (1, Position(0, 1), 0)]
    values = [draw(*key) for key in keys]
    assert len(set(values)) == len(keys)
    assert values == [draw(*key) for key in keys]


def test_a_checkpoint_is_copied_and_written_beside_training_and_the_last_one_is_waited_for(folder: Path) -> None:
    engine, _ = run_loop(folder, checkpoint__every=2)
    assert [copied for what, copied in engine.notes if what == "snapshot"] == [1.0, 0.0]
    engine, _ = run_loop(folder, name="in-line", checkpoint__every=2, checkpoint__asynchronous=False)
    assert [copied for what, copied in engine.notes if what == "snapshot"] == [0.0, 0.0], "no copy where training waits"


def test_one_save_is_in_flight_and_training_goes_on_meanwhile(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, let_go, in_flight, most = Share.write, threading.Event(), [], []

    def slow(share: Share, path: Path, rank: int) -> dict:
        in_flight.append(path.name)
        most.append(len(in_flight))
        assert let_go.wait(20)
        in_flight.pop()
        return write(share, path, rank)

    class Watching(NotingEngine):
        def step(self) -> None:
            super().step()
            # The third step is trained while the checkpoint of the second is not written: only then is it let go.
            if len([what for what, _ in self.notes if what == "step"]) == 3:
                let_go.set()

    monkeypatch.setattr(Share, "write", slow)
    _, run = run_loop(folder, engine=Watching(), checkpoint__every=2, optimizer__steps=8)
    assert most == [1, 1, 1, 1]
    assert len(list_checkpoints(run.path)) == 4


def test_a_checkpoint_that_cannot_be_written_is_said_and_the_run_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write = Share.write

    def full_disk(share: Share, path: Path, rank: int) -> dict:
        if path.name == "step_00000002":
            (path / "weights-00000.safetensors").write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(share, path, rank)

    monkeypatch.setattr(Share, "write", full_disk)
    _, run = run_loop(folder, checkpoint__every=2)
    assert [path.name for path in (run.path / "checkpoints").iterdir()] == ["step_00000004"]
    said = [record for record in caplog.records if "No space left" in record.message]
    assert len(said) == 1
    assert said[0].message.startswith("step_00000002: ")


def test_a_last_checkpoint_that_cannot_be_written_is_an_error_that_names_the_one_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Share.write

    def full_disk(share: Share, path: Path, rank: int) -> dict:
        if path.name == "step_00000004":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(share, path, rank)

    monkeypatch.setattr(Share, "write", full_disk)
    with pytest.raises(CannotGoOn, match=r"No space left.*start again, it continues from step_00000003"):
        run_loop(folder, checkpoint__every=3)


def test_a_preemption_is_answered_by_one_checkpoint(folder: Path) -> None:
    config = make_config(folder, optimizer__steps=6, checkpoint__every=100)
    claim(config).close()
    run, engine = RunFolder(run_path(config), 6), NotingEngine()
    run.preempted = lambda: len(engine.notes) > 5
    run.begin(0)
    train(config, CountingStage(), engine, run, Progress())
    assert [path.name for path in list_checkpoints(run.path)] == ["step_00000002", "step_00000006"]


def test_figures_of_a_meter_stand_in_the_row_and_what_is_no_number_does_not(folder: Path) -> None:
    class Meter:
        def figures(self, num_tokens: int, seconds: float) -> dict[str, float]:
            return {"metered": num_tokens / 100, "unknown": float("nan")}

    config = make_config(folder, optimizer__steps=2)
    claim(config).close()
    run = RunFolder(run_path(config), 2)
    run.begin(0)
    train(config, CountingStage(), NotingEngine(), run, Progress(), Meter())
    run.end("finished", 2)
    rows = read_metrics(run.path / METRICS)
    assert [row["metered"] for row in rows] == [1.0, 1.0]
    assert "unknown" not in rows[0]
