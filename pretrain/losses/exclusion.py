"""Which residues of a pool are no negatives of each other: those of homologous chains, or of a residue's own chain."""

from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.distributed import Group, Rows, gather_values, rows_of

DENSE_BLOCKS = 64
"""Above this many blocks in a tile a full comparison is cheaper than writing block by block."""


@dataclass(frozen=True)
class Exclude:
    """What is excluded, over this rank's n residues.

    A chain is a run of equal numbers: the same protein met again in a pool is another chain of its cluster.
    """

    chain: Tensor
    """int64 [n]: number of the chain in the rank's share; neighbours differ where a chain ends."""
    cluster: Tensor
    """int64 [n]: sequence cluster of the chain."""
    same_cluster: bool
    """Residues of other chains of the same cluster are no negatives."""
    own_chain: bool
    """The other residues of the same chain are no negatives."""


class Exclusion:
    """The excluded pairs of a rank's rows with the pool's columns, written into tiles block by block.

    A collective: every rank of the pool must build it. Nothing of size rows x columns is ever made: residues of a chain
    lie together, so a pair of chains is one block.
    """

    def __init__(self, exclude: Exclude, rows: Rows, group: Group = None) -> None:
        self._same_cluster, self._own_chain = exclude.same_cluster, exclude.own_chain
        mine = _runs(exclude)
        of_runs = rows_of([len(mine)], mine.device, group)[0] if rows.shared else Rows.alone(len(mine))
        mine[:, :2] += rows.local.start
        every = gather_values(mine, of_runs, group)
        self._first_row = rows.local.start
        self._first_run = of_runs.local.start
        self._column_runs = every.tolist()
        self._row_runs = self._column_runs[of_runs.local]
        self._starts = [start for start, _, _ in self._row_runs]
        self._of_cluster: dict[int, list[int]] = defaultdict(list)
        for number, (_, _, cluster) in enumerate(self._column_runs):
            self._of_cluster[cluster].append(number)
        lengths = every[:, 1] - every[:, 0]
        self._column_run = torch.repeat_interleave(torch.arange(len(every), device=every.device), lengths)
        self._column_cluster = every[self._column_run, 2]

    def clear(self, tile: Tensor, row: int, column: int) -> None:
        """Set to 0 what is excluded in the tile whose corner is this rank's `row` and the pool's `column`."""
        top, left = row + self._first_row, column
        bottom, right = top + tile.shape[0], left + tile.shape[1]
        blocks = self._blocks(top, bottom, left, right)
        if len(blocks) > DENSE_BLOCKS:
            tile.masked_fill_(self._compared(slice(top, bottom), slice(left, right)), 0)
            return
        for y, until_y, x, until_x in blocks:
            tile[max(y - top, 0) : until_y - top, max(x - left, 0) : until_x - left] = 0

    def _blocks(self, top: int, bottom: int, left: int, right: int) -> list[tuple[int, int, int, int]]:
        """(first row, last row, first column, last column), both ends in the pool and exclusive last, that touch."""
        blocks = []
        for at in range(max(bisect_right(self._starts, top) - 1, 0), len(self._row_runs)):
            y, until_y, cluster = self._row_runs[at]
            if y >= bottom:
                break
            own = at + self._first_run
            others = self._of_cluster[cluster] if self._same_cluster else (own,)
            for other in others:
                x, until_x, _ = self._column_runs[other]
                if x < right and until_x > left and (other != own or self._own_chain):
                    blocks.append((y, until_y, x, until_x))
        return blocks

    def _compared(self, rows: slice, columns: slice) -> Tensor:
        """bool [rows, columns]: the pairs of `blocks`, by comparison. This rank's rows are columns of the pool too."""
        same_chain = self._column_run[rows, None] == self._column_run[None, columns]
        if not self._same_cluster:
            return same_chain
        same = self._column_cluster[rows, None] == self._column_cluster[None, columns]
        return same if self._own_chain else same.logical_and_(same_chain.logical_not_())


def _runs(exclude: Exclude) -> Tensor:
    """int64 [R, 3]: start, stop and cluster of every run of a chain."""
    _, lengths = torch.unique_consecutive(exclude.chain, return_counts=True)
    stops = lengths.cumsum(0)
    starts = stops - lengths
    return torch.stack([starts, stops, exclude.cluster[starts]], dim=1)
