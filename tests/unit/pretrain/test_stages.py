"""Stages: batches are a function of position, selection needs a fitting reference, weights fit or are refused."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.errors import UserError
from configs.loading import dump_config
from configs.train import TrainConfig
from pretrain.canonical import load_weights
from pretrain.checkpoints import Share, open_checkpoint, save
from pretrain.run_folder import run_path
from pretrain.sampler import Position
from pretrain.stages import open_stage
from pretrain.stages.align import AlignStage
from pretrain.stages.teacher import TeacherStage
from tests.unit.pretrain.training import TEACHER_WIDTH, make_config, write_task

TEACHER = {
    "stage": "teacher",
    "trunk": None,
    "teacher": {
        "gearnet": {"layers": 2, "width": 16},
        "multiview": {"proteins_per_batch": 8, "crop_residues": 15},
    },
}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    write_task(folder)
    return folder


def write_reference(config: TrainConfig) -> Path:
    """A checkpoint of an untrained model of `config`."""
    model = open_stage(config).model
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    share = Share({name: tensor.detach() for name, tensor in tensors.items()}, {})
    return save(run_path(config), 1, dump_config(config), {"step": 1, "optimizer_steps": 1}, share)


def test_the_model_is_the_same_for_the_same_seed_and_sized_by_the_column(task: Path) -> None:
    first, second = (AlignStage(make_config(task)).model.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["structure_projection.linear.weight"].shape[1] == TEACHER_WIDTH
    other = AlignStage(make_config(task, seed=1)).model.state_dict()
    assert not torch.equal(first["trunk.embedding.weight"], other["trunk.embedding.weight"])


def test_without_contrast_no_teacher_is_read(task: Path) -> None:
    config = make_config(task, losses__contrast=0.0, teacher__column="not_there")
    assert next(AlignStage(config).batches(Position(), 0, 1)).batch.teacher is None


@pytest.mark.parametrize("overrides", [{}, TEACHER])
def test_batches_from_a_position_are_those_that_follow_it(task: Path, overrides: dict[str, Any]) -> None:
    stage = open_stage(make_config(task, **overrides))
    whole = list(itertools.islice(stage.batches(Position(), 0, 1), 8))
    again = next(open_stage(make_config(task, **overrides)).batches(whole[5].position, 0, 1))
    assert again.position == whole[6].position
    first, second = (stage.loss(stage.model, batch, 1).total().item() for batch in (again.batch, whole[6].batch))
    assert first == second


def test_views_are_drawn_anew_each_epoch(task: Path) -> None:
    stage = TeacherStage(make_config(task, **TEACHER))
    assert stage.pools_per_epoch == 3
    first, second = (next(stage.batches(Position(epoch, 0), 0, 1)).batch for epoch in (0, 1))
    assert first.graphs.sizes != second.graphs.sizes


def test_a_teacher_needs_two_chains_for_every_worker(task: Path) -> None:
    config = make_config(task, **TEACHER, engine__num_workers=2, data__packs_per_pool=2)
    TeacherStage(config)
    few = make_config(task, **TEACHER, engine__num_workers=16, data__packs_per_pool=16)
    with pytest.raises(UserError, match="24 chains for 16 workers"):
        TeacherStage(few)


def test_selection_by_a_reference_keeps_its_ratio_of_residues(task: Path) -> None:
    reference = make_config(task, stage="reference", name="reference", trunk__width=16)
    write_reference(reference)
    selection = {"mode": "large", "ratio": 0.5, "reference": str(run_path(reference))}
    stage = AlignStage(make_config(task, selection=selection))
    logged = stage.loss(stage.model, next(stage.batches(Position(), 0, 1)).batch, 1).logged()
    for name in ("structure", "sequence_to_structure", "structure_to_sequence"):
        # A share of some hundred residues cannot be 0.5 to better than one residue.
        assert logged[f"selected_fraction_{name}"] == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ({"trunk__family": "amplify"}, "another token alphabet; its trunk's family must be esm2"),
        ({"losses__structure": 0.0}, "trained without losses.structure"),
    ],
)
def test_a_reference_that_cannot_serve_is_refused(task: Path, theirs: dict[str, Any], message: str) -> None:
    name = "unfit_" + next(iter(theirs))
    reference = make_config(task, stage="reference", name=name, **theirs)
    write_reference(reference)
    selection = {"mode": "large", "reference": str(run_path(reference))}
    with pytest.raises(UserError, match=message):
        AlignStage(make_config(task, selection=selection))


def test_weights_of_another_shape_are_refused_by_name(task: Path) -> None:
    path = write_reference(make_config(task, stage="reference", name="narrow", trunk__width=16))
    with pytest.raises(UserError, match="does not fit the configured model"):
        load_weights(AlignStage(make_config(task)).model, open_checkpoint(path))
