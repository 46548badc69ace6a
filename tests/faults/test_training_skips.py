"""A loss or gradient that is no number: exactly that update is left out, on every rank, and training goes on."""

import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from configs.loading import dump_config
from configs.train import TrainConfig
from pretrain.checkpoints import Share, list_checkpoints, open_checkpoint, save, step_folder
from pretrain.run_folder import METRICS, read_metrics, read_status, run_path
from pretrain.sampler import Position
from pretrain.stages.align import AlignStage
from tests.unit.pretrain.training import make_config, write_task
from tests.unit.pretrain.workers import Workers

NUM_STEPS = 6
POISONED = 4
TOLERANCE = 1e-6
"""The same sums in the same order, in both precisions."""


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_task(folder)
        self.workers = Workers(2, folder)
        self._references: dict[tuple[int, str, int], list[dict[str, Any]]] = {}

    def config(self, name: str, **overrides: Any) -> TrainConfig:
        settings = {"optimizer__steps": NUM_STEPS, "checkpoint__every": 100, "engine__num_workers": 2}
        return make_config(self.folder, name=name, **{**settings, **overrides})

    def rows(self, config: TrainConfig) -> list[dict[str, Any]]:
        return read_metrics(run_path(config) / METRICS)

    def without_the_update(self, stage: int, precision: str, pools: int = 1) -> list[dict[str, Any]]:
        """Rows of a run in which one update is left out, by a checkpoint that says it has been made.

        Its weights and moments are those before the step; its step and data position, those after.
        """
        key = (stage, precision, pools)
        if key in self._references:
            return self._references[key]
        engine = {"engine__zero_stage": stage, "engine__precision": precision, "data__pools_per_step": pools}
        config = self.config(f"reference-{stage}-{precision}-{pools}", **engine)
        assert self.workers.train(config, stop_after=POISONED - 1)["state"] == "stopped"
        before = open_checkpoint(run_path(config))
        position = Position(**before.state["position"])
        for _ in range(pools):
            position = position.after(AlignStage(config).pools_per_epoch)
        state = {**before.state, "step": POISONED, "position": asdict(position)}
        share = Share(before.weights(), dict(before.tensors("optimizer")))
        save(run_path(config), POISONED, dump_config(config), state, share)
        shutil.rmtree(step_folder(run_path(config), POISONED - 1))
        assert self.workers.train(config)["state"] == "finished"
        self._references[key] = self.rows(config)
        return self._references[key]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("skips"))
    yield bench
    bench.workers.close()


SHORT = [(3, "fp32", "loss", 0, 1), (3, "fp32", "gradient", 1, 1), (2, "bf16", "gradient", 0, 2)]
LONG = [
    (stage, precision, what, 1, 1 + (what == "gradient"))
    for stage in (0, 1, 2, 3)
    for precision in ("fp32", "bf16")
    for what in ("loss", "gradient")
]


@pytest.mark.parametrize(
    ("stage", "precision", "what", "rank", "pools"),
    [*SHORT, *(pytest.param(*each, marks=pytest.mark.long) for each in LONG)],
)
def test_one_poisoned_step_ends_as_if_its_update_had_been_left_out(
    bench: Bench, stage: int, precision: str, what: str, rank: int, pools: int
) -> None:
    wanted = bench.without_the_update(stage, precision, pools)
    name = f"poisoned-{stage}-{precision}-{what}-{rank}-{pools}"
    settings = {"engine__zero_stage": stage, "engine__precision": precision, "data__pools_per_step": pools}
    config = bench.config(name, **settings)
    poison = {"what": what, "rank": rank, "first": POISONED, "last": POISONED}
    assert bench.workers.train(config, poison=poison) == {"state": "finished", "step": NUM_STEPS}
    rows = bench.rows(config)
    assert [row["skipped"] for row in rows] == [0, 0, 0, 1, 1, 1]
    assert ("loss" in rows[POISONED - 1]) == (what == "gradient"), "what is no number is not logged"
    assert "grad_norm" not in rows[POISONED - 1]
    before, after = rows[: POISONED - 1], rows[POISONED:]
    assert [row["loss"] for row in before] == pytest.approx([row["loss"] for row in wanted[: POISONED - 1]], abs=1e-6)
    assert [row["step"] for row in wanted[-len(after) :]] == [row["step"] for row in after]
    for key in ("loss", "lr", "grad_norm", "epoch"):
        assert [row[key] for row in after] == pytest.approx(
            [row[key] for row in wanted[-len(after) :]], abs=TOLERANCE
        ), key
    last = open_checkpoint(run_path(config))
    assert (last.state["skipped"], last.state["optimizer_steps"]) == (1, NUM_STEPS - 1)


def test_too_many_in_a_row_end_the_run_on_every_rank_with_what_to_do(bench: Bench) -> None:
    config = bench.config("diverged", engine__max_skipped=2, checkpoint__every=2)
    outcome = bench.workers.train(config, poison={"what": "loss", "rank": 1, "first": 3, "last": 100})
    assert outcome["user_error"].startswith("step 5: loss or gradient was not finite 3 times in a row")
    assert "engine.max_skipped=2; lower optimizer.trunk_lr" in outcome["user_error"]
    assert read_status(run_path(config))["state"] == "failed"
    good = list_checkpoints(run_path(config))
    assert [path.name for path in good] == ["step_00000002", "step_00000004"]
    assert open_checkpoint(good[1]).weights_sha256 == open_checkpoint(good[0]).weights_sha256, "nothing was updated"


def test_so_many_skips_that_are_not_in_a_row_are_allowed(bench: Bench) -> None:
    config = bench.config("stumbling", engine__max_skipped=1)
    poison = {"what": "gradient", "rank": 0, "first": 2, "last": 2}
    assert bench.workers.train(config, stop_after=3, poison=poison)["state"] == "stopped"
    poison = {"what": "gradient", "rank": 0, "first": 5, "last": 5}
    assert bench.workers.train(config, poison=poison)["state"] == "finished"
    assert bench.rows(config)[-1]["skipped"] == 2, "counted over restarts"
