"""The losses of one pool: MLM, 3Di tokens and residue InfoNCE against the teacher, with residue loss selection."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from configs.losses import LossConfig, SelectionConfig
from pretrain.batch import Batch
from pretrain.distributed import Group, Rows, rows_of
from pretrain.losses.contrast import ContrastLosses, contrast_losses
from pretrain.losses.selection import keep_mask, num_kept
from pretrain.losses.terms import LossTerm, Statistic, Terms

if TYPE_CHECKING:
    from pretrain.model.alignment import Outputs


def alignment_terms(
    outputs: "Outputs",
    batch: Batch,
    config: LossConfig,
    selection: SelectionConfig,
    reference: "Outputs | None" = None,
    group: Group = None,
) -> Terms:
    """The weighted losses of this rank's share of a pool, counted over the whole pool.

    mlm: cross entropy of the masked tokens, never subject to selection. structure: cross entropy of the 3Di state of
    every residue that has one. contrast: mean of both directions of residue InfoNCE over residues with a structure.
    Selection keeps, separately for structure and for each direction, the residues of largest (smallest) excess loss
    over `reference`, the frozen reference model's outputs for the same masked batch.

    A collective: every rank of the pool must call it, with or without residues of a kind.
    """
    assert selection.mode == "off" or reference is not None, "selection needs the reference model's outputs"
    has_state, has_structure = batch.threedi >= 0, batch.structure_valid
    counts = [len(batch.masked_target), int(has_state.sum()), int(has_structure.sum())]
    masked, states, structures = rows_of(counts, batch.threedi.device, group)
    terms, weights, statistics = {}, {}, {}
    if config.mlm > 0:
        weights["mlm"] = config.mlm
        terms["mlm"], statistics["accuracy_mlm"] = _mlm(outputs, batch, masked)
    if config.structure > 0:
        weights["structure"] = config.structure
        terms["structure"], found = _structure(outputs, batch, has_state, states, selection, reference, group)
        statistics |= found
    if config.contrast > 0:
        weights["contrast"] = config.contrast
        terms["contrast"], found = _contrast(
            outputs, batch, has_structure, structures, config, selection, reference, group
        )
        statistics |= found
    return Terms(terms, weights, statistics, group)


def _mlm(outputs: "Outputs", batch: Batch, rows: Rows) -> tuple[LossTerm, Statistic]:
    logits = _full(outputs.mlm_logits)
    loss = F.cross_entropy(logits, batch.masked_target, reduction="sum")
    right = (logits.detach().argmax(-1) == batch.masked_target).sum()
    return LossTerm(loss, _count(rows.total, loss)), Statistic(right, len(logits))


def _structure(
    outputs: "Outputs",
    batch: Batch,
    has_state: Tensor,
    rows: Rows,
    selection: SelectionConfig,
    reference: "Outputs | None",
    group: Group,
) -> tuple[LossTerm, dict[str, Statistic]]:
    target = batch.threedi[has_state]
    logits = _full(outputs.threedi_logits)[has_state]
    loss = F.cross_entropy(logits, target, reduction="none")
    excess = loss.detach()
    if selection.mode != "off":
        excess = excess - F.cross_entropy(_full(reference.threedi_logits.detach())[has_state], target, reduction="none")
    term, selected = _selected(loss, excess, selection, rows, group)
    right = (logits.detach().argmax(-1) == target).sum()
    return term, {"accuracy_structure": Statistic(right, len(target)), "selected_fraction_structure": selected}


def _contrast(
    outputs: "Outputs",
    batch: Batch,
    has_structure: Tensor,
    rows: Rows,
    config: LossConfig,
    selection: SelectionConfig,
    reference: "Outputs | None",
    group: Group,
) -> tuple[LossTerm, dict[str, Statistic]]:
    # A protein has one cluster, so equal clusters cover equal proteins.
    groups = batch.cluster[has_structure] if config.exclude_same_cluster else None

    def losses(of: "Outputs") -> ContrastLosses:
        sequence = _rows(_full(of.sequence_projection), has_structure)
        structure = _rows(_full(of.structure_projection), has_structure)
        return contrast_losses(sequence, structure, _full(of.logit_scale), groups, config.contrast_tile, group, rows)

    trained = losses(outputs)
    directions = {
        "sequence_to_structure": (trained.sequence_to_structure, None),
        "structure_to_sequence": (trained.structure_to_sequence, None),
    }
    if selection.mode != "off":
        with torch.no_grad():
            known = losses(reference)
        directions = {name: (loss, getattr(known, name)) for name, (loss, _) in directions.items()}
    sums, statistics = [], {"accuracy_contrast": Statistic(trained.hit.sum(), len(trained.hit))}
    for name, (loss, known_loss) in directions.items():
        excess = loss.detach() if known_loss is None else loss.detach() - known_loss
        term, statistics[f"selected_fraction_{name}"] = _selected(loss, excess, selection, rows, group)
        sums.append(term.sum)
    statistics["logit_scale"] = Statistic(outputs.logit_scale.detach(), 1.0)
    # Both directions keep equally many residues, so their mean has one denominator.
    return LossTerm(0.5 * (sums[0] + sums[1]), term.count), statistics


def _selected(
    loss: Tensor, excess: Tensor, selection: SelectionConfig, rows: Rows, group: Group
) -> tuple[LossTerm, Statistic]:
    """The sum over the selected of this rank's rows, and what fraction they are."""
    mask = keep_mask(excess, selection.ratio, selection.mode, group, rows)
    kept = rows.total if selection.mode == "off" else num_kept(rows.total, selection.ratio)
    return LossTerm((loss * mask).sum(), _count(kept, loss)), Statistic(mask.sum(), len(mask))


def _count(value: int, like: Tensor) -> Tensor:
    return torch.tensor(value, dtype=like.dtype, device=like.device)


def _full(tensor: Tensor) -> Tensor:
    """At least float32: sums of thousands of exponentials do not fit bfloat16."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _rows(tensor: Tensor, chosen: Tensor) -> Tensor:
    """`tensor[chosen]`, without a copy where all are chosen."""
    return tensor if bool(chosen.all()) else tensor[chosen]
