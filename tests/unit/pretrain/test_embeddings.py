"""Teacher embeddings of a run: from columns or teachers, several at once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.errors import UserError
from configs.loading import dump_config
from configs.train import TrainConfig
from data_pipeline.derived import DerivedWriter
from data_pipeline.reader import ShardReader
from pretrain.checkpoints import Share, save
from pretrain.model.load import load_model
from pretrain.run_folder import run_path
from pretrain.sampler import Position
from pretrain.stages.align import AlignStage, check_inputs
from pretrain.stages.embeddings import open_embeddings
from tests.unit.pretrain.training import TEACHER_WIDTH, make_chain, make_config, write_task

SECOND_WIDTH = 5
TWO = {"more_teachers": [{"column": "second"}]}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny task with a second column, which embeds no residue whose number is a multiple of 7."""
    folder = tmp_path_factory.mktemp("embeddings")
    shards = write_task(folder)
    with ShardReader(shards) as reader, DerivedWriter(reader, "second", {"width": SECOND_WIDTH}) as writer:
        for i in range(len(reader.index("train").residues)):
            rows = np.random.default_rng(i).normal(size=(int(reader.index("train").residues[i]), SECOND_WIDTH))
            rows[::7] = 0
            writer.write("train", i, {"embedding": rows.astype(np.float16)})
    return folder


def write_checkpoint(config: TrainConfig) -> Path:
    model = AlignStage(config).model
    tensors = {name: tensor.detach() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    return save(run_path(config), 1, dump_config(config), {"step": 1, "optimizer_steps": 1}, Share(tensors, {}))


def test_embeddings_are_those_of_every_teacher_in_the_order_of_the_config(task: Path) -> None:
    config = make_config(task, **TWO)
    with ShardReader(task / "shards") as reader:
        embeddings = open_embeddings(config, reader)
        assert embeddings.widths == (TEACHER_WIDTH, SECOND_WIDTH)
        first, second = embeddings(3, reader.sample("train", 3))
    n = len(make_chain(3).sequence)
    assert (first.shape, second.shape) == ((n, TEACHER_WIDTH), (n, SECOND_WIDTH))
    assert not second[::7].any()
    assert first[::7].any()


def test_a_residue_counts_only_where_every_teacher_embeds_it(task: Path) -> None:
    one, two = (next(AlignStage(make_config(task, **more)).batches(Position(), 0, 1)).batch for more in ({}, TWO))
    assert two.teacher.shape[1] == TEACHER_WIDTH + SECOND_WIDTH
    assert 0 < two.structure_valid.sum() < one.structure_valid.sum()
    assert not (two.structure_valid & ~one.structure_valid).any()
    assert two.teacher[two.structure_valid][:, -SECOND_WIDTH:].any(dim=1).all()
    assert not two.teacher[~two.structure_valid].any()


def test_two_teachers_train_and_load_again(task: Path) -> None:
    config = make_config(task, name="two", **TWO)
    stage = AlignStage(config)
    losses = stage.loss(stage.model, next(stage.batches(Position(), 0, 1)).batch, 1)
    losses.total().backward()
    pair = stage.model.more_projections[0]
    for parameter in (pair.structure_projection.linear.weight, pair.temperature.logit_scale):
        assert parameter.grad.abs().max() > 0
    assert {"logit_scale", "logit_scale_2"} < set(losses.logged())
    loaded = load_model(write_checkpoint(config))
    assert loaded.teacher_widths == (TEACHER_WIDTH, SECOND_WIDTH)
    fresh = AlignStage(config).model.state_dict()
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in loaded.state_dict().items())


def test_a_selection_with_two_teachers_needs_a_reference_trained_on_both(task: Path) -> None:
    def selected(name: str, **more: Any) -> TrainConfig:
        reference = make_config(task, stage="reference", name=name, trunk__width=16, **more)
        write_checkpoint(reference)
        return make_config(task, selection={"mode": "large", "reference": str(run_path(reference))}, **TWO)

    stage = AlignStage(selected("on_both", **TWO))
    logged = stage.loss(stage.model, next(stage.batches(Position(), 0, 1)).batch, 1).logged()
    # ceil(0.8 n) of some hundred residues
    assert logged["selected_fraction_sequence_to_structure_2"] == pytest.approx(0.8, abs=0.02)
    with pytest.raises(UserError, match=r"teachers of 12 features, this run has 12 \+ 5"):
        AlignStage(selected("on_one"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"more_teachers": [{"column": "not_there"}]}, "not_there"),
        ({"more_teachers": [{"kind": "mpnn", "weights": "no/such.npz"}]}, "more_teachers.0.weights no/such.npz"),
        ({"teacher": {"kind": "mpnn"}}, "^teacher.weights None: not there"),
    ],
)
def test_a_teacher_that_is_not_there_is_named_before_training(task: Path, more: dict[str, Any], message: str) -> None:
    config = make_config(task, **more)
    with ShardReader(task / "shards") as reader, pytest.raises(UserError, match=message):
        check_inputs(config, reader)
