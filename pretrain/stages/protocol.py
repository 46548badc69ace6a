"""What a stage gives the training loop: a model, batches, and losses."""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pretrain.feed import Fed
from pretrain.sampler import Position


class Losses(Protocol):
    """The losses of one pool as (sum, count) terms."""

    def total(self, world_size: int = 1) -> Tensor:
        """Scalar to call backward on: gradients averaged over ranks are those of the pool's loss."""
        ...

    def logged(self) -> dict[str, float]:
        """The pool's figures, equal on every rank; a collective."""
        ...


class Stage(Protocol):
    """One kind of training: `align`, `reference`, `teacher`."""

    model: nn.Module
    """What DeepSpeed wraps; `loss` is given the wrapped one."""
    data_sha256: str
    """Manifest of the shards it reads."""
    pools_per_epoch: int

    def batches(self, position: Position, rank: int, world_size: int) -> Iterator[Fed]:
        """This rank's shares from a position on, without end; a pure function of its arguments and the config."""
        ...

    def to(self, device: torch.device) -> None:
        """Move what is not wrapped (frozen models) to the device."""
        ...

    def loss(self, model: nn.Module, batch: Any, step: int) -> Losses:
        """Forward one share through the wrapped model, in optimizer update `step` (from 1)."""
        ...

    def validate(self, model: nn.Module, rank: int, world_size: int) -> dict[str, float]:
        """Losses of held-out chains, the same on every rank; empty without validation. A collective."""
        ...
