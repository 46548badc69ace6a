"""Arithmetic on vectors that are stored by component, [3, ...]: long rows per x, y and z are several times as fast to
work on as many short vectors."""

import numpy as np

from data_pipeline.structure.chain import ATOM_NAMES

TINY = 1e-300
"""Divisor in place of the length of a zero vector."""


def components(coordinates: np.ndarray) -> np.ndarray:
    """float64 [5, 3, N] of coordinates [N, 5, 3] (atoms as in `chain.ATOM_NAMES`)."""
    num_residues = len(coordinates)
    flat = np.asarray(coordinates, dtype=np.float64).reshape(num_residues, len(ATOM_NAMES) * 3)
    return np.ascontiguousarray(flat.T).reshape(len(ATOM_NAMES), 3, num_residues)


def cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cross products [3, ...]."""
    return np.stack([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Dot products [...] of vectors [3, ...]."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def length(vectors: np.ndarray) -> np.ndarray:
    """Lengths [...] of vectors [3, ...]."""
    return np.sqrt(dot(vectors, vectors))


def normalized(vectors: np.ndarray) -> np.ndarray:
    """Unit vectors [3, ...]; zero vectors stay zero."""
    return vectors / np.maximum(length(vectors), TINY)
