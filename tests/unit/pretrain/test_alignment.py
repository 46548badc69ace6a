"""The alignment model: heads, outputs, temperature, optimizer groups."""

import math
from dataclasses import replace

import pytest
import torch

from configs.engine import OptimizerConfig
from configs.losses import LossConfig
from pretrain.batch import Batch
from pretrain.model.alignment import AlignmentModel
from pretrain.model.heads import Temperature
from pretrain.model.load import teacher_widths
from pretrain.model.parameter_groups import param_groups
from pretrain.model.shape import TrunkShape
from tests.parity.trunks import masked_proteins, pack

SHAPE = TrunkShape("esm2", 2, 32, 4)
TEACHER_WIDTH = 12


def make_batch(shape: TrunkShape = SHAPE) -> Batch:
    packed = pack(masked_proteins(shape.family, (9, 14, 14)))
    alphabet = shape.alphabet
    residue = (packed.tokens != alphabet.cls_id) & (packed.tokens != alphabet.eos_id)
    n = int(residue.sum())
    masked = (packed.tokens == alphabet.mask_id).nonzero()[:, 0]
    return Batch(
        packed=packed,
        masked_index=masked,
        masked_target=torch.full_like(masked, 5),
        residue_index=residue.nonzero()[:, 0],
        threedi=torch.arange(n) % 20,
        structure_valid=torch.ones(n, dtype=torch.bool),
        teacher=torch.randn(n, TEACHER_WIDTH, generator=torch.Generator().manual_seed(0)),
        protein=torch.zeros(n, dtype=torch.int64),
        cluster=torch.zeros(n, dtype=torch.int64),
        bfactor=torch.full((n,), math.nan),
    )


@pytest.mark.parametrize("family", ["esm2", "amplify"])
def test_outputs_have_the_contract_shapes_and_unit_rows(family: str) -> None:
    shape = TrunkShape(family, 2, 32, 4)
    batch = make_batch(shape)
    n = len(batch.residue_index)
    outputs = AlignmentModel(shape, LossConfig(projection_width=24), TEACHER_WIDTH)(batch)
    assert outputs.mlm_logits.shape == (len(batch.masked_index), len(shape.alphabet))
    assert outputs.threedi_logits.shape == (n, 20)
    (projected,) = outputs.projections
    for projection in (projected.sequence, projected.structure):
        assert projection.shape == (n, 24)
        torch.testing.assert_close(projection.norm(dim=1), torch.ones(n))
    assert outputs.hidden.shape == (len(batch.packed.tokens), 32)
    assert projected.logit_scale.item() == pytest.approx(1 / 0.07)


def test_heads_see_the_hidden_state_at_length_one() -> None:
    model, batch = AlignmentModel(SHAPE, LossConfig(), TEACHER_WIDTH), make_batch()
    outputs = model(batch)
    rows = outputs.hidden[batch.residue_index]
    rows = rows / rows.square().sum(1, keepdim=True).sqrt()
    expected = model.threedi_head.out(torch.relu(model.threedi_head.dense(rows)))
    torch.testing.assert_close(outputs.threedi_logits, expected)
    assert torch.equal(model.threedi_logits(outputs.hidden, batch.residue_index), outputs.threedi_logits)
    projected = model.sequence_projection.linear(rows)
    expected = projected / projected.square().sum(1, keepdim=True).sqrt()
    torch.testing.assert_close(outputs.projections[0].sequence, expected)
    logits = model.trunk.lm_logits(outputs.hidden)[batch.masked_index]
    torch.testing.assert_close(outputs.mlm_logits, logits)


@pytest.mark.parametrize(
    ("losses", "absent"),
    [
        ({"structure": 0.0}, {"threedi_logits"}),
        ({"contrast": 0.0}, {"projections"}),
        ({"mlm": 0.0}, {"mlm_logits"}),
    ],
)
def test_a_loss_of_weight_zero_leaves_out_its_head_and_no_parameter_is_idle(losses: dict, absent: set[str]) -> None:
    model = AlignmentModel(SHAPE, LossConfig(**losses), None if "contrast" in losses else TEACHER_WIDTH)
    outputs = model(make_batch())
    assert {name for name, value in outputs._asdict().items() if value is None or value == ()} == absent
    there = [outputs.mlm_logits, outputs.threedi_logits, *(x for each in outputs.projections for x in each)]
    total = sum(value.square().sum() for value in there if value is not None)
    total.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == trained
    assert any(name.startswith("threedi_head") for name in trained) == ("structure" not in losses)
    assert any("projection" in name for name in trained) == ("contrast" not in losses)
    assert any(name.startswith("trunk.lm_head") for name in trained) == ("mlm" not in losses)
    assert "trunk.embedding.weight" in trained


def test_logit_scale_is_bounded_and_can_come_back() -> None:
    temperature = Temperature(maximum=100.0)
    with torch.no_grad():
        temperature.logit_scale.fill_(math.log(100) + 0.5)
    assert temperature().item() == 100.0
    temperature().backward()  # descent would lower it
    assert temperature.logit_scale.grad == pytest.approx(100.0)
    temperature.logit_scale.grad = None
    (-temperature()).backward()  # descent would raise it further
    assert temperature.logit_scale.grad == 0
    with torch.no_grad():
        temperature.logit_scale.fill_(1.0)
    temperature.logit_scale.grad = None
    (-temperature()).backward()
    assert temperature.logit_scale.grad == pytest.approx(-math.e)


def test_plain_adamw_over_the_groups_learns_a_batch() -> None:
    torch.manual_seed(0)
    model, batch = AlignmentModel(SHAPE, LossConfig(), TEACHER_WIDTH), make_batch()
    groups = param_groups(model, OptimizerConfig(trunk_lr=3e-3, head_lr=3e-3))
    optimizer = torch.optim.AdamW(groups)

    def loss() -> torch.Tensor:
        outputs = model(batch)
        ((sequence, structure, scale),) = outputs.projections
        similarities = scale * sequence @ structure.T
        return (
            torch.nn.functional.cross_entropy(outputs.mlm_logits, batch.masked_target)
            + torch.nn.functional.cross_entropy(outputs.threedi_logits, batch.threedi)
            + torch.nn.functional.cross_entropy(similarities, torch.arange(len(similarities)))
        )

    first = loss().item()
    for _ in range(60):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.5 * first


def test_groups_hold_every_trainable_parameter_once_and_decay_matrices_only() -> None:
    model = AlignmentModel(SHAPE, LossConfig(), TEACHER_WIDTH)
    groups = {group["name"]: group for group in param_groups(model, OptimizerConfig())}
    assert set(groups) == {"trunk_matrices", "trunk_vectors", "heads_matrices", "heads_vectors"}
    held = [id(parameter) for group in groups.values() for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())
    assert id(model.trunk.embedding.weight) in {id(p) for p in groups["trunk_matrices"]["params"]}
    assert id(model.temperature.logit_scale) in {id(p) for p in groups["heads_vectors"]["params"]}
    assert {name: (g["lr"], g["weight_decay"]) for name, g in groups.items()} == {
        "trunk_matrices": (1e-4, 0.01),
        "trunk_vectors": (1e-4, 0.0),
        "heads_matrices": (1e-3, 0.01),
        "heads_vectors": (1e-3, 0.0),
    }


def test_every_teacher_has_heads_of_its_own_and_the_first_keeps_its_names() -> None:
    one = AlignmentModel(SHAPE, LossConfig(projection_width=24), TEACHER_WIDTH)
    two = AlignmentModel(SHAPE, LossConfig(projection_width=24), (5, 7))
    more = {f"more_projections.0.{name}" for name in one.state_dict() if "projection" in name or "temperature" in name}
    assert set(two.state_dict()) == set(one.state_dict()) | more
    assert len(more) == 5
    batch = make_batch()
    assert TEACHER_WIDTH == 5 + 7
    first, second = two(batch).projections
    for projected, pair, columns in (
        (first, two, batch.teacher[:, :5]),
        (second, two.more_projections[0], batch.teacher[:, 5:]),
    ):
        expected = torch.nn.functional.normalize(pair.structure_projection.linear(columns), dim=-1)
        torch.testing.assert_close(projected.structure, expected)
        assert projected.sequence.shape == (len(batch.residue_index), 24)
    assert not torch.equal(first.sequence, second.sequence)
    sum(x.square().sum() for each in (first, second) for x in each).backward()
    assert all(p.grad is not None for name, p in two.named_parameters() if "projection" in name or "temp" in name)


def test_the_widths_of_the_teachers_are_found_in_the_weights() -> None:
    for widths in ((), (5,), (5, 7, 9)):
        model = AlignmentModel(SHAPE, LossConfig(contrast=0.5 if widths else 0.0), widths)
        assert teacher_widths(model.state_dict()) == widths


def test_a_batch_without_the_teachers_embeddings_is_refused() -> None:
    model, batch = AlignmentModel(SHAPE, LossConfig(), TEACHER_WIDTH), make_batch()
    with pytest.raises(AssertionError, match="needs teacher embeddings"):
        model(replace(batch, teacher=None))
    with pytest.raises(AssertionError, match="12"):
        model(replace(batch, teacher=batch.teacher[:, :5]))
