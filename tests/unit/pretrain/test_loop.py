"""The training loop with an engine and a stage that only take notes."""

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

    def loss(self, model: object, batch: int) -> NotedLosses:
        return NotedLosses(float(batch))


class NotingEngine:
    module, grad_norm, optimizer_steps = None, 0.25, 0

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

    def gather(self) -> Share:
        return Share({"weight": torch.zeros(1)}, {})

    def any_rank(self, flag: bool) -> bool:
        return flag

    def exchange(self, value: object) -> list[Any]:
        return [value]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def run_loop(folder: Path, progress: Progress | None = None, **overrides: Any) -> tuple[NotingEngine, RunFolder]:
    config = make_config(folder, **{"optimizer__steps": 4, "optimizer__warmup_steps": 4, **overrides})
    claim(config).close()
    run, engine = RunFolder(run_path(config), config.optimizer.steps), NotingEngine()
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
