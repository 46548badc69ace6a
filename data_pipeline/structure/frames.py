"""Backbone frames and dihedral angles: computed, stored in 16-bit integers, and as node features of a GVP network.

Stored dihedral angles are in units of pi / 32767, so at most DIHEDRAL_ERROR off. Stored frames are unit quaternions
(w, x, y, z) times 32767 with w >= 0; the rotation read back is at most FRAME_ERROR off.
"""

import numpy as np

from data_pipeline.structure.geometry import CA, C, N, dihedrals
from data_pipeline.structure.vectors import components, cross, length, normalized

MISSING_INT16 = np.iinfo(np.int16).min
"""Marks an undefined angle or frame."""
INT16_SCALE = np.iinfo(np.int16).max
DIHEDRAL_ERROR = 0.5 * np.pi / INT16_SCALE * (1 + 1e-9)
"""Radians, 4.8e-5: half a unit."""
FRAME_ERROR = 2.0 / INT16_SCALE * (1 + 1e-3)
"""Radians, 6.2e-5: a quaternion of four components, each half a unit off, is at most one unit off; the rotation is off
by twice the angle between quaternions."""
_MIN_SINE = 1e-4
"""N, CA and C on a line, to within this sine of their angle, make no frame."""


def backbone_features(coordinates: np.ndarray, angles: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Dihedral angles int16 [N, 3] (phi, psi, omega) and frames int16 [N, 4] as they are stored.

    Args:
        coordinates: float [N, 5, 3], Angstrom, atoms as in `chain.ATOM_NAMES`, NaN where missing.
        angles: `geometry.dihedrals(coordinates)`, where known already.
    """
    angles = dihedrals(coordinates) if angles is None else angles
    return encode_dihedrals(angles), _encoded(_quaternions(_rotations(components(coordinates))).T, INT16_SCALE)


def backbone_frames(coordinates: np.ndarray) -> np.ndarray:
    """float64 [N, 3, 3]: rotations whose columns are each residue's axes (Jumper et al. 2021, algorithm 21).

    The first axis points from CA to C, the second lies in the plane of N, CA and C on the side of N, the third is their
    cross product. The origin is CA. NaN where N, CA or C is missing or the three lie on a line.
    """
    return np.ascontiguousarray(_rotations(components(coordinates)).transpose(2, 0, 1))


def frames_to_quaternions(frames: np.ndarray) -> np.ndarray:
    """Unit quaternions (w, x, y, z), w >= 0, float64 [N, 4], of rotations [N, 3, 3]; NaN where the rotation is."""
    return np.ascontiguousarray(_quaternions(np.asarray(frames, dtype=np.float64).transpose(1, 2, 0)).T)


def quaternions_to_frames(quaternions: np.ndarray) -> np.ndarray:
    """Rotations float64 [N, 3, 3] of quaternions (w, x, y, z) [N, 4] of any length but zero; NaN where they are."""
    q = np.asarray(quaternions, dtype=np.float64)
    w, x, y, z = (q / np.linalg.norm(q, axis=1, keepdims=True)).T
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return np.array(rows).transpose(2, 0, 1)


def encode_dihedrals(angles: np.ndarray) -> np.ndarray:
    """int16 of angles in [-pi, pi] (radians, any shape); NaN becomes MISSING_INT16."""
    return _encoded(np.asarray(angles, dtype=np.float64), INT16_SCALE / np.pi)


def decode_dihedrals(stored: np.ndarray) -> np.ndarray:
    """float64 radians of stored angles; NaN where undefined."""
    return np.where(stored == MISSING_INT16, np.nan, stored * (np.pi / INT16_SCALE))


def encode_frames(frames: np.ndarray) -> np.ndarray:
    """int16 [N, 4] of rotations [N, 3, 3]; MISSING_INT16 where a rotation is NaN."""
    return _encoded(frames_to_quaternions(frames), INT16_SCALE)


def decode_frames(stored: np.ndarray) -> np.ndarray:
    """float64 [N, 3, 3] of stored frames, exactly orthonormal but for rounding; NaN where undefined."""
    return quaternions_to_frames(np.where(stored == MISSING_INT16, np.nan, stored))


def gvp_node_scalars(angles: np.ndarray) -> np.ndarray:
    """float32 [N, 6]: sines of phi, psi and omega, then their cosines (Jing et al. 2021); zeros where undefined.

    Args:
        angles: float [N, 3], radians, NaN where undefined.
    """
    return np.nan_to_num(np.concatenate([np.sin(angles), np.cos(angles)], axis=1), nan=0.0).astype(np.float32)


def gvp_node_vectors(coordinates: np.ndarray) -> np.ndarray:
    """float32 [N, 3, 3]: unit vectors from CA to the next CA, to the previous CA, and along the side chain.

    The side chain's direction is that of ideal tetrahedral geometry (Jing et al. 2021). Zeros where undefined: at the
    ends and where an atom is missing.

    Args:
        coordinates: float [N, 5, 3], Angstrom, NaN where missing.
    """
    atoms = components(coordinates)
    ca = atoms[CA]
    vectors = np.zeros((3, 3, len(coordinates)))
    steps = normalized(ca[:, 1:] - ca[:, :-1])
    vectors[0, :, :-1], vectors[1, :, 1:] = steps, -steps
    to_c, to_n = normalized(atoms[C] - ca), normalized(atoms[N] - ca)
    bisector, normal = normalized(to_c + to_n), normalized(cross(to_c, to_n))
    vectors[2] = -bisector * np.sqrt(1 / 3) - normal * np.sqrt(2 / 3)
    return np.nan_to_num(vectors.transpose(2, 0, 1), nan=0.0).astype(np.float32)


def _rotations(atoms: np.ndarray) -> np.ndarray:
    """`backbone_frames` of atoms [5, 3, N], as [3 (row), 3 (axis), N]."""
    ca = atoms[CA]
    first, to_n = normalized(atoms[C] - ca), normalized(atoms[N] - ca)
    across = cross(first, to_n)
    sine = length(across)
    third = across / np.where(sine > _MIN_SINE, sine, np.nan)
    # The same axes as by Gram-Schmidt: the second is perpendicular to the first in the plane of both vectors.
    return np.stack([np.where(sine > _MIN_SINE, first, np.nan), cross(third, first), third], axis=1)


def _quaternions(m: np.ndarray) -> np.ndarray:
    """`frames_to_quaternions` of rotations [3, 3, N], as [4, N]."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = m
    # Row k is 4 q_k (w, x, y, z); the row of the largest q_k has no cancellation (Shepperd 1978).
    products = np.array(
        [
            (1 + xx + yy + zz, zy - yz, xz - zx, yx - xy),
            (zy - yz, 1 + xx - yy - zz, yx + xy, zx + xz),
            (xz - zx, yx + xy, 1 - xx + yy - zz, zy + yz),
            (yx - xy, zx + xz, zy + yz, 1 - xx - yy + zz),
        ]
    )
    largest = products[[0, 1, 2, 3], [0, 1, 2, 3]].argmax(axis=0)
    chosen = products[largest, :, np.arange(len(largest))].T
    return chosen * (np.where(chosen[0] < 0, -1.0, 1.0) / np.sqrt((chosen * chosen).sum(axis=0)))


def _encoded(values: np.ndarray, scale: float) -> np.ndarray:
    units = np.rint(values * scale)
    missing = np.isnan(units)
    units[missing] = MISSING_INT16
    assert (np.abs(units) <= INT16_SCALE)[~missing].all(), "angles in [-pi, pi], quaternions of unit length"
    return units.astype(np.int16)
