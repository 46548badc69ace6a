"""Collectives over the rows of a pool, uneven over the ranks; without a process group the world is one rank."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

Group = dist.ProcessGroup | None


def is_distributed(group: Group = None) -> bool:
    """Whether there is more than one rank to talk to."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


def world_size(group: Group = None) -> int:
    """Number of ranks; 1 without an initialised process group."""
    return dist.get_world_size(group) if is_distributed(group) else 1


def rank(group: Group = None) -> int:
    """This process's number in the group; 0 without an initialised process group."""
    return dist.get_rank(group) if is_distributed(group) else 0


@dataclass(frozen=True)
class Rows:
    """How the rows of a pool lie over the ranks, in rank order."""

    sizes: tuple[int, ...]
    """Rows of every rank."""
    rank: int

    @classmethod
    def alone(cls, count: int) -> "Rows":
        """Rows that stand for themselves, whatever the world: a pool of this rank's own, without any collective."""
        return cls((count,), 0)

    @property
    def shared(self) -> bool:
        """Whether other ranks have a part in the pool."""
        return len(self.sizes) > 1

    @property
    def total(self) -> int:
        """Rows of the whole pool."""
        return sum(self.sizes)

    @property
    def local(self) -> slice:
        """Where this rank's rows stand in the pool."""
        start = sum(self.sizes[: self.rank])
        return slice(start, start + self.sizes[self.rank])


def rows_of(counts: list[int], device: torch.device, group: Group = None) -> list[Rows]:
    """The layout of several kinds of rows, of which this rank holds `counts`, from one collective."""
    if not is_distributed(group):
        return [Rows.alone(count) for count in counts]
    mine = torch.tensor(counts, dtype=torch.int64, device=device)
    every = [torch.empty_like(mine) for _ in range(world_size(group))]
    dist.all_gather(every, mine, group=group)
    table = torch.stack(every).T.tolist()
    return [Rows(tuple(sizes), rank(group)) for sizes in table]


def all_sum(tensor: Tensor, group: Group = None) -> Tensor:
    """The sum over ranks as a new tensor, without gradient."""
    result = tensor.detach().clone()
    if is_distributed(group):
        dist.all_reduce(result, group=group)
    return result


def gather_values(tensor: Tensor, rows: Rows, group: Group = None) -> Tensor:
    """All ranks' rows in rank order, without gradient; [n, ...] becomes [rows.total, ...]."""
    tensor = tensor.detach()
    if not rows.shared:
        return tensor
    # Gloo gathers equal shapes only: pad to the longest rank.
    longest = max(rows.sizes)
    padded = tensor.new_zeros(longest, *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in rows.sizes]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:size] for part, size in zip(parts, rows.sizes, strict=True)])


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: Tensor, rows: Rows, group: Group) -> Tensor:
        ctx.rows, ctx.group = rows, group
        return gather_values(tensor, rows, group)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        # Every rank's loss may use every row: its owner needs the sum of all ranks' gradients.
        return all_sum(gradient.contiguous(), ctx.group)[ctx.rows.local], None, None


def gather_rows(tensor: Tensor, group: Group = None, rows: Rows | None = None) -> Tensor:
    """All ranks' rows in rank order, [n, ...] -> [sum of n, ...]; the gradient returns to the rows' owners, summed.

    A collective in both directions: every rank must call it, and run backward through it, even with 0 rows.
    `rows` saves the exchange of sizes where it is already known.
    """
    if rows is None:
        (rows,) = rows_of([len(tensor)], tensor.device, group)
    if not rows.shared:
        return tensor
    return _GatherRows.apply(tensor, rows, group)
