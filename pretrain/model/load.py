"""A trained model from its checkpoint."""

from pathlib import Path

import torch

from configs.errors import UserError
from pretrain.checkpoints import Checkpoint, open_checkpoint
from pretrain.model.alignment import AlignmentModel
from pretrain.model.shape import trunk_shape
from pretrain.model.weights import assign


def load_model(checkpoint: Checkpoint | Path | str) -> AlignmentModel:
    """The aligned model of a checkpoint (or of a run folder's last good one), on the CPU in eval mode.

    Raises:
        UserError: the checkpoint holds no trunk (stage `teacher`), or does not fit its own config.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = open_checkpoint(checkpoint)
    config, weights, where = checkpoint.config, checkpoint.weights(), f"checkpoint {checkpoint.path}"
    if config.trunk is None:
        raise UserError(
            f"{where}: stage {config.stage!r} trains no trunk; name a checkpoint of stage reference or align"
        )
    projection = weights.get("structure_projection.linear.weight")
    if config.losses.contrast and projection is None:
        raise UserError(f"{where}: config trains the contrast, but structure_projection.linear.weight is missing")
    # The random start is overwritten; drawing it must not move the caller's random state.
    with torch.random.fork_rng(devices=[]):
        teacher_width = None if projection is None else projection.shape[1]
        model = AlignmentModel(trunk_shape(config.trunk), config.losses, teacher_width)
    assign(model, weights, where)
    return model.eval()
