"""The model that is trained: a trunk and the heads of the losses that are switched on."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from configs.losses import LossConfig
from data_pipeline.structure.chain import THREEDI_STATES
from pretrain.batch import Batch
from pretrain.model.encoder import Encoder
from pretrain.model.heads import Projection, Temperature, ThreediHead
from pretrain.model.shape import TrunkShape


class Outputs(NamedTuple):
    """What one forward gives the losses; None where a loss is switched off.

    A named tuple, because DeepSpeed's hooks look for tensors in tuples but not in dataclasses.
    """

    mlm_logits: Tensor | None
    """[M, V] at the masked tokens."""
    threedi_logits: Tensor | None
    """[N, 20]."""
    sequence_projection: Tensor | None
    """float32 [N, P], rows of length 1."""
    structure_projection: Tensor | None
    """float32 [N, P], rows of length 1; of zero embeddings where the batch says structure is not valid."""
    logit_scale: Tensor | None
    """float32 scalar, exponentiated and bounded."""
    hidden: Tensor
    """[T, D]: the aligned hidden state, not normalised."""


class AlignmentModel(nn.Module):
    """A trunk with a 3Di head (physical level) and projection heads (latent level).

    Args:
        shape: the trunk.
        losses: heads exist only for losses whose weight is positive.
        teacher_width: features of a teacher embedding; may be None when the contrast is off.
    """

    def __init__(self, shape: TrunkShape, losses: LossConfig, teacher_width: int | None = None) -> None:
        super().__init__()
        self.losses = losses
        self.trunk = Encoder(shape)
        if not losses.mlm:
            # A parameter that no loss reaches would stall gradient averaging; the head stays for release.
            self.trunk.lm_head.requires_grad_(False)
            self.trunk.embedding.requires_grad_(True)
        if losses.structure:
            self.threedi_head = ThreediHead(shape.width, len(THREEDI_STATES))
        if losses.contrast:
            assert teacher_width is not None, "the contrast needs the teacher's width"
            projection_width = min(shape.width, losses.projection_width)
            self.sequence_projection = Projection(shape.width, projection_width)
            self.structure_projection = Projection(teacher_width, projection_width)
            self.temperature = Temperature(losses.max_logit_scale)

    def forward(self, batch: Batch) -> Outputs:
        """One pass over the masked sequences for all losses."""
        hidden = self.trunk(batch.packed)
        mlm = self.trunk.lm_logits(hidden.index_select(0, batch.masked_index)) if self.losses.mlm else None
        threedi = sequence = structure = scale = None
        if self.losses.structure or self.losses.contrast:
            rows = residue_rows(hidden, batch.residue_index)
        if self.losses.structure:
            threedi = self.threedi_head(rows)
        if self.losses.contrast:
            assert batch.teacher is not None, "the contrast needs teacher embeddings in the batch"
            sequence = self.sequence_projection(rows)
            structure = self.structure_projection(batch.teacher)
            scale = self.temperature()
        return Outputs(mlm, threedi, sequence, structure, scale, hidden)

    def threedi_logits(self, hidden: Tensor, residue_index: Tensor) -> Tensor:
        """[N, 20] of an aligned hidden state [T, D] and the places of residues in it, for evaluation."""
        return self.threedi_head(residue_rows(hidden, residue_index))


def residue_rows(hidden: Tensor, residue_index: Tensor) -> Tensor:
    """[N, D]: rows of the aligned hidden state at residues, each divided by its Euclidean length."""
    return F.normalize(hidden.index_select(0, residue_index), dim=-1)
