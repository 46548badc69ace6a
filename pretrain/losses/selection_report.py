"""What a selection keeps, by the kind of residue: statistics for the log."""

import torch
from torch import Tensor

from data_pipeline.structure.secondary import COIL, HELIX, STRAND
from pretrain.batch import Batch
from pretrain.losses.terms import Statistic

PREFIX = "kept_"
PLDDT_EDGES = (50.0, 70.0, 90.0)
"""The bins of AlphaFold DB: very low, low, confident, very high; an edge belongs to the bin above it."""
BFACTOR_EDGES = (20.0, 40.0, 60.0)
"""Square Angstrom: a root mean square displacement of about 0.5, 0.7 and 0.9 Angstrom."""
PLDDT_CLASSES = ("plddt_0_50", "plddt_50_70", "plddt_70_90", "plddt_90_100")
BFACTOR_CLASSES = ("bfactor_0_20", "bfactor_20_40", "bfactor_40_60", "bfactor_60_up")
SECONDARY_CLASSES = ("helix", "strand", "coil")
CLASSES = (*PLDDT_CLASSES, *BFACTOR_CLASSES, *SECONDARY_CLASSES)
"""A statistic's name is `kept_<loss>_<class>`."""


def selection_statistics(loss_name: str, kept: Tensor, batch: Batch, rows: Tensor) -> dict[str, Statistic]:
    """Of the residues of every class, which fraction the selection keeps: sum kept, count there.

    The same names on every rank and in every step; the count of a class that is absent is 0. Empty where the batch
    was collated without descriptions.

    Args:
        loss_name: `structure`, `sequence_to_structure` or `structure_to_sequence`.
        kept: bool [n], of the residues that `rows` chooses.
        rows: bool [N]: which of the batch's residues take part in the loss.
    """
    if batch.plddt is None or batch.bfactor is None or batch.secondary is None:
        return {}
    member = torch.cat(
        [
            _bins(batch.plddt[rows], PLDDT_EDGES),
            _bins(batch.bfactor[rows], BFACTOR_EDGES),
            batch.secondary[rows, None] == torch.tensor([HELIX, STRAND, COIL], device=rows.device),
        ],
        dim=1,
    )
    counts = member.sum(0).double()
    sums = (member & kept[:, None]).sum(0).double()
    return {f"{PREFIX}{loss_name}_{name}": Statistic(sums[k], counts[k]) for k, name in enumerate(CLASSES)}


def _bins(values: Tensor, edges: tuple[float, ...]) -> Tensor:
    """bool [n, len(edges) + 1]: the bin that each value falls into; none for NaN."""
    bounds = torch.tensor([-torch.inf, *edges, torch.inf], device=values.device)
    return (values[:, None] >= bounds[:-1]) & (values[:, None] < bounds[1:])
