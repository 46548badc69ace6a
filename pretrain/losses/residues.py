"""The losses of every residue of this rank, before selection: of the trained model and of the reference alike."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from configs.losses import LossConfig
from pretrain.batch import Batch
from pretrain.distributed import Group, Rows
from pretrain.losses.contrast import ContrastLosses, contrast_losses
from pretrain.losses.exclusion import Exclude

if TYPE_CHECKING:
    from pretrain.model.alignment import Projected


def structure_losses(threedi_logits: Tensor, batch: Batch) -> Tensor:
    """[n]: cross entropy of the 3Di state, of the n residues that have one (batch.threedi >= 0).

    Args:
        threedi_logits: [N, 20], of all residues.
    """
    has_state = batch.threedi >= 0
    return F.cross_entropy(full(threedi_logits)[has_state], batch.threedi[has_state], reduction="none")


def projected_losses(
    projected: "Projected", batch: Batch, config: LossConfig, group: Group = None, rows: Rows | None = None
) -> ContrastLosses:
    """Residue InfoNCE against one teacher, of the m residues with batch.structure_valid: three times [m].

    A collective of the ranks that share the pool (config.negatives `pool`); `rank` needs no other.

    Args:
        rows: layout of the pool's residues with a structure over the ranks, where it is already known.
    """
    chosen = batch.structure_valid
    sequence, structure = (_rows(full(each), chosen) for each in (projected.sequence, projected.structure))
    if config.negatives == "rank":
        rows = Rows.alone(len(sequence))
    exclude = None
    if config.exclude_same_cluster or config.exclude_same_protein:
        chain = chain_numbers(batch)[chosen]
        exclude = Exclude(chain, batch.cluster[chosen], config.exclude_same_cluster, config.exclude_same_protein)
    return contrast_losses(sequence, structure, full(projected.logit_scale), exclude, config.contrast_tile, group, rows)


def chain_numbers(batch: Batch) -> Tensor:
    """int64 [N]: which of the batch's chains, end to end, a residue belongs to; a protein may stand there twice."""
    ends = torch.tensor(batch.packed.lengths, dtype=torch.int64, device=batch.residue_index.device).cumsum(0)
    return torch.bucketize(batch.residue_index, ends, right=True)


def full(tensor: Tensor) -> Tensor:
    """At least float32: sums of thousands of exponentials do not fit bfloat16."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _rows(tensor: Tensor, chosen: Tensor) -> Tensor:
    """`tensor[chosen]`, without a copy where all are chosen."""
    return tensor if bool(chosen.all()) else tensor[chosen]
