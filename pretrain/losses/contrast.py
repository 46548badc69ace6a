"""Residue-wise InfoNCE between two sets of projections, in memory linear in residues.

Rows are this rank's residues, columns every rank's. One tile of the N x N similarity matrix exists at a time and serves
both directions; backward computes the tiles again. Similarities of unit vectors are bounded by the scale, so the sums
of exponentials need no running maximum.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretrain.distributed import Group, Rows, all_sum, gather_rows, gather_values, rows_of
from pretrain.losses.exclusion import Exclude, Exclusion
from pretrain.model.linear import linear

FLOAT32_SCALE = 64.0
"""exp(+-this) times 2^20 residues fits float32 with room; tiles of a larger scale are exponentiated in float64."""
KEPT_BYTES = 2**26
"""A pool whose tiles fit in this keeps them for backward instead of computing them again, a quarter of the work."""


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
    exclude: Exclude | None = None,
    tile: int = 1024,
    group: Group = None,
    rows: Rows | None = None,
) -> ContrastLosses:
    """InfoNCE of every residue against all residues of the pool, both directions.

    With l_ij = scale * sequence_i . structure_j the losses of residue i are logsumexp_j(l_ij) - l_ii and
    logsumexp_j(l_ji) - l_ii, where j runs over i itself and the residues that `exclude` leaves as its negatives.

    Args:
        sequence, structure: float [n, P], rows of norm 1; row i of one is the positive of row i of the other.
        scale: positive scalar.
        exclude: which residues are no negatives of each other; None: every residue is a negative of every other.
        tile: rows and columns of a tile.
        rows: layout of the pool's rows over the ranks, where it is already known; `Rows.alone`: without other ranks.
    """
    assert sequence.shape == structure.shape, (sequence.shape, structure.shape)
    if rows is None:
        (rows,) = rows_of([len(sequence)], sequence.device, group)
    columns = gather_rows(structure, group, rows)
    exclusion = None if exclude is None else Exclusion(exclude, rows, group)
    forward, backward, hit = _Contrast.apply(sequence, columns, scale, exclusion, tile, group, rows)
    return ContrastLosses(forward, backward, hit)


@dataclass(frozen=True)
class _Tiles:
    """The matrix exp(l_ij) without positives and excluded pairs, tile by tile."""

    sequence: Tensor
    columns: Tensor
    scale: float
    exclusion: Exclusion | None
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

    def exponentials(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Rows, columns and exp(l) of each tile."""
        for rows in self.row_slices():
            scaled = self.sequence[rows] * self.scale
            for columns in _slices(len(self.columns), self.side):
                tile = linear(scaled, self.columns[columns]).to(self.dtype).exp_()
                self._clear(tile, rows.start, columns.start)
                yield rows, columns, tile

    def _clear(self, tile: Tensor, row: int, column: int) -> None:
        if self.exclusion is not None:
            self.exclusion.clear(tile, row, column)
        shift = row + self.offset - column
        if -tile.shape[0] < shift < tile.shape[1]:
            tile.diagonal(shift).zero_()


def _slices(count: int, side: int) -> list[slice]:
    return [slice(start, min(start + side, count)) for start in range(0, count, side)]


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
            for at, across, tile in tiles.exponentials():
                row_sum[at] += tile.sum(1)
                column_sum[across] += tile.sum(0)
                best[at] = torch.maximum(best[at], tile.amax(1).double())
                if keep:
                    kept.append((at, across, tile))
        own = positive.exp()
        row_sum += own
        column_sum[rows.local] += own
        column_sum = all_sum(column_sum, group) if rows.shared else column_sum
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
    for at, across, tile in kept or tiles.exponentials():
        weighted = (by_row[at, None] + by_column[None, across]).mul_(tile).to(sequence.dtype)
        d_sequence[at] += linear(weighted, columns[across].T)
        d_columns[across] += linear(weighted.T, sequence[at].T)
    d_scale = sequence.new_zeros((), dtype=torch.float64)
    for at in tiles.row_slices():
        positive = slice(at.start + tiles.offset, at.stop + tiles.offset)
        own = diagonal[at, None].to(sequence.dtype)
        d_sequence[at] += own * columns[positive]
        d_columns[positive] += own * sequence[at]
        d_scale += (d_sequence[at] * sequence[at]).sum(dtype=torch.float64)
    return d_sequence, d_columns, d_scale
