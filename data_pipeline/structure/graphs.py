"""Residue graphs over CA atoms in compressed sparse rows.

Both functions return `(indptr, index)`: the neighbours of residue i are `index[indptr[i]:indptr[i + 1]]`. `indptr` is
uint32 [N + 1]; `index` is uint16 [E] up to 65,535 residues, uint32 beyond. Residues whose CA is missing (NaN) have no
edges, and neighbours nearer along the sequence than `min_separation` are left out.
"""

import numpy as np
from scipy.spatial import cKDTree


def radius_graph(ca: np.ndarray, radius: float, min_separation: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of residues at most `radius` apart (Angstrom), both directions, neighbours in rising order.

    Args:
        ca: float [N, 3], Angstrom.
    """
    rows = np.flatnonzero(np.isfinite(ca).all(axis=1))
    if len(rows) < 2:
        return _compressed(np.zeros(0, np.int64), np.zeros(0, np.int64), len(ca))
    pairs = rows[cKDTree(ca[rows]).query_pairs(radius, output_type="ndarray")]
    pairs = pairs[np.abs(pairs[:, 0] - pairs[:, 1]) >= min_separation]
    residue, neighbour = np.concatenate([pairs, pairs[:, ::-1]]).T
    order = np.lexsort((neighbour, residue))
    return _compressed(residue[order], neighbour[order], len(ca))


def knn_graph(ca: np.ndarray, k: int, min_separation: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest residues of each residue (fewer where the chain has fewer), nearest first.

    Args:
        ca: float [N, 3], Angstrom.
    """
    rows = np.flatnonzero(np.isfinite(ca).all(axis=1))
    if len(rows) < 2:
        return _compressed(np.zeros(0, np.int64), np.zeros(0, np.int64), len(ca))
    # Within min_separation lie at most 2 * min_separation - 1 residues (itself among them): k others always remain.
    wanted = min(len(rows), k + 2 * min_separation - 1)
    distance, index = cKDTree(ca[rows]).query(ca[rows], k=wanted)
    residue = np.repeat(rows, wanted)
    neighbour, distance = rows[index.ravel()], distance.ravel()
    order = np.lexsort((neighbour, distance, residue))
    residue, neighbour = residue[order], neighbour[order]
    allowed = np.abs(residue - neighbour) >= min_separation
    residue, neighbour = residue[allowed], neighbour[allowed]
    counts = np.bincount(residue, minlength=len(ca))
    rank = np.arange(len(residue)) - np.repeat(np.cumsum(counts) - counts, counts)
    return _compressed(residue[rank < k], neighbour[rank < k], len(ca))


def _compressed(residue: np.ndarray, neighbour: np.ndarray, num_residues: int) -> tuple[np.ndarray, np.ndarray]:
    """Compressed rows of edges that are sorted by residue."""
    indptr = np.zeros(num_residues + 1, dtype=np.uint32)
    np.cumsum(np.bincount(residue, minlength=num_residues), out=indptr[1:])
    return indptr, neighbour.astype(np.uint16 if num_residues <= 0xFFFF else np.uint32)
