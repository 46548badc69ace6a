"""Placing an atom from internal coordinates."""

import numpy as np


def place_atom(
    a: np.ndarray,
    b: np.ndarray,
    c: np.ndarray,
    length: float | np.ndarray,
    angle: float | np.ndarray,
    dihedral: float | np.ndarray,
) -> np.ndarray:
    """Position of the atom d bonded to c, so that |cd| = length, angle(b, c, d) and dihedral(a, b, c, d) hold.

    The natural extension reference frame (Parsons et al. 2005, J. Comput. Chem. 26, 1063).

    Args:
        a, b, c: float [..., 3], Angstrom; not collinear.
        length: Angstrom, broadcast over the leading axes.
        angle: radians, broadcast over the leading axes.
        dihedral: radians, IUPAC sign, broadcast over the leading axes.

    Returns:
        float64 [..., 3], Angstrom.
    """
    a, b, c = (np.asarray(x, dtype=np.float64) for x in (a, b, c))
    length, angle, dihedral = (np.asarray(x, dtype=np.float64)[..., None] for x in (length, angle, dihedral))
    along = _unit(c - b)
    normal = _unit(np.cross(b - a, along))
    across = np.cross(normal, along)
    radial = np.cos(dihedral) * across + np.sin(dihedral) * normal
    return c + length * (np.sin(angle) * radial - np.cos(angle) * along)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
