"""Squared distances among the points of one chain, a block of a matrix at a time.

A block pairs neighbouring points with all points that can lie within reach of them. In long chains the points are first
sorted along the chain's longest axis, so that the points within reach are a slice, and the cost of a residue hardly
grows with the length of its chain. Blocks fit the processor's cache: nearest neighbours in real chains take half the
time of a k-d tree's queries.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

_ROWS = 96
"""Points of a block in a long chain."""
_MAX_DENSE = 500
"""Points up to which each is compared with all."""
_TERMS = 5
_ROUNDINGS = 32
"""Bound of a distance's error in roundings of the largest squared distance from the centre: those of coordinates (8),
of squares (2), and of sums of five terms of up to four times that size (20)."""
_MAX_SINGLE = 1e5
"""Largest squared distance from the centre at which float32 serves: rounding then stays below 0.4."""
_MARGIN = 1e-6
"""Relative: more than rounding takes off the distance along one axis."""
_MAX_VALUES = 50_000
"""Values of one matrix product: BLAS then takes one thread, since a second would cost more than it brings."""


class Block(NamedTuple):
    """Squared distances of the points `[start, stop)` to the points `[first, first + width)`."""

    start: int
    stop: int
    first: int
    squared: np.ndarray
    """float64 or float32 [stop - start, width], valid until the next block is asked for; may be written to."""


class DistanceBlocks:
    """The blocks of one chain's points, and the order in which blocks number them."""

    def __init__(self, points: np.ndarray, reach: float, is_exact: bool = True) -> None:
        """
        Args:
            points: float64 [3, P], P >= 1, finite.
            reach: same unit as `points`; every pair at most this far apart is in a block.
            is_exact: values are float64. Otherwise they are float32, which is faster, unless `error` would be large.
        """
        self.num_points = num_points = points.shape[1]
        points = points - points.sum(axis=1, keepdims=True) / num_points
        self.reach = reach
        rows = _MAX_VALUES // num_points if num_points <= _MAX_DENSE else _ROWS
        self.order: np.ndarray | None = None
        """int64 [P]: number among `points` of the blocks' points; None where the numbers are the same."""
        starts = range(0, num_points, rows)
        stops = [min(start + rows, num_points) for start in starts]
        first, last = [0] * len(starts), [num_points] * len(starts)
        if num_points > _MAX_DENSE:
            longest = points[np.ptp(points, axis=1).argmax()]
            self.order = longest.argsort()
            points, along = points[:, self.order], longest[self.order]
            margin = reach * (1 + _MARGIN)
            first = along.searchsorted(along[starts] - margin).tolist()
            last = along.searchsorted(along[np.array(stops) - 1] + margin).tolist()
        self._bounds = list(zip(starts, stops, first, last, strict=True))
        squares = np.einsum("ij,ij->j", points, points)
        largest = float(squares.max())
        dtype = np.float64 if is_exact or largest > _MAX_SINGLE else np.float32
        self.error = _ROUNDINGS * float(np.finfo(dtype).eps) * largest
        """Upper bound of the rounding error of a block's values."""
        # |a - b|^2 = -2 a.b + |a|^2 + |b|^2 as one matrix product.
        self._left = np.empty((num_points, _TERMS), dtype=dtype)
        self._left[:, :3] = -2.0 * points.T
        self._left[:, 3], self._left[:, 4] = squares, 1.0
        self._right = np.empty((_TERMS, num_points), dtype=dtype)
        self._right[:3] = points
        self._right[3], self._right[4] = 1.0, squares

    def to_all(self, rows: np.ndarray) -> np.ndarray:
        """float64 or float32 [M, P]: squared distances of some points (int64 [M]) to all, numbered as in blocks."""
        return self._left[rows] @ self._right

    def near(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The pairs (i, j) of points within reach (give or take `error`), each point with itself included.

        Returns:
            int64 [E], rising: i * P + j, numbered as in blocks; float64 or float32 [E]: squared distances; int64 [P]:
            number of pairs of each i.
        """
        limit = self.reach**2 + self.error
        places, values, bounds, shifts = [], [], [], []
        for start, stop, first, squared in self:
            width = squared.shape[1]
            place = np.flatnonzero(squared <= limit)
            places.append(place)
            values.append(squared.ravel().take(place))
            rows = np.arange(stop - start + 1)
            ends = place.searchsorted(rows * width)
            bounds.append(ends[1:] - ends[:-1])
            shifts.append(rows[:-1] * (self.num_points - width) + (start * self.num_points + first))
        counts = np.concatenate(bounds)
        keys = np.concatenate(places)
        keys += np.concatenate(shifts).repeat(counts)
        return keys, np.concatenate(values), counts

    def given(self, keys: np.ndarray) -> np.ndarray:
        """int64 [E], rising: keys i * P + j with points numbered as they were given, of keys as numbered in blocks."""
        if self.order is not None:
            i = keys // self.num_points
            keys = self.order.take(i) * self.num_points + self.order.take(keys - i * self.num_points)
        return np.sort(keys)

    def __iter__(self) -> Iterator[Block]:
        most = max((stop - start) * (last - first) for start, stop, first, last in self._bounds)
        space = np.empty(most, dtype=self._left.dtype)
        for start, stop, begin, end in self._bounds:
            squared = space[: (stop - start) * (end - begin)].reshape(stop - start, end - begin)
            rows = max(_MAX_VALUES // (end - begin), 1)
            for row in range(start, stop, rows):
                np.matmul(
                    self._left[row : min(row + rows, stop)],
                    self._right[:, begin:end],
                    out=squared[row - start : row - start + rows],
                )
            yield Block(start, stop, begin, squared)
