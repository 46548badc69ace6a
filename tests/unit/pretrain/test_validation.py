"""Held-out losses: the same chains at every checkpoint, no effect on training, and the best checkpoint by them."""

import json
from pathlib import Path

import pytest

from configs.errors import UserError
from configs.loading import load_config
from configs.train import TrainConfig
from data_pipeline.shards import write_shards
from pretrain.canonical import load_weights
from pretrain.checkpoints import STATE, DamagedCheckpoint, best_checkpoint, list_checkpoints, open_checkpoint, prune
from pretrain.launch import check
from pretrain.run_folder import METRICS, read_metrics, run_path
from pretrain.stages.align import AlignStage
from tests.unit.pretrain.training import make_chain, make_config, run_training

STEPS, EVERY = 6, 2


def config_of(folder: Path, **overrides: object) -> TrainConfig:
    settings = {"optimizer__steps": STEPS, "checkpoint__every": EVERY, "losses__contrast": 0.0}
    return make_config(folder, **settings, **overrides)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same training without validation and with it."""
    folder = tmp_path_factory.mktemp("validation")
    chains = {"train": [make_chain(i) for i in range(20)], "validation": [make_chain(100 + i) for i in range(8)]}
    write_shards(folder / "shards", chains, samples_per_shard=10)
    found = {}
    for name, pools in (("without", 0), ("with", 50)):
        config = config_of(folder, name=name, validation__pools=pools)
        run_training(config, folder)
        found[name] = run_path(config)
    return found


def test_every_checkpoint_has_held_out_losses_and_training_is_as_without(runs: dict[str, Path]) -> None:
    rows = {name: read_metrics(path / METRICS) for name, path in runs.items()}
    assert [row["loss"] for row in rows["with"]] == [row["loss"] for row in rows["without"]]
    assert not any("validation_loss" in row for row in rows["without"])
    assert [row["step"] for row in rows["with"] if "validation_loss" in row] == list(range(EVERY, STEPS + 1, EVERY))
    for row in rows["with"]:
        if "validation_loss" in row:
            total = row["validation_loss_mlm"] + 0.5 * row["validation_loss_structure"]
            assert row["validation_loss"] == pytest.approx(total, abs=1e-6), "weights 1 and 0.5"


def test_held_out_losses_are_those_of_the_checkpoints_own_weights(runs: dict[str, Path]) -> None:
    """Computed again from the files, by a stage that was never trained."""
    path = list_checkpoints(runs["with"])[0]
    checkpoint = open_checkpoint(path)
    stage = AlignStage(load_config(TrainConfig, path / "config.yaml"), checkpoint)
    load_weights(stage.model, checkpoint)
    again = stage.validate(stage.model, 0, 1)
    # Another process may sum in another order.
    assert again == pytest.approx(json.loads((path / STATE).read_text())["validation"], abs=1e-5)
    assert stage.model.training, "validation leaves the model in training mode"


def test_best_is_the_checkpoint_of_lowest_held_out_loss_and_is_never_pruned(runs: dict[str, Path]) -> None:
    run = runs["with"]
    # The lowest of a run is decided by its data: give the first checkpoint the best one.
    first = list_checkpoints(run)[0]
    state = json.loads((first / STATE).read_text())
    state["validation"]["loss"] = 0.0
    (first / STATE).write_text(json.dumps(state))
    assert best_checkpoint(run) == first
    prune(run, keep=1)
    assert [path.name for path in list_checkpoints(run)] == [first.name, f"step_{STEPS:08d}"]
    # It is the first one that is asked for, and what was written into it is seen.
    with pytest.raises(DamagedCheckpoint, match=rf"{first.name}: state\.json"):
        open_checkpoint(run / "best")


def test_best_of_a_run_without_validation_is_one_clear_line(runs: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"no checkpoint there was validated; set validation\.pools"):
        open_checkpoint(runs["without"] / "best")


def test_a_split_that_is_not_there_is_told_before_the_start(runs: dict[str, Path]) -> None:
    folder = runs["with"].parents[1]
    with pytest.raises(UserError, match=r"'other' is not in .*; allowed: train, validation"):
        check(config_of(folder, name="x", validation__pools=2, validation__split="other"))
