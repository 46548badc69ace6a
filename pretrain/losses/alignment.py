"""The losses of one pool: MLM, 3Di tokens and residue InfoNCE against the teachers, with residue loss selection."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from configs.losses import LossConfig, SelectionConfig
from pretrain.batch import Batch
from pretrain.distributed import Group, Rows, rows_of, world_size
from pretrain.losses.reference import ReferenceLosses
from pretrain.losses.residues import full, projected_losses, structure_losses
from pretrain.losses.selection import keep_mask, pool_kept
from pretrain.losses.selection_report import selection_statistics
from pretrain.losses.terms import LossTerm, Statistic, Terms

if TYPE_CHECKING:
    from pretrain.model.alignment import Outputs, Projected

PUBLISHED_RESIDUES = 240.5055
"""Residues of a protein in the published denominators of the structure losses: the mean of the published data."""
PUBLISHED_MASKED = 36.0758
"""Masked tokens of a protein in the published denominator of MLM: 15 % of the above."""


def alignment_terms(
    outputs: "Outputs",
    batch: Batch,
    config: LossConfig,
    selection: SelectionConfig,
    reference: ReferenceLosses | None = None,
    group: Group = None,
    ratio: float | None = None,
) -> Terms:
    """The weighted losses of this rank's share of a pool, counted over the whole pool.

    mlm: cross entropy of the masked tokens, never subject to selection. structure: cross entropy of the 3Di state of
    every residue that has one. contrast: residue InfoNCE over residues with a structure, the mean of both directions
    and of the teachers. Selection keeps, separately for structure, for each teacher and each direction, the residues
    of largest (smallest) excess loss over `reference`.

    With config.denominators `counted` each loss is the pool's sum over the pool's number of (kept) residues, whatever
    the world size. With `published` a rank divides its own sum by a constant times its own number of proteins, and the
    loss is the mean over the ranks, as where gradients of per-rank losses are averaged; the loss of a pool of equally
    many proteins per rank is then the pool's sum over the constant times the pool's proteins.

    A collective: every rank of the pool must call it, with or without residues of a kind.

    Args:
        reference: of the same masked batch, in the order of its residues; needed where selection is on.
        ratio: fraction kept in this step; None: selection.ratio.
    """
    assert selection.mode == "off" or reference is not None, "selection needs the reference model's losses"
    pool = _Pool.of(batch, config, selection, reference, group, ratio)
    terms, weights, statistics = {}, {}, {}
    if config.mlm > 0:
        weights["mlm"] = config.mlm
        terms["mlm"], statistics["accuracy_mlm"] = _mlm(outputs, pool)
    if config.structure > 0:
        weights["structure"] = config.structure
        terms["structure"], found = _structure(outputs, pool)
        statistics |= found
    if config.contrast > 0:
        weights["contrast"] = config.contrast
        terms["contrast"], found = _contrast(outputs, pool)
        statistics |= found
    return Terms(terms, weights, statistics, group)


@dataclass(frozen=True)
class _Pool:
    """This rank's share of a pool, and what its losses are selected and divided by."""

    batch: Batch
    config: LossConfig
    selection: SelectionConfig
    reference: ReferenceLosses | None
    group: Group
    ratio: float
    """Fraction kept; 1 without selection."""
    masked: Rows
    states: Rows
    """Of the residues with a 3Di state."""
    structures: Rows
    """Of the residues with a structure."""

    @classmethod
    def of(
        cls,
        batch: Batch,
        config: LossConfig,
        selection: SelectionConfig,
        reference: ReferenceLosses | None,
        group: Group,
        ratio: float | None,
    ) -> "_Pool":
        counts = [len(batch.masked_target), int((batch.threedi >= 0).sum()), int(batch.structure_valid.sum())]
        rows = rows_of(counts, batch.threedi.device, group)
        kept = 1.0 if selection.mode == "off" else selection.ratio if ratio is None else ratio
        return cls(batch, config, selection, reference, group, kept, *rows)

    def selected(
        self, name: str, loss: Tensor, known: Tensor | None, rows: Rows, which: Tensor
    ) -> tuple[LossTerm, dict[str, Statistic]]:
        """The sum over the selected of this rank's rows, and what was selected.

        Args:
            loss: [n]; known: the reference's, [n]; which: bool [N], which of the batch's residues the n are.
        """
        mode, scope = self.selection.mode, self.selection.scope
        excess = loss.detach() if known is None else loss.detach() - known
        mask = keep_mask(excess, self.ratio, mode, self.group, rows, scope)
        statistics = {f"selected_fraction_{name}": Statistic(mask.sum(), len(mask))}
        if self.selection.mode != "off":
            statistics |= selection_statistics(name, mask, self.batch, which)
        total, kept = torch.where(mask, loss, 0).sum(), pool_kept(rows, self.ratio, mode, scope)
        return LossTerm(total, self.denominator(total, kept, PUBLISHED_RESIDUES * self.ratio)), statistics

    def denominator(self, total: Tensor, count: int, per_protein: float) -> Tensor:
        """What this rank's sum is divided by, so that the quotients summed over ranks are the loss."""
        if self.config.denominators == "published":
            count = per_protein * len(self.batch.packed.lengths) * world_size(self.group)
        return torch.tensor(count, dtype=total.dtype, device=total.device)


def _mlm(outputs: "Outputs", pool: _Pool) -> tuple[LossTerm, Statistic]:
    logits, target = full(outputs.mlm_logits), pool.batch.masked_target
    loss = F.cross_entropy(logits, target, reduction="sum")
    right = (logits.detach().argmax(-1) == target).sum()
    return LossTerm(loss, pool.denominator(loss, pool.masked.total, PUBLISHED_MASKED)), Statistic(right, len(logits))


def _structure(outputs: "Outputs", pool: _Pool) -> tuple[LossTerm, dict[str, Statistic]]:
    has_state = pool.batch.threedi >= 0
    loss = structure_losses(outputs.threedi_logits, pool.batch)
    known = None if pool.reference is None else pool.reference.structure
    term, statistics = pool.selected("structure", loss, known, pool.states, has_state)
    right = (outputs.threedi_logits.detach().argmax(-1) == pool.batch.threedi)[has_state].sum()
    return term, {"accuracy_structure": Statistic(right, len(loss)), **statistics}


def _contrast(outputs: "Outputs", pool: _Pool) -> tuple[LossTerm, dict[str, Statistic]]:
    terms, statistics = [], {}
    known = pool.reference.contrast if pool.reference is not None else (None,) * len(outputs.projections)
    assert len(known) == len(outputs.projections), "the reference has other teachers"
    for number, (projected, losses) in enumerate(zip(outputs.projections, known, strict=True)):
        both, found = _one_teacher(projected, losses, pool, "" if number == 0 else f"_{number + 1}")
        terms += both
        statistics |= found
    # Every direction of every teacher keeps equally many residues, so their mean has one denominator.
    return LossTerm(torch.stack([term.sum for term in terms]).mean(), terms[0].count), statistics


def _one_teacher(
    projected: "Projected", known: tuple[Tensor, Tensor] | None, pool: _Pool, suffix: str
) -> tuple[list[LossTerm], dict[str, Statistic]]:
    """Both directions' sums; `suffix` tells the statistics of further teachers from the first one's."""
    losses = projected_losses(projected, pool.batch, pool.config, pool.group, pool.structures)
    directions = {
        f"sequence_to_structure{suffix}": losses.sequence_to_structure,
        f"structure_to_sequence{suffix}": losses.structure_to_sequence,
    }
    terms, statistics = [], {f"accuracy_contrast{suffix}": Statistic(losses.hit.sum(), len(losses.hit))}
    for (name, loss), known_loss in zip(directions.items(), known or (None, None), strict=True):
        term, found = pool.selected(name, loss, known_loss, pool.structures, pool.batch.structure_valid)
        terms.append(term)
        statistics |= found
    statistics[f"logit_scale{suffix}"] = Statistic(projected.logit_scale.detach(), 1.0)
    return terms, statistics
