"""Sums over neighbours, then a linear map: the one operation of relational message passing, in bounded memory.

sum_r W_r sum_{j in N_r(i)} h_j is one product of the [D, R * d] matrix of all W_r with the sums of all R relations. The
sums of a large graph would not fit into memory (a line graph has some 16 rows of 8 * 512 values per residue), so they
are made block by block, and again in backward where they were too large to keep.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch_geometric import EdgeIndex

BLOCK_BYTES = 2**23
"""Of the sums held at a time: on a CPU they stay in its cache between their making and the matrix product."""
KEPT_BYTES = 2**28
"""Sums up to this size are kept for backward instead of being made again."""


@dataclass(frozen=True)
class Adjacency:
    """A matrix of zeros and ones in compressed rows: row `target * R + relation` holds the sources of its edges.

    The graphs of a batch are blocks along the diagonal.
    """

    starts: Tensor
    """int64 [rows + 1]."""
    sources: Tensor
    """int64 [E], in order of rows."""
    column_starts: Tensor
    """int64 [columns + 1]."""
    rows: Tensor
    """int64 [E], in order of columns."""
    row_splits: tuple[int, ...]
    column_splits: tuple[int, ...]
    """First row and first column of every graph, and the ends."""

    @classmethod
    def of(cls, rows: np.ndarray, sources: np.ndarray, row_splits: np.ndarray, column_splits: np.ndarray) -> Self:
        """From the entries (int64 [E] each), sorted by row."""
        edges = EdgeIndex(
            torch.from_numpy(np.stack([rows, sources])),
            sparse_size=(int(row_splits[-1]), int(column_splits[-1])),
            sort_order="row",
        )
        (starts, columns), _ = edges.get_csr()
        (column_starts, entries), _ = edges.get_csc()
        return cls(
            *(tensor.as_subclass(Tensor) for tensor in (starts, columns, column_starts, entries)),
            tuple(row_splits.tolist()),
            tuple(column_splits.tolist()),
        )

    @property
    def num_rows(self) -> int:
        return self.row_splits[-1]

    def to(self, device: torch.device | str) -> Self:
        """The same matrix on `device`."""
        names = ("starts", "sources", "column_starts", "rows")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def sums(self, values: Tensor, first: int, last: int) -> Tensor:
        """Rows first .. last of the product with `values` [columns, d]."""
        return _sums(values, self.starts[first : last + 1], self.sources)

    def transposed_sums(self, values: Tensor, rows: slice, columns: slice) -> Tensor:
        """Some graphs' part of the product of the transpose with `values`, which are those of their rows."""
        return _sums(values, self.column_starts[columns.start : columns.stop + 1], self.rows, rows.start)


def _sums(values: Tensor, starts: Tensor, index: Tensor, first: int = 0) -> Tensor:
    """[len(starts) - 1, d]: sums of the rows index[starts[i]:starts[i + 1]] - first of `values`."""
    begin, end = starts[[0, -1]].tolist()
    if begin == end:
        return values.new_zeros(len(starts) - 1, values.shape[1])
    index = index[begin:end]
    # On CPUs twice as fast as torch's sparse products, which also lack bfloat16.
    return F.embedding_bag(
        index - first if first else index, values, starts - begin, mode="sum", include_last_offset=True
    )


class RelationalLinear(nn.Linear):
    """sum_r W_r sum_{j in N_r(i)} h_j + b, for a weight [D, R * d] whose columns stand in order of relations."""

    def forward(self, sources: Tensor, adjacency: Adjacency) -> Tensor:
        """[columns, d] -> [rows / R, D]."""
        return _SumAndMap.apply(sources.contiguous(), self.weight, adjacency) + self.bias


class _SumAndMap(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: Tensor, weight: Tensor, adjacency: Adjacency) -> Tensor:
        relations = weight.shape[1] // values.shape[1]
        trained = any(ctx.needs_input_grad)
        keep = trained and adjacency.num_rows * values.shape[1] * values.element_size() <= KEPT_BYTES
        result = values.new_empty(adjacency.num_rows // relations, len(weight))
        kept = []
        for rows in _row_blocks(adjacency, values, relations, trained):
            sums = adjacency.sums(values, rows.start, rows.stop).view(-1, weight.shape[1])
            torch.mm(sums, weight.T, out=result[rows.start // relations : rows.stop // relations])
            if keep:
                kept.append(sums)
        ctx.save_for_backward(values, weight)
        ctx.adjacency, ctx.kept = adjacency, kept
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        values, weight = ctx.saved_tensors
        adjacency: Adjacency = ctx.adjacency
        relations = weight.shape[1] // values.shape[1]
        d_values, d_weight = torch.zeros_like(values), torch.zeros_like(weight)
        blocks = _graph_blocks(adjacency, values)
        for number, (rows, columns) in enumerate(blocks):
            sums = ctx.kept[number] if ctx.kept else adjacency.sums(values, rows.start, rows.stop)
            part = gradient[rows.start // relations : rows.stop // relations]
            d_weight.addmm_(part.T, sums.view(-1, weight.shape[1]))
            if ctx.needs_input_grad[0]:
                by_row = torch.mm(part, weight).view(-1, values.shape[1])
                d_values[columns] = adjacency.transposed_sums(by_row, rows, columns)
        return d_values if ctx.needs_input_grad[0] else None, d_weight, None


def _graph_blocks(adjacency: Adjacency, values: Tensor) -> list[tuple[slice, slice]]:
    """Rows and columns of runs of whole graphs, each run as long as its sums stay below BLOCK_BYTES."""
    most = BLOCK_BYTES // max(1, values.shape[1] * values.element_size())
    bounds = [0]
    for number, (start, stop) in enumerate(pairwise(adjacency.row_splits)):
        if stop - adjacency.row_splits[bounds[-1]] > most and start > adjacency.row_splits[bounds[-1]]:
            bounds.append(number)
    bounds.append(len(adjacency.row_splits) - 1)
    return [
        (
            slice(adjacency.row_splits[a], adjacency.row_splits[b]),
            slice(adjacency.column_splits[a], adjacency.column_splits[b]),
        )
        for a, b in pairwise(bounds)
    ]


def _row_blocks(adjacency: Adjacency, values: Tensor, relations: int, trained: bool) -> list[slice]:
    """What forward sums at a time: where it is trained the graphs that backward will, else rows of any graphs."""
    if trained:
        return [rows for rows, _ in _graph_blocks(adjacency, values)]
    step = max(1, BLOCK_BYTES // max(1, relations * values.shape[1] * values.element_size())) * relations
    return [slice(at, min(at + step, adjacency.num_rows)) for at in range(0, adjacency.num_rows, step)]
