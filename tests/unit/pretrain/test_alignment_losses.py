"""Terms of a pool: counts, statistics and what happens where a kind of residue is missing."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from configs.losses import LossConfig, SelectionConfig
from pretrain.batch import Batch
from pretrain.losses.alignment import alignment_terms
from pretrain.losses.reference import ReferenceLosses, online_reference
from pretrain.losses.terms import LossTerm, Terms
from pretrain.model.alignment import Projected
from tests.unit.pretrain.pools import make_batch, make_leaves, make_outputs

LARGE = SelectionConfig(mode="large", ratio=0.5, reference=Path("reference"))


def known_losses(batch: Batch, teachers: int = 1) -> ReferenceLosses:
    outputs = make_outputs(make_leaves(batch, 3, 14.0, teachers=teachers), gradient=False)
    return online_reference(outputs, batch, LossConfig())


def test_counts_are_those_of_the_selected_residues_and_of_all_masked_tokens() -> None:
    batch = make_batch([30, 41], seed=1)
    outputs = make_outputs(make_leaves(batch, 2, 14.0))
    reference = known_losses(batch)
    terms = alignment_terms(outputs, batch, LossConfig(), LARGE, reference)
    assert terms["mlm"].count == len(batch.masked_target)
    assert terms["structure"].count == -(-int((batch.threedi >= 0).sum()) // 2)
    assert terms["contrast"].count == -(-int(batch.structure_valid.sum()) // 2)


def test_a_pool_without_structures_gives_zero_losses_not_nan() -> None:
    batch = make_batch([30], seed=1)
    none = torch.zeros(30, dtype=torch.bool)
    batch = replace(batch, threedi=torch.full((30,), -1), structure_valid=none)
    outputs = make_outputs(make_leaves(batch, 2, 14.0))
    reference = known_losses(batch)
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
    outputs.projections, outputs.threedi_logits = (), None
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
    reference = known_losses(batch)
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
    for name in ("mlm_logits", "threedi_logits"):
        setattr(outputs, name, getattr(outputs, name).detach().bfloat16())
    outputs.projections = tuple(Projected(*(x.detach().bfloat16() for x in each)) for each in outputs.projections)
    rounded = alignment_terms(outputs, batch, LossConfig(), SelectionConfig())
    for name in ("mlm", "structure", "contrast"):
        assert rounded[name].sum.dtype == torch.float32
        # bfloat16 rounds each logit by 2^-9; the mean over about 100 residues is closer than one residue.
        assert rounded[name].local_mean().item() == pytest.approx(exact[name].local_mean().item(), rel=0.01)


def test_the_total_weighs_each_loss_by_its_pool_mean() -> None:
    terms = {"a": LossTerm(torch.tensor(6.0), torch.tensor(3.0)), "b": LossTerm(torch.tensor(8.0), torch.tensor(2.0))}
    assert Terms(terms, {"a": 1.0, "b": 0.5}).total(2).item() == pytest.approx(2 * (2.0 + 0.5 * 4.0))


def test_further_teachers_are_averaged_and_logged_under_names_of_their_own() -> None:
    batch = make_batch([50, 50], seed=1)
    leaves = make_leaves(batch, 2, 20.0, teachers=2)
    both = alignment_terms(make_outputs(leaves), batch, LossConfig(), LARGE, known_losses(batch, teachers=2))
    logged = both.logged()
    assert {name for name in logged if name.endswith("_2")} == {
        "accuracy_contrast_2",
        "logit_scale_2",
        "selected_fraction_sequence_to_structure_2",
        "selected_fraction_structure_to_sequence_2",
    }
    assert (logged["logit_scale"], logged["logit_scale_2"]) == pytest.approx((20.0, 22.0))
    first = {name: leaf for name, leaf in leaves.items() if not name.endswith("_2")}
    second = {name: leaves.get(f"{name}_2", leaf) for name, leaf in first.items()}
    known = known_losses(batch, teachers=2)
    alone = [
        alignment_terms(make_outputs(each), batch, LossConfig(), LARGE, replace(known, contrast=(losses,)))
        for each, losses in zip((first, second), known.contrast, strict=True)
    ]
    mean = sum(terms["contrast"].local_mean() for terms in alone) / 2
    # float64 sums in another order
    torch.testing.assert_close(both["contrast"].local_mean(), mean, rtol=1e-12, atol=0)


def test_published_denominators_count_proteins_and_not_residues() -> None:
    batch = make_batch([30, 41, 25], seed=1)
    outputs = make_outputs(make_leaves(batch, 2, 14.0))
    config = LossConfig(denominators="published")
    terms = alignment_terms(outputs, batch, config, LARGE, known_losses(batch))
    assert terms["mlm"].count.item() == pytest.approx(3 * 36.0758)
    for name in ("structure", "contrast"):
        assert terms[name].count.item() == pytest.approx(3 * 240.5055 * 0.5)
    counted = alignment_terms(outputs, batch, LossConfig(), LARGE, known_losses(batch))
    for name in ("mlm", "structure", "contrast"):
        assert torch.equal(terms[name].sum, counted[name].sum)


def test_the_fraction_of_a_step_overrules_that_of_the_config() -> None:
    batch = make_batch([50, 50], seed=1)
    outputs = make_outputs(make_leaves(batch, 2, 20.0))
    logged = alignment_terms(outputs, batch, LossConfig(), LARGE, known_losses(batch), ratio=0.9).logged()
    # ceil(0.9 n) of n residues
    assert logged["selected_fraction_structure"] == pytest.approx(0.9, abs=0.02)


def test_what_is_selected_is_reported_by_kind_of_residue_where_the_batch_tells_it() -> None:
    batch = make_batch([50, 50], seed=1)
    n = len(batch.threedi)
    unknown = torch.full((n,), float("nan"))
    described = replace(
        batch, plddt=torch.linspace(30, 99, n), bfactor=unknown, secondary=torch.arange(n, dtype=torch.int8) % 3
    )
    outputs = make_outputs(make_leaves(batch, 2, 20.0))
    logged = alignment_terms(outputs, described, LossConfig(), LARGE, known_losses(batch)).logged()
    kept = [logged[f"kept_{loss}_helix"] for loss in ("structure", "sequence_to_structure", "structure_to_sequence")]
    # Half of about 30 random residues, so far from none and from all.
    assert all(0.1 < fraction < 0.9 for fraction in kept)
    off = alignment_terms(outputs, described, LossConfig(), SelectionConfig()).logged()
    assert not any(name.startswith("kept_") for name in off)
