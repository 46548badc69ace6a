"""Training with residue loss selection, from the model itself and from its derived column: what is logged and drawn."""

import json
from pathlib import Path
from typing import Any

import pytest

from configs.train import TrainConfig
from data_pipeline.reader import ShardReader
from pretrain.derive import derive_reference
from pretrain.run_folder import run_path
from pretrain.sampler import Position
from pretrain.selection_plot import plot_selection
from pretrain.stages.align import AlignStage, check_inputs
from tests.unit.pretrain.test_derive_reference import write_reference
from tests.unit.pretrain.training import TEACHER_WIDTH, make_config, write_task

LOSSES = ("structure", "sequence_to_structure", "structure_to_sequence")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, a random reference model and its derived column."""
    folder = tmp_path_factory.mktemp("selecting")
    shards = write_task(folder)
    write_reference(make_config(folder, stage="reference", name="reference", trunk__width=16), (TEACHER_WIDTH,))
    derive_reference(selecting(folder, "known"), shards)
    return folder


def selecting(folder: Path, column: str | None, **selection: Any) -> TrainConfig:
    chosen = {"mode": "large", "ratio": 0.5, "reference": str(folder / "runs" / "reference"), "column": column}
    return make_config(folder, name=f"by_{column}", selection={**chosen, **selection}, derive={"num_workers": 1})


def rows_of(config: TrainConfig, steps: int) -> list[dict[str, float]]:
    """Figures of the first pools, without training."""
    stage = AlignStage(config)
    batches = stage.batches(Position(), 0, 1)
    return [
        {"step": step, **stage.loss(stage.model, next(batches).batch, step).logged()} for step in range(1, steps + 1)
    ]


@pytest.mark.parametrize("column", [None, "known"])
def test_a_selecting_run_logs_what_it_keeps_by_kind_of_residue(task: Path, column: str | None) -> None:
    config = selecting(task, column, start_ratio=1.0, ratio_steps=2)
    with ShardReader(task / "shards") as reader:
        check_inputs(config, reader)
    rows = rows_of(config, 3)
    for loss in LOSSES:
        # Some hundred residues cannot be split to better than one.
        fractions = [row[f"selected_fraction_{loss}"] for row in rows]
        assert fractions == pytest.approx([1.0, 0.75, 0.5], abs=0.02)
        kept = {name: value for name, value in rows[2].items() if name.startswith(f"kept_{loss}_")}
        # The chains are no predictions: nothing is said of pLDDT, rather than that nothing was kept.
        assert not any("plddt" in name for name in kept)
        assert f"kept_{loss}_coil" in kept
        assert 0 < kept[f"kept_{loss}_bfactor_20_40"] < 1
    path = run_path(config)
    path.mkdir(parents=True, exist_ok=True)
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert plot_selection(path).is_file()


def test_a_run_that_selects_nothing_computes_and_logs_nothing_of_it(task: Path) -> None:
    stage = AlignStage(make_config(task))
    batch = next(stage.batches(Position(), 0, 1)).batch
    assert batch.plddt is batch.bfactor is batch.secondary is batch.reference is None
    assert not any(name.startswith("kept_") for name in stage.loss(stage.model, batch, 1).logged())


def test_batches_carry_the_columns_rows_and_a_run_by_the_model_itself_does_without(task: Path) -> None:
    for column in (None, "known"):
        batch = next(AlignStage(selecting(task, column)).batches(Position(), 0, 1)).batch
        assert (batch.reference is None) == (column is None)
        assert batch.bfactor is not None
