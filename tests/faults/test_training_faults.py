"""A training run that is hurt: it goes on by itself, or after the restart that a launcher gives it, to the same end.

All runs of this file train the same task; each must show the losses of the one that nothing happened to.
"""

import random
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from configs.train import TrainConfig
from pretrain.checkpoints import list_checkpoints
from pretrain.launch import EXIT_STOPPED
from pretrain.run_folder import METRICS, read_metrics, run_path
from tests.faults.training_runs import (
    KILLED,
    SAVING,
    STEPPING,
    USER_ERROR,
    Fault,
    launch,
    lines_of,
    log_of,
    losses_of,
)
from tests.unit.pretrain.training import make_config, write_task

NUM_STEPS = 16
EVERY = 2
TOLERANCE = 1e-6
"""Two workers after as before: the same sums in the same order."""
SMALLER_THAN_WEIGHTS = 4000
"""Bytes: the weight files of the task are some ten times larger."""


class Task:
    """Shards, the losses of an undisturbed run, and how many lines of code it takes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_task(folder)
        assert launch(self.config("undisturbed")) == 0
        self.losses = losses_of(self.config("undisturbed"))
        assert list(self.losses) == list(range(1, NUM_STEPS + 1))
        assert max(self.losses.values()) - min(self.losses.values()) > 0.1, "or equality would say nothing"

    def config(self, name: str, **overrides: Any) -> TrainConfig:
        settings = {"optimizer__steps": NUM_STEPS, "checkpoint__every": EVERY, "engine__num_workers": 2}
        return make_config(self.folder, name=name, **{**settings, **overrides})

    def lines(self, files: tuple[str, ...], begins: tuple[str, str]) -> int:
        """How many lines of some files rank 1 executes in an undisturbed run; rank 0 has no fewer."""
        config = self.config(f"counted-{begins[1]}")
        if not (run_path(config) / "lines-1").exists():
            assert launch(config, fault=Fault(rank=1, files=files, begins=begins, count_lines=True)) == 0
        return lines_of(config, 1)

    def assert_undisturbed(self, config: TrainConfig) -> None:
        assert losses_of(config) == pytest.approx(self.losses, abs=TOLERANCE)
        assert list_checkpoints(run_path(config))[-1].name == f"step_{NUM_STEPS:08d}"


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return Task(tmp_path_factory.mktemp("faults"))


def kill_often(task: Task, name: str, wanted: int, fault_of: Callable[[], Fault]) -> int:
    """Let runs be killed again and again until it has happened so often; each must end as if it had not.

    Returns:
        how often it has happened.
    """
    kills = launches = 0
    while kills < wanted:
        config, code = task.config(f"{name}-{kills}"), KILLED
        while code == KILLED:
            launches += 1
            assert launches <= 4 * wanted, "faults that do not happen, or a run that does not get ahead"
            code = launch(config, fault=fault_of() if kills < wanted else None)
            kills += code == KILLED
        assert code == 0, log_of(config)[-3000:]
        task.assert_undisturbed(config)
    return kills


@pytest.mark.parametrize("wanted", [3, pytest.param(30, marks=pytest.mark.long)])
def test_sigkill_at_random_points_of_checkpointing_costs_nothing_but_the_steps_since(task: Task, wanted: int) -> None:
    one_save = task.lines(SAVING, ("saver.py", "save")) // (NUM_STEPS // EVERY)
    chance = random.Random(wanted)
    # Up to the middle of the second save: so that an attempt is killed, and runs get ahead all the same.
    kills = kill_often(
        task,
        f"saving-{wanted}",
        wanted,
        lambda: Fault(rank=chance.randrange(2), kill_at_line=chance.randrange(1, 3 * one_save // 2)),
    )
    assert kills == wanted


@pytest.mark.parametrize("wanted", [3, pytest.param(12, marks=pytest.mark.long)])
def test_sigkill_of_a_worker_in_the_middle_of_a_step_costs_nothing_but_the_steps_since(task: Task, wanted: int) -> None:
    begins = ("loop.py", "train")
    one_step = task.lines(STEPPING, begins) // NUM_STEPS
    chance = random.Random(wanted)
    kills = kill_often(
        task,
        f"stepping-{wanted}",
        wanted,
        lambda: Fault(
            rank=chance.randrange(2),
            files=STEPPING,
            begins=begins,
            kill_at_line=chance.randrange(1, 2 * EVERY * one_step),
        ),
    )
    assert kills == wanted


@pytest.mark.parametrize("steps", [(3, 4, 9), pytest.param((1, 2, 5, 6, 7, 11, 12, 15), marks=pytest.mark.long)])
def test_sigterm_saves_the_step_exits_143_and_the_run_continues(task: Task, steps: tuple[int, ...]) -> None:
    config = task.config(f"terminated-{len(steps)}")
    for step in steps:
        assert launch(config, fault=Fault(terminate_at=step)) == EXIT_STOPPED
        assert list_checkpoints(run_path(config))[-1].name == f"step_{step:08d}"
    assert launch(config) == 0
    task.assert_undisturbed(config)


@pytest.fixture(scope="module")
def stopped(task: Task) -> TrainConfig:
    """A run that stands at step 11, with checkpoints of steps 2, 4, ... before."""
    config = task.config("stopped")
    assert launch(config, fault=Fault(terminate_at=11)) == EXIT_STOPPED
    return config


def truncated(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def bit_flipped(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(changed)


SHORT_DAMAGES = [(truncated, "weights-00001"), (bit_flipped, "optimizer-00000"), (bit_flipped, "manifest")]
LONG_DAMAGES = [
    (damage, name)
    for damage in (truncated, bit_flipped)
    for name in ("weights-00000", "weights-00001", "optimizer-00000", "optimizer-00001", "state", "config", "manifest")
    if (damage, name) not in SHORT_DAMAGES
]


@pytest.mark.parametrize(
    ("damage", "name"), [*SHORT_DAMAGES, *(pytest.param(*each, marks=pytest.mark.long) for each in LONG_DAMAGES)]
)
def test_a_run_whose_newest_checkpoint_is_damaged_continues_from_the_one_before(
    task: Task, stopped: TrainConfig, damage: Callable[[bytes, random.Random], bytes], name: str
) -> None:
    runs = task.folder / f"damaged-{damage.__name__}-{name}"
    shutil.copytree(run_path(stopped), runs / stopped.name)
    config = task.config(stopped.name, runs=str(runs))
    newest = list_checkpoints(run_path(config))[-1]
    (file,) = newest.glob(f"{name}.*")
    file.write_bytes(damage(file.read_bytes(), random.Random(name)))
    assert launch(config) == 0
    log = log_of(config)
    assert f"{newest.name}: " in log, "the damage is named"
    assert "it is skipped" in log
    assert "continuing from" in log
    assert "step_00000010" in log
    task.assert_undisturbed(config)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_disk_that_is_full_for_a_while_costs_a_checkpoint_and_not_the_run(task: Task, rank: int) -> None:
    config = task.config(f"full-{rank}", checkpoint__every=4)
    # Saved at 12, and this save has ended before the one at 16 begins.
    assert launch(config, fault=Fault(rank=rank, file_limit=(SMALLER_THAN_WEIGHTS, 12, NUM_STEPS - 1))) == 0
    assert f"step_00000012: checkpoint not written: rank {rank}: [Errno 27]" in log_of(config)
    assert [path.name for path in (run_path(config) / "checkpoints").iterdir() if "12" in path.name] == []
    task.assert_undisturbed(config)


def test_a_last_checkpoint_that_cannot_be_written_ends_the_run_with_the_remedy(task: Task) -> None:
    config = task.config("full-at-the-end")
    fault = Fault(rank=1, file_limit=(SMALLER_THAN_WEIGHTS, NUM_STEPS - 1, NUM_STEPS))
    assert launch(config, fault=fault) == USER_ERROR
    assert "the last checkpoint could not be written" in log_of(config)
    assert "free space or mend the disk and start again, it continues from step_0000001" in log_of(config)
    assert launch(config) == 0
    task.assert_undisturbed(config)


@pytest.fixture(params=["refuses", "hangs"])
def dead_server(request: pytest.FixtureRequest) -> Iterator[str]:
    """Address of a tracking server that refuses connections, or takes them and never answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        if request.param == "hangs":
            probe.listen(16)
        yield f"http://127.0.0.1:{probe.getsockname()[1]}"


def test_a_tracking_server_that_is_down_stops_nothing_and_loses_no_row(task: Task, dead_server: str) -> None:
    config = task.config(f"untracked-{dead_server[-5:]}", tracking__mlflow=True, tracking__uri=dead_server)
    assert launch(config) == 0
    task.assert_undisturbed(config)
    assert [row["step"] for row in read_metrics(run_path(config) / METRICS)] == list(range(1, NUM_STEPS + 1))
    assert f"MLflow lacks {NUM_STEPS} rows" in log_of(config)
