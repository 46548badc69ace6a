"""The losses against a plain float64 implementation of their definitions: dense InfoNCE, sorted selection."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from configs.losses import LossConfig, SelectionConfig
from pretrain.batch import Batch
from pretrain.losses.alignment import alignment_terms
from pretrain.losses.reference import online_reference
from tests.unit.pretrain.pools import make_batch, make_leaves, make_outputs

TOLERANCE = 1e-6
"""Both sides compute in float64 with other summation orders: about 1e-12 is expected."""
RESIDUES_PER_PROTEIN, MASKED_PER_PROTEIN = 240.5055, 36.0758
LENGTHS, PROTEINS = [37, 64, 21, 50, 33], [0, 1, 1, 2, 3]
"""Protein 1 stands in the pool twice, one after the other; 0 and 3 are of one cluster."""


def plain_negatives(batch: Batch, config: LossConfig) -> torch.Tensor:
    """bool [m, m]: whether residue j is a negative of residue i, of the residues with a structure."""
    chains = [number for number, length in enumerate(batch.packed.lengths) for _ in range(length - 2)]
    known = zip(chains, batch.cluster.tolist(), batch.structure_valid.tolist(), strict=True)
    residues = [(chain, cluster) for chain, cluster, valid in known if valid]

    def is_negative(i: int, j: int) -> bool:
        (chain, cluster), (other_chain, other_cluster) = residues[i], residues[j]
        if chain == other_chain:
            return i != j and not config.exclude_same_protein
        return not (config.exclude_same_cluster and cluster == other_cluster)

    numbers = range(len(residues))
    return torch.tensor([[is_negative(i, j) for j in numbers] for i in numbers])


def plain_losses(outputs, batch: Batch, negatives: torch.Tensor) -> dict[str, torch.Tensor]:
    """Per-residue losses: the N x N matrix written out, what is no negative set to minus infinity."""
    has_state = batch.threedi >= 0
    losses = {
        "structure": F.cross_entropy(outputs.threedi_logits[has_state], batch.threedi[has_state], reduction="none")
    }
    chosen = batch.structure_valid
    allowed = negatives | torch.eye(len(negatives), dtype=torch.bool)
    for number, (sequence, structure, scale) in enumerate(outputs.projections):
        logits = (scale * sequence[chosen] @ structure[chosen].T).masked_fill(~allowed, -math.inf)
        target = torch.arange(len(logits))
        losses[f"forward {number}"] = F.cross_entropy(logits, target, reduction="none")
        losses[f"backward {number}"] = F.cross_entropy(
            (scale * structure[chosen] @ sequence[chosen].T).masked_fill(~allowed.T, -math.inf),
            target,
            reduction="none",
        )
    return losses


def plain_total(outputs, reference, batch: Batch, config: LossConfig, selection: SelectionConfig) -> torch.Tensor:
    """w_mlm * CE + w_structure * CE(selected) + w_contrast * mean over teachers and directions of CE(selected)."""
    negatives = plain_negatives(batch, config)
    trained, known = (plain_losses(each, batch, negatives) for each in (outputs, reference))
    published, proteins = config.denominators == "published", len(batch.packed.lengths)
    ratio = 1.0 if selection.mode == "off" else selection.ratio
    means = {}
    for name, loss in trained.items():
        kept = list(range(len(loss)))
        if selection.mode != "off":
            excess = (loss - known[name]).tolist()
            kept.sort(key=lambda i: excess[i], reverse=selection.mode == "large")
            kept = kept[: math.ceil(ratio * len(kept))]
        means[name] = loss[kept].sum() / (RESIDUES_PER_PROTEIN * proteins * ratio if published else len(kept))
    mlm = F.cross_entropy(outputs.mlm_logits, batch.masked_target, reduction="sum")
    mlm = mlm / (MASKED_PER_PROTEIN * proteins if published else len(batch.masked_target))
    directions = [mean for name, mean in means.items() if name != "structure"]
    contrast = sum(directions) / len(directions)
    return config.mlm * mlm + config.structure * means["structure"] + config.contrast * contrast


@pytest.mark.parametrize(("teachers", "scale"), [(1, 1 / 0.07), (1, 100.0), (2, 1 / 0.07)])
@pytest.mark.parametrize("denominators", ["counted", "published"])
@pytest.mark.parametrize("cluster", [True, False])
@pytest.mark.parametrize("protein", [True, False])
@pytest.mark.parametrize("mode", ["off", "large", "small"])
def test_losses_and_gradients_equal_the_plain_float64_implementation(
    mode: str, protein: bool, cluster: bool, denominators: str, teachers: int, scale: float
) -> None:
    batch = make_batch(LENGTHS, seed=1, proteins=PROTEINS)
    config = LossConfig(
        exclude_same_cluster=cluster, exclude_same_protein=protein, denominators=denominators, contrast_tile=32
    )
    selection = SelectionConfig(mode=mode, ratio=0.8, reference=None if mode == "off" else Path("reference"))
    reference = make_outputs(make_leaves(batch, seed=3, scale=9.0, width=7, teachers=teachers), gradient=False)
    leaves = make_leaves(batch, seed=2, scale=scale, teachers=teachers)
    ours, plain = (make_outputs(leaves) for _ in range(2))

    terms = alignment_terms(ours, batch, config, selection, online_reference(reference, batch, config))
    total = terms.total(1)
    expected = plain_total(plain, reference, batch, config, selection)
    assert abs(total.item() - expected.item()) < TOLERANCE
    assert terms.logged()["loss"] == pytest.approx(expected.item(), abs=TOLERANCE)

    total.backward()
    expected.backward()
    for name, leaf in ours.leaves.items():
        difference = (leaf.grad - plain.leaves[name].grad).abs().max().item()
        assert difference < TOLERANCE, name
        assert leaf.grad.abs().max() > 1e-5, f"{name} has no gradient to compare"


def test_every_exclusion_leaves_other_negatives() -> None:
    batch = make_batch(LENGTHS, seed=1, proteins=PROTEINS)
    counts = {
        (cluster, protein): int(
            plain_negatives(batch, LossConfig(exclude_same_cluster=cluster, exclude_same_protein=protein)).sum()
        )
        for cluster in (True, False)
        for protein in (True, False)
    }
    assert len(set(counts.values())) == 4
    assert counts[True, True] < min(counts[True, False], counts[False, True]) < counts[False, False]


def test_paper_loss_weights_are_the_default() -> None:
    config = LossConfig()
    assert (config.mlm, config.structure, config.contrast) == (1.0, 0.5, 0.5)
