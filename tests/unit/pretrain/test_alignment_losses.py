"""Terms of a pool: counts, statistics and what happens where a kind of residue is missing."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from configs.losses import LossConfig, SelectionConfig
from pretrain.losses.alignment import alignment_terms
from pretrain.losses.terms import LossTerm, Terms
from tests.unit.pretrain.pools import make_batch, make_leaves, make_outputs

LARGE = SelectionConfig(mode="large", ratio=0.5, reference=Path("reference"))


def test_counts_are_those_of_the_selected_residues_and_of_all_masked_tokens() -> None:
    batch = make_batch([30, 41], seed=1)
    outputs = make_outputs(make_leaves(batch, 2, 14.0))
    reference = make_outputs(make_leaves(batch, 3, 14.0), gradient=False)
    terms = alignment_terms(outputs, batch, LossConfig(), LARGE, reference)
    assert terms["mlm"].count == len(batch.masked_target)
    assert terms["structure"].count == -(-int((batch.threedi >= 0).sum()) // 2)
    assert terms["contrast"].count == -(-int(batch.structure_valid.sum()) // 2)


def test_a_pool_without_structures_gives_zero_losses_not_nan() -> None:
    batch = make_batch([30], seed=1)
    none = torch.zeros(30, dtype=torch.bool)
    batch = replace(batch, threedi=torch.full((30,), -1), structure_valid=none)
    outputs = make_outputs(make_leaves(batch, 2, 14.0))
    reference = make_outputs(make_leaves(batch, 3, 14.0), gradient=False)
    terms = alignment_terms(outputs, batch, LossConfig(), LARGE, reference)
    terms.total(1).backward()
    logged = terms.logged()
    assert logged["loss_structure"] == logged["loss_contrast"] == 0.0
    assert logged["loss"] == pytest.approx(logged["loss_mlm"])
    for name, leaf in outputs.leaves.items():
        assert leaf.grad is not None, name
        assert torch.isfinite(leaf.grad).all(), name


def test_a_loss_of_weight_zero_is_left_out() -> None:
    batch = make_batch([30], seed=1)
    outputs = make_outputs(make_leaves(batch, 2, 14.0))
    outputs.sequence_projection = outputs.structure_projection = outputs.logit_scale = outputs.threedi_logits = None
    terms = alignment_terms(outputs, batch, LossConfig(structure=0, contrast=0), SelectionConfig())
    assert set(terms.terms) == {"mlm"}
    assert set(terms.logged()) == {"loss", "loss_mlm", "accuracy_mlm"}


def test_logged_statistics_are_fractions_of_the_pool() -> None:
    batch = make_batch([50, 50], seed=1)
    leaves = make_leaves(batch, 2, 20.0)
    valid = batch.threedi >= 0
    leaves["threedi_logits"][valid, batch.threedi[valid]] = 100.0
    leaves["structure"] = leaves["sequence"]
    outputs = make_outputs(leaves)
    reference = make_outputs(make_leaves(batch, 3, 14.0), gradient=False)
    logged = alignment_terms(outputs, batch, LossConfig(), LARGE, reference).logged()
    assert logged["accuracy_structure"] == 1.0
    assert logged["accuracy_contrast"] == 1.0
    assert 0 <= logged["accuracy_mlm"] < 0.3
    assert logged["logit_scale"] == pytest.approx(20.0)
    # ceil(n / 2) of n residues
    for name in ("structure", "sequence_to_structure", "structure_to_sequence"):
        assert logged[f"selected_fraction_{name}"] == pytest.approx(0.5, abs=0.01)


def test_bfloat16_outputs_are_summed_in_float32() -> None:
    batch = make_batch([60, 70], seed=1)
    outputs = make_outputs(make_leaves(batch, 2, 14.0))
    exact = alignment_terms(outputs, batch, LossConfig(), SelectionConfig())
    for name in ("mlm_logits", "threedi_logits", "sequence_projection", "structure_projection", "logit_scale"):
        setattr(outputs, name, getattr(outputs, name).detach().bfloat16())
    rounded = alignment_terms(outputs, batch, LossConfig(), SelectionConfig())
    for name in ("mlm", "structure", "contrast"):
        assert rounded[name].sum.dtype == torch.float32
        # bfloat16 rounds each logit by 2^-9; the mean over about 100 residues is closer than one residue.
        assert rounded[name].local_mean().item() == pytest.approx(exact[name].local_mean().item(), rel=0.01)


def test_the_total_weighs_each_loss_by_its_pool_mean() -> None:
    terms = {"a": LossTerm(torch.tensor(6.0), torch.tensor(3.0)), "b": LossTerm(torch.tensor(8.0), torch.tensor(2.0))}
    assert Terms(terms, {"a": 1.0, "b": 0.5}).total(2).item() == pytest.approx(2 * (2.0 + 0.5 * 4.0))
