"""Losses as (sum, count): divided once, after the reduction over the ranks of a pool."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pretrain.distributed import Group, all_sum


@dataclass(frozen=True)
class LossTerm:
    """One loss over a pool."""

    sum: Tensor
    """Scalar: the sum over this rank's rows; differentiable."""
    count: Tensor
    """Scalar: what the sum is divided by: how many rows of the whole pool count, or a constant. At 0 the loss is 0."""

    def local_mean(self) -> Tensor:
        """This rank's part of the pool's mean: summed over ranks it is the loss."""
        return self.sum / self.count.clamp(min=1)


@dataclass(frozen=True)
class Statistic:
    """Something worth logging, as this rank's sum and count; pooled when logged."""

    sum: Tensor | float
    count: Tensor | float


@dataclass(frozen=True)
class Terms:
    """The losses of one pool on one rank, with their weights and the statistics to log."""

    terms: Mapping[str, LossTerm]
    weights: Mapping[str, float]
    statistics: Mapping[str, Statistic] = field(default_factory=dict)
    group: Group = None

    def __getitem__(self, name: str) -> LossTerm:
        return self.terms[name]

    def total(self, world_size: int = 1) -> Tensor:
        """The scalar to call backward on: sum_k w_k * world_size * sum_k / count_k.

        Where the counts are the pool's, gradients *averaged* over `world_size` ranks are those of the pool's loss
        sum_k w_k * (pool sum_k / pool count_k), whatever share of the pool each rank holds.
        """
        parts = [self.weights[name] * term.local_mean() for name, term in self.terms.items()]
        return world_size * torch.stack(parts).sum()

    def logged(self) -> dict[str, float]:
        """The pool's `loss`, `loss_<name>` and statistics, the same on every rank; a collective that all must call."""
        parts = [term.local_mean() for term in self.terms.values()]
        sums = [each.sum for each in self.statistics.values()]
        counts = [each.count for each in self.statistics.values()]
        device = parts[0].device
        flat = torch.stack([torch.as_tensor(x, device=device).detach().double() for x in parts + sums + counts])
        pooled = iter(all_sum(flat, self.group).tolist())
        losses = {name: next(pooled) for name in self.terms}
        pooled_sums = [next(pooled) for _ in sums]
        # What is absent from a pool gets no figure: 0 would read as a measured value.
        sums = zip(self.statistics, pooled_sums, pooled, strict=True)
        ratios = {name: total / count for name, total, count in sums if count}
        total = sum(self.weights[name] * value for name, value in losses.items())
        named = {f"loss_{name}": value for name, value in losses.items()}
        return {"loss": total, **named, **ratios}
