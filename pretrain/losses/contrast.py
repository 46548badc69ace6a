"""Residue-wise InfoNCE between two sets of projections, in memory linear in residues.

Rows are this rank's residues, columns every rank's. One tile of the N x N similarity matrix exists at a time and serves
both directions; backward computes the tiles again. Similarities of unit vectors are bounded by the scale, so the sums
of exponentials need no running maximum.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretrain.distributed import Group, Rows, all_sum, gather_rows, gather_values, rows_of

FLOAT32_SCALE = 64.0
"""exp(+-this) times 2^20 residues fits float32 with room; tiles of a larger scale are exponentiated in float64."""
KEPT_BYTES = 2**26
"""A pool whose tiles fit in this keeps them for backward instead of computing them again, a quarter of the work."""
DENSE_RUNS = 64
"""Above this many runs of equal groups in a tile a full comparison is cheaper than writing block by block."""


@dataclass(frozen=True)
class ContrastLosses:
    """Per residue of this rank [n]; the gradient of any weighting of both directions is exact across ranks."""

    sequence_to_structure: Tensor
    structure_to_sequence: Tensor
    hit: Tensor
    """bool [n]: the positive is more similar than every negative, sequence to structure."""


def contrast_losses(
    sequence: Tensor,
    structure: Tensor,
    scale: Tensor,
    groups: Tensor | None,
    tile: int = 1024,
    group: Group = None,
    rows: Rows | None = None,
) -> ContrastLosses:
    """InfoNCE of every residue against all residues of the pool, both directions.

    With l_ij = scale * sequence_i . structure_j the losses of residue i are logsumexp_j(l_ij) - l_ii and
    logsumexp_j(l_ji) - l_ii, where j runs over i itself and the residues of other groups.

    Args:
        sequence, structure: float [n, P], rows of norm 1; row i of one is the positive of row i of the other.
        scale: positive scalar.
        groups: int64 [n]; residues of one group are not negatives of each other. None: each residue is its own group.
        tile: rows and columns of a tile.
        rows: layout of the pool's rows over the ranks, where it is already known.
    """
    assert sequence.shape == structure.shape, (sequence.shape, structure.shape)
    if rows is None:
        (rows,) = rows_of([len(sequence)], sequence.device, group)
    columns = gather_rows(structure, group, rows)
    exclusion = _Exclusion.of(groups, rows, group)
    forward, backward, hit = _Contrast.apply(sequence, columns, scale, exclusion, tile, group, rows)
    return ContrastLosses(forward, backward, hit)


@dataclass(frozen=True)
class _Exclusion:
    """Which column is no negative of which row."""

    row_ids: Tensor
    column_ids: Tensor
    column_runs: dict[int, list[tuple[int, int]]]
    """Group -> runs [start, stop) of its columns. Residues of a protein lie together, so runs are few."""
    row_runs: list[tuple[int, int, int]]
    """(start, stop, group) of this rank's rows, in order."""

    @classmethod
    def of(cls, groups: Tensor | None, rows: Rows, group: Group) -> "_Exclusion | None":
        if groups is None:
            return None
        column_ids = gather_values(groups, rows, group)
        runs = defaultdict(list)
        for start, stop, name in _runs(column_ids):
            runs[name].append((start, stop))
        return cls(groups, column_ids, dict(runs), _runs(groups))

    def clear(self, tile: Tensor, row: int, column: int) -> None:
        """Set to 0 what is excluded in the tile whose corner is (row, column)."""
        height, width = tile.shape
        touched = [run for run in self.row_runs if run[0] < row + height and run[1] > row]
        blocks = [
            (max(top - row, 0), bottom - row, max(left - column, 0), right - column)
            for top, bottom, name in touched
            for left, right in self.column_runs[name]
            if left < column + width and right > column
        ]
        if len(blocks) > DENSE_RUNS:
            same = self.row_ids[row : row + height, None] == self.column_ids[None, column : column + width]
            tile.masked_fill_(same, 0)
            return
        for top, bottom, left, right in blocks:
            tile[top:bottom, left:right] = 0


def _runs(ids: Tensor) -> list[tuple[int, int, int]]:
    values, lengths = torch.unique_consecutive(ids, return_counts=True)
    stops = lengths.cumsum(0)
    return list(zip((stops - lengths).tolist(), stops.tolist(), values.tolist(), strict=True))


@dataclass(frozen=True)
class _Tiles:
    """The matrix exp(l_ij) without positives and excluded pairs, tile by tile."""

    sequence: Tensor
    columns: Tensor
    scale: float
    exclusion: _Exclusion | None
    side: int
    offset: int
    """Column of row 0's positive."""

    @property
    def dtype(self) -> torch.dtype:
        return self.sequence.dtype if self.scale <= FLOAT32_SCALE else torch.float64

    @property
    def num_bytes(self) -> int:
        return len(self.sequence) * len(self.columns) * self.dtype.itemsize

    def row_slices(self) -> list[slice]:
        return _slices(len(self.sequence), self.side)

    def exponentials(self, keep: bool) -> Iterator[tuple[slice, slice, Tensor]]:
        """Rows, columns and exp(l) of each tile; valid until the next one unless `keep`."""
        scratch = None if keep else self.sequence.new_empty(self.side * self.side)
        for rows in self.row_slices():
            scaled = self.sequence[rows] * self.scale
            for columns in _slices(len(self.columns), self.side):
                right = self.columns[columns].T
                out = None if keep else _shaped(scratch, len(scaled), right.shape[1])
                tile = torch.mm(scaled, right, out=out) if out is not None else torch.mm(scaled, right)
                tile = tile.to(self.dtype).exp_()
                self._clear(tile, rows.start, columns.start)
                yield rows, columns, tile

    def _clear(self, tile: Tensor, row: int, column: int) -> None:
        if self.exclusion is not None:
            self.exclusion.clear(tile, row, column)
            return
        shift = row + self.offset - column
        if -tile.shape[0] < shift < tile.shape[1]:
            tile.diagonal(shift).zero_()


def _slices(count: int, side: int) -> list[slice]:
    return [slice(start, min(start + side, count)) for start in range(0, count, side)]


def _shaped(buffer: Tensor, height: int, width: int) -> Tensor:
    return buffer[: height * width].view(height, width)


class _Contrast(torch.autograd.Function):
    @staticmethod
    def forward(ctx, sequence, columns, scale, exclusion, side, group, rows):
        device = sequence.device.type
        tiles = _Tiles(sequence, columns, float(scale), exclusion, side, rows.local.start)
        row_sum = sequence.new_zeros(len(sequence), dtype=torch.float64)
        column_sum = sequence.new_zeros(len(columns), dtype=torch.float64)
        best, positive = torch.zeros_like(row_sum), torch.empty_like(row_sum)
        keep = any(ctx.needs_input_grad) and tiles.num_bytes <= KEPT_BYTES
        kept = []
        with torch.autocast(device, enabled=False):
            for at in tiles.row_slices():
                positive[at] = tiles.scale * (sequence[at] * columns[rows.local][at]).sum(1, dtype=torch.float64)
            for at, across, tile in tiles.exponentials(keep):
                row_sum[at] += tile.sum(1)
                column_sum[across] += tile.sum(0)
                best[at] = torch.maximum(best[at], tile.amax(1).double())
                if keep:
                    kept.append((at, across, tile))
        own = positive.exp()
        row_sum += own
        column_sum[rows.local] += own
        column_sum = all_sum(column_sum, group)
        ctx.save_for_backward(sequence, columns, scale, row_sum, column_sum, own)
        ctx.tiles, ctx.kept, ctx.group, ctx.rows = (exclusion, side), kept, group, rows
        hit = own > best
        ctx.mark_non_differentiable(hit)
        losses = [(total.log() - positive).to(sequence.dtype) for total in (row_sum, column_sum[rows.local])]
        return *losses, hit

    @staticmethod
    @once_differentiable
    def backward(ctx, row_weight, column_weight, _):
        sequence, columns, scale, row_sum, column_sum, own = ctx.saved_tensors
        exclusion, side = ctx.tiles
        local = ctx.rows.local
        tiles = _Tiles(sequence, columns, float(scale), exclusion, side, local.start)
        row_weight = row_weight.double()
        column_weight = gather_values(column_weight.double(), ctx.rows, ctx.group)
        # Weights near 1 keep weight * exp(l) / sum away from float32's underflow; undone at the end.
        unit = max([float(w.abs().max()) for w in (row_weight, column_weight) if len(w)], default=0.0) or 1.0
        row_weight, column_weight = row_weight / unit, column_weight / unit
        by_row, by_column = row_weight / row_sum, column_weight / column_sum
        # dl_ii: both softmaxes' probability of the positive, minus one each.
        diagonal = own * (by_row + by_column[local]) - row_weight - column_weight[local]
        with torch.autocast(sequence.device.type, enabled=False):
            gradients = _matrix_gradients(tiles, ctx.kept, by_row, by_column, diagonal)
        d_sequence, d_columns, d_scale = gradients
        factor = unit * tiles.scale
        d_scale = (d_scale * unit).to(scale.dtype).reshape(scale.shape)
        return d_sequence.mul_(factor), d_columns.mul_(factor), d_scale, None, None, None, None


def _matrix_gradients(tiles: _Tiles, kept: list, by_row: Tensor, by_column: Tensor, diagonal: Tensor) -> tuple:
    """With dl_ij = exp(l_ij) * (by_row_i + by_column_j): dl @ columns, dl^T @ sequence, sum of dl * l / scale."""
    sequence, columns = tiles.sequence, tiles.columns
    d_sequence, d_columns = torch.zeros_like(sequence), torch.zeros_like(columns)
    by_row, by_column = by_row.to(tiles.dtype), by_column.to(tiles.dtype)
    side = min(tiles.side, max(len(sequence), 1)), min(tiles.side, max(len(columns), 1))
    scratch = sequence.new_empty(math.prod(side), dtype=tiles.dtype)
    for at, across, tile in kept or tiles.exponentials(keep=False):
        weighted = torch.add(by_row[at, None], by_column[None, across], out=_shaped(scratch, *tile.shape))
        weighted = weighted.mul_(tile).to(sequence.dtype)
        d_sequence[at].addmm_(weighted, columns[across])
        d_columns[across].addmm_(weighted.T, sequence[at])
    d_scale = sequence.new_zeros((), dtype=torch.float64)
    for at in tiles.row_slices():
        positive = slice(at.start + tiles.offset, at.stop + tiles.offset)
        own = diagonal[at, None].to(sequence.dtype)
        d_sequence[at] += own * columns[positive]
        d_columns[positive] += own * sequence[at]
        d_scale += (d_sequence[at] * sequence[at]).sum(dtype=torch.float64)
    return d_sequence, d_columns, d_scale
