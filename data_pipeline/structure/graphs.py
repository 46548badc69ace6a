"""Residue graphs over CA atoms in compressed sparse rows.

Graphs are pairs `(indptr, index)`: the neighbours of residue i are `index[indptr[i]:indptr[i + 1]]`. `indptr` is
uint32 [N + 1]; `index` is uint16 [E] up to 65,535 residues, uint32 beyond. Residues whose CA is missing (NaN) have no
edges, and neighbours nearer along the sequence than `min_separation` are left out.

Distances decide exactly as computed in float64, (dx^2 + dy^2 + dz^2) <= radius^2; equal ones rank by residue number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from data_pipeline.structure.distances import DistanceBlocks

CompressedRows = tuple[np.ndarray, np.ndarray]
_KNN_REACH = 6.0
"""Angstrom, times the cube root of k: within it most residues of folded chains have k neighbours 5 or more apart along
the sequence. The others are compared with all residues."""
_VALUES_AT_ONCE = 100_000
"""Distances held at a time while residues are compared with all, few enough for the processor's cache."""
_SLACK = 1e-9
"""Relative: how far beyond the radius a pair is still measured exactly."""


@dataclass(frozen=True)
class GraphRequest:
    """One graph to compute."""

    kind: Literal["radius", "knn"]
    radius: float | None = None
    """Angstrom, of kind `radius`."""
    neighbours: int | None = None
    """Of kind `knn`."""
    min_separation: int = 1
    """Smallest |i - j| along the sequence, at least 1."""

    def __post_init__(self) -> None:
        size = self.radius if self.kind == "radius" else self.neighbours
        if self.kind not in ("radius", "knn") or size is None or size <= 0 or self.min_separation < 1:
            raise ValueError(
                f"graph request {self}: wants kind 'radius' with radius > 0 or kind 'knn' with neighbours > 0, "
                "and min_separation >= 1"
            )


def radius_graph(ca: np.ndarray, radius: float, min_separation: int = 1) -> CompressedRows:
    """Pairs of residues at most `radius` apart (Angstrom), both directions, neighbours in rising order.

    Args:
        ca: float [N, 3], Angstrom.
    """
    return residue_graphs(ca, [GraphRequest("radius", radius=radius, min_separation=min_separation)])[0]


def knn_graph(ca: np.ndarray, k: int, min_separation: int = 1) -> CompressedRows:
    """The k nearest residues of each residue (fewer where the chain has fewer), nearest first.

    Args:
        ca: float [N, 3], Angstrom.
    """
    return residue_graphs(ca, [GraphRequest("knn", neighbours=k, min_separation=min_separation)])[0]


def residue_graphs(ca: np.ndarray, requests: Sequence[GraphRequest]) -> list[CompressedRows]:
    """The requested graphs of one chain, in the order of the requests; they share one search for near pairs.

    Args:
        ca: float [N, 3], Angstrom, NaN where missing.
    """
    points = np.ascontiguousarray(np.asarray(ca, dtype=np.float64).T)
    # A sum is finite only where every term is.
    residues = np.flatnonzero(np.isfinite(points[0] + points[1] + points[2]))
    if len(residues) < 2 or not requests:
        empty = np.zeros(len(ca), dtype=np.int64), np.zeros(0, dtype=np.int64)
        return [_compressed(*empty) for _ in requests]
    if len(residues) < len(ca):
        points = points[:, residues]
    radius = max((request.radius or 0.0 for request in requests if request.kind == "radius"), default=0.0)
    number = max((_number_nearest(request) for request in requests if request.kind == "knn"), default=0)
    blocks = DistanceBlocks(points, max(radius, _KNN_REACH * number ** (1 / 3)), is_exact=False)
    pairs = _search(points, residues, blocks, radius, number)
    return [
        _within(pairs, request, len(ca)) if request.kind == "radius" else _ranked(pairs, request, len(ca))
        for request in requests
    ]


def sequential_edges(num_residues: int, offset: int) -> np.ndarray:
    """int64 [2, E]: source and target = source + offset of every pair of residues inside the chain, rising.

    Zhang et al. 2023 (GearNet) have one such relation for each offset of -2..2, residues themselves (0) included.
    """
    source = np.arange(max(-offset, 0), min(num_residues, num_residues - offset))
    return np.stack([source, source + offset])


def _number_nearest(request: GraphRequest) -> int:
    """How many nearest points of a residue surely include its k nearest neighbours: itself and at most
    2 * (min_separation - 1) others are too near along the sequence."""
    assert request.neighbours is not None
    return request.neighbours + 2 * request.min_separation - 1


class _Pairs(NamedTuple):
    """Ordered pairs (i, j) of residues, sorted by i, then j."""

    i: np.ndarray
    """int64 [E]."""
    j: np.ndarray
    """int64 [E]."""
    squared: np.ndarray
    """float64 [E]: squared distance."""
    separation: np.ndarray
    """int64 [E]: |i - j|."""
    is_nearest: np.ndarray
    """bool [E]: j may be one of the nearest of i; false only where others surely are nearer."""


def _search(points: np.ndarray, residues: np.ndarray, blocks: DistanceBlocks, radius: float, number: int) -> _Pairs:
    """All pairs at most `radius` apart, and each residue's with its `number` nearest, itself included.

    Args:
        points: float64 [3, P].
        residues: int64 [P]: residue of each point.
    """
    keys, squared, counts = blocks.near()
    slack = 2 * blocks.error
    limits = _limits(squared, counts, number)
    # Nearer points may lie beyond reach: these are compared with all instead.
    few = np.flatnonzero(limits > blocks.reach**2 - slack)
    thresholds = np.maximum(limits, radius**2)
    thresholds[few] = -np.inf
    kept = np.flatnonzero(squared <= (thresholds + slack).repeat(counts))
    found = [keys.take(kept)]
    step = max(_VALUES_AT_ONCE // blocks.num_points, 1)
    for part in (few[begin : begin + step] for begin in range(0, len(few), step)):
        squared = blocks.to_all(part)
        is_enough = number < blocks.num_points
        limits[part] = np.partition(squared, number - 1, axis=1)[:, number - 1] if is_enough else np.inf
        place = np.flatnonzero(squared <= (np.maximum(limits[part], radius**2) + slack)[:, None])
        row = place // blocks.num_points
        found.append(place + (part.take(row) - row) * blocks.num_points)
    if blocks.order is not None:
        limits[blocks.order] = limits.copy()
    return _measured(points, residues, blocks.given(np.concatenate(found)), limits + slack)


def _limits(squared: np.ndarray, counts: np.ndarray, number: int) -> np.ndarray:
    """float64 [P]: the `number`-th lowest distance of each row, inf where it has fewer; -inf for number 0."""
    width = int(counts.max())
    if number == 0 or width < number:
        return np.full(len(counts), np.inf if number else -np.inf)
    table = np.full((len(counts), width), np.inf, dtype=squared.dtype)
    table.ravel()[_places(counts, width)] = squared
    table.partition(number - 1, axis=1)
    return table[:, number - 1].copy()


def _places(counts: np.ndarray, width: int) -> np.ndarray:
    """int64 [E]: where the entries of rows of these lengths lie in a table whose rows all have the same width."""
    skipped = np.arange(len(counts)) * width - (np.cumsum(counts) - counts)
    return np.arange(counts.sum()) + skipped.repeat(counts)


def _measured(points: np.ndarray, residues: np.ndarray, keys: np.ndarray, limits: np.ndarray) -> _Pairs:
    """Pairs of the rising keys i * P + j, with their distances by the one formula that decides."""
    i = keys // len(residues)
    j = keys - i * len(residues)
    squared = np.zeros(len(keys))
    for axis in points:
        difference = axis.take(i) - axis.take(j)
        difference *= difference
        squared += difference
    is_nearest = squared <= limits.take(i)
    if residues[-1] >= len(residues):
        i, j = residues.take(i), residues.take(j)
    return _Pairs(i, j, squared, np.abs(i - j), is_nearest)


def _within(pairs: _Pairs, request: GraphRequest, num_residues: int) -> CompressedRows:
    assert request.radius is not None
    chosen = np.flatnonzero((pairs.squared <= request.radius**2) & (pairs.separation >= request.min_separation))
    return _compressed(np.bincount(pairs.i.take(chosen), minlength=num_residues), pairs.j.take(chosen))


def _ranked(pairs: _Pairs, request: GraphRequest, num_residues: int) -> CompressedRows:
    """The k nearest of each residue's pairs, nearest first, the lower number first among equally near ones."""
    chosen = np.flatnonzero(pairs.is_nearest & (pairs.separation >= request.min_separation))
    counts = np.bincount(pairs.i.take(chosen), minlength=num_residues)
    width = max(int(counts.max()), 1)
    # Rows are filled from the left, so that a stable sort keeps equally near ones in their order.
    place = _places(counts, width)
    table = np.full((num_residues, width), np.inf)
    table.ravel()[place] = pairs.squared.take(chosen)
    neighbour = np.empty(num_residues * width, dtype=np.int64)
    neighbour[place] = pairs.j.take(chosen)
    order = table.argsort(axis=1, kind="stable")[:, : request.neighbours]
    order += np.arange(num_residues)[:, None] * width
    kept = np.minimum(counts, request.neighbours)
    return _compressed(kept, neighbour.take(order[np.arange(order.shape[1]) < kept[:, None]]))


def _compressed(counts: np.ndarray, neighbour: np.ndarray) -> CompressedRows:
    """Compressed rows of edges that are sorted by residue."""
    indptr = np.zeros(len(counts) + 1, dtype=np.uint32)
    np.cumsum(counts, out=indptr[1:])
    return indptr, neighbour.astype(np.uint16 if len(counts) <= 0xFFFF else np.uint32)
