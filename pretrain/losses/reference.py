"""The losses of the frozen reference model, over which residue loss selection takes the excess."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from configs.losses import LossConfig
from pretrain.batch import Batch
from pretrain.distributed import Group
from pretrain.losses.residues import projected_losses, structure_losses

if TYPE_CHECKING:
    from pretrain.model.alignment import Outputs


@dataclass(frozen=True)
class ReferenceLosses:
    """Of this rank's residues, in their order; without gradient."""

    structure: Tensor | None
    """float32 [n]: of the residues with a 3Di state (batch.threedi >= 0); None where that loss is off."""
    contrast: tuple[tuple[Tensor, Tensor], ...]
    """Per teacher float32 [m], of the residues with batch.structure_valid: sequence to structure, structure to
    sequence; empty where that loss is off."""


@torch.no_grad()
def online_reference(outputs: "Outputs", batch: Batch, config: LossConfig, group: Group = None) -> ReferenceLosses:
    """What the reference model loses on the same masked batch, against the same negatives as the trained model.

    A collective, where the contrast is on: every rank of the pool must call it.

    Args:
        outputs: of the reference model; in any precision.
        config: of the run that is trained, so that both see the same negatives.
    """
    structure = structure_losses(outputs.threedi_logits, batch) if config.structure else None
    contrast = []
    for projected in outputs.projections if config.contrast else ():
        found = projected_losses(projected, batch, config, group)
        contrast.append((found.sequence_to_structure, found.structure_to_sequence))
    return ReferenceLosses(structure, tuple(contrast))
