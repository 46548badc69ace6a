"""A trained model from its checkpoint."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from configs.errors import UserError
from pretrain.checkpoints import Checkpoint, open_checkpoint
from pretrain.model.alignment import AlignmentModel
from pretrain.model.lora import merge_adapters
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
    weights = merge_adapters(weights, config.trunk.lora)
    widths = teacher_widths(weights)
    if config.losses.contrast and not widths:
        raise UserError(f"{where}: config trains the contrast, but {_STRUCTURE_WEIGHT} is missing")
    # The random start is overwritten; drawing it must not move the caller's random state.
    with torch.random.fork_rng(devices=[]):
        model = AlignmentModel(trunk_shape(config.trunk), config.losses, widths)
    assign(model, weights, where)
    return model.eval()


def teacher_widths(weights: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Features of each teacher's embeddings, as a model's weights tell them; empty without contrast."""
    names, number = [_STRUCTURE_WEIGHT], 0
    while (name := f"more_projections.{number}.{_STRUCTURE_WEIGHT}") in weights:
        names.append(name)
        number += 1
    return tuple(weights[name].shape[1] for name in names if name in weights)


_STRUCTURE_WEIGHT = "structure_projection.linear.weight"
