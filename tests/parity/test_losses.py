"""The losses against a plain float64 implementation of their definitions: dense InfoNCE, sorted selection."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from configs.losses import LossConfig, SelectionConfig
from pretrain.batch import Batch
from pretrain.losses.alignment import alignment_terms
from tests.unit.pretrain.pools import make_batch, make_leaves, make_outputs

TOLERANCE = 1e-6
"""Both sides compute in float64 with other summation orders: about 1e-12 is expected."""


def plain_losses(outputs, batch: Batch, exclude: bool) -> dict[str, torch.Tensor]:
    """Per-residue losses: the N x N matrix written out, excluded negatives set to minus infinity."""
    chosen = batch.structure_valid
    logits = outputs.logit_scale * outputs.sequence_projection[chosen] @ outputs.structure_projection[chosen].T
    cluster = batch.cluster[chosen]
    negatives = torch.ones_like(logits, dtype=torch.bool)
    if exclude:
        negatives = cluster[:, None] != cluster[None, :]
    allowed = negatives | torch.eye(len(logits), dtype=torch.bool)
    logits = logits.masked_fill(~allowed, -math.inf)
    target = torch.arange(len(logits))
    has_state = batch.threedi >= 0
    return {
        "structure": F.cross_entropy(outputs.threedi_logits[has_state], batch.threedi[has_state], reduction="none"),
        "forward": F.cross_entropy(logits, target, reduction="none"),
        "backward": F.cross_entropy(logits.T, target, reduction="none"),
    }


def plain_total(outputs, reference, batch: Batch, config: LossConfig, selection: SelectionConfig) -> torch.Tensor:
    """w_mlm * CE + w_structure * CE(selected) + w_contrast * mean of both directions' CE(selected)."""
    trained = plain_losses(outputs, batch, config.exclude_same_cluster)
    means = {}
    for name, loss in trained.items():
        kept = list(range(len(loss)))
        if selection.mode != "off":
            known = plain_losses(reference, batch, config.exclude_same_cluster)[name]
            excess = (loss - known).tolist()
            kept.sort(key=lambda i: excess[i], reverse=selection.mode == "large")
            kept = kept[: math.ceil(selection.ratio * len(kept))]
        means[name] = loss[kept].mean()
    mlm = F.cross_entropy(outputs.mlm_logits, batch.masked_target)
    contrast = (means["forward"] + means["backward"]) / 2
    return config.mlm * mlm + config.structure * means["structure"] + config.contrast * contrast


@pytest.mark.parametrize("scale", [1 / 0.07, 100.0])
@pytest.mark.parametrize("exclude", [True, False])
@pytest.mark.parametrize("mode", ["off", "large", "small"])
def test_losses_and_gradients_equal_the_plain_float64_implementation(mode: str, exclude: bool, scale: float) -> None:
    batch = make_batch([37, 64, 21, 50, 33], seed=1)
    config = LossConfig(exclude_same_cluster=exclude, contrast_tile=32)
    selection = SelectionConfig(mode=mode, ratio=0.8, reference=None if mode == "off" else Path("reference"))
    reference = make_outputs(make_leaves(batch, seed=3, scale=9.0, width=7), gradient=False)
    ours, plain = (make_outputs(make_leaves(batch, seed=2, scale=scale)) for _ in range(2))

    terms = alignment_terms(ours, batch, config, selection, reference)
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


def test_paper_loss_weights_are_the_default() -> None:
    config = LossConfig()
    assert (config.mlm, config.structure, config.contrast) == (1.0, 0.5, 0.5)
