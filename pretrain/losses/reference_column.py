"""Losses of the reference model from a derived column: an approximation of those of the model itself."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from configs.losses import LossConfig
from pretrain.batch import Batch
from pretrain.distributed import Group
from pretrain.losses.reference import ReferenceLosses
from pretrain.losses.residues import projected_losses
from pretrain.model.alignment import Projected


@torch.no_grad()
def column_reference(
    batch: Batch, logit_scales: Sequence[float], config: LossConfig, group: Group = None
) -> ReferenceLosses:
    """What the reference loses on a batch that carries its column's rows.

    3Di losses are the stored means over fixed masks. Contrast losses are computed from the stored projections over the
    residues of the actual pool, as those of the trained model are.

    A collective, where the contrast is on: every rank of the pool must call it.

    Args:
        logit_scales: of every teacher, as the column's manifest states them.
    """
    rows = batch.reference
    assert rows is not None, "the batch carries no rows of the reference's column"
    structure = None
    if config.structure:
        assert rows.structure_loss is not None
        structure = rows.structure_loss[batch.threedi >= 0]
    contrast = []
    if config.contrast:
        for sequence, known, scale in zip(rows.sequence, rows.structure, logit_scales, strict=True):
            # float16 rounds lengths by up to a thousandth, which the scale would multiply.
            sides = [F.normalize(side.float(), dim=-1) for side in (sequence, known)]
            projected = Projected(*sides, torch.tensor(scale, device=sequence.device))
            found = projected_losses(projected, batch, config, group)
            contrast.append((found.sequence_to_structure, found.structure_to_sequence))
    return ReferenceLosses(structure, tuple(contrast))
