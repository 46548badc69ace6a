"""The model that is trained: a trunk and the heads of the losses that are switched on."""

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from configs.losses import LossConfig
from data_pipeline.structure.chain import THREEDI_STATES
from pretrain.batch import Batch
from pretrain.model.encoder import Encoder
from pretrain.model.heads import ProjectionPair, ThreediHead
from pretrain.model.shape import TrunkShape


class Projected(NamedTuple):
    """Both sides of the contrast with one teacher."""

    sequence: Tensor
    """float32 [N, P], rows of length 1."""
    structure: Tensor
    """float32 [N, P], rows of length 1; of zero embeddings where the batch says structure is not valid."""
    logit_scale: Tensor
    """float32 scalar, exponentiated and bounded."""


class Outputs(NamedTuple):
    """What one forward gives the losses; None where a loss is switched off.

    Named tuples, because DeepSpeed's hooks look for tensors in tuples but not in dataclasses.
    """

    mlm_logits: Tensor | None
    """[M, V] at the masked tokens."""
    threedi_logits: Tensor | None
    """[N, 20]."""
    projections: tuple[Projected, ...]
    """One per teacher; empty without contrast."""
    hidden: Tensor
    """[T, D]: the aligned hidden state, not normalised."""


class AlignmentModel(nn.Module):
    """A trunk with a 3Di head (physical level) and, for each teacher, projection heads (latent level).

    Args:
        shape: the trunk.
        losses: heads exist only for losses whose weight is positive.
        teacher_width: features of the teacher's embeddings, of several teachers in their order; None: no contrast.
    """

    def __init__(self, shape: TrunkShape, losses: LossConfig, teacher_width: int | Sequence[int] | None = None) -> None:
        super().__init__()
        self.losses = losses
        widths = (teacher_width,) if isinstance(teacher_width, int) else tuple(teacher_width or ())
        self.teacher_widths = widths if losses.contrast else ()
        self.trunk = Encoder(shape)
        if not losses.mlm:
            # A parameter that no loss reaches would stall gradient averaging; the head stays for release.
            self.trunk.lm_head.requires_grad_(False)
            self.trunk.embedding.requires_grad_(True)
        if losses.structure:
            self.threedi_head = ThreediHead(shape.width, len(THREEDI_STATES))
        if losses.contrast:
            assert self.teacher_widths, "the contrast needs a teacher's width"
            first, *more = (ProjectionPair(shape.width, width, losses) for width in self.teacher_widths)
            # The first pair's names are those that every checkpoint of one teacher has.
            self.sequence_projection, self.structure_projection = first.sequence_projection, first.structure_projection
            self.temperature = first.temperature
            self.more_projections = nn.ModuleList(more)

    def forward(self, batch: Batch) -> Outputs:
        """One pass over the masked sequences for all losses."""
        hidden = self.trunk(batch.packed)
        mlm = self.trunk.lm_logits(hidden.index_select(0, batch.masked_index)) if self.losses.mlm else None
        if not self.losses.structure and not self.losses.contrast:
            return Outputs(mlm, None, (), hidden)
        rows = residue_rows(hidden, batch.residue_index)
        threedi = self.threedi_head(rows) if self.losses.structure else None
        projections = self._projections(rows, batch.teacher) if self.losses.contrast else ()
        return Outputs(mlm, threedi, projections, hidden)

    def _projections(self, rows: Tensor, teacher: Tensor | None) -> tuple[Projected, ...]:
        assert teacher is not None, "the contrast needs teacher embeddings in the batch"
        assert teacher.shape[1] == sum(self.teacher_widths), (teacher.shape, self.teacher_widths)
        parts = teacher.split(self.teacher_widths, dim=1)
        # This module has the first teacher's heads under the names that a pair gives them.
        pairs = zip((self, *self.more_projections), parts, strict=True)
        return tuple(
            Projected(pair.sequence_projection(rows), pair.structure_projection(part), pair.temperature())
            for pair, part in pairs
        )

    def threedi_logits(self, hidden: Tensor, residue_index: Tensor) -> Tensor:
        """[N, 20] of an aligned hidden state [T, D] and the places of residues in it, for evaluation."""
        return self.threedi_head(residue_rows(hidden, residue_index))


def residue_rows(hidden: Tensor, residue_index: Tensor) -> Tensor:
    """[N, D]: rows of the aligned hidden state at residues, each divided by its Euclidean length."""
    return F.normalize(hidden.index_select(0, residue_index), dim=-1)
