"""Backbone atoms and residue frames of chains given by their torsions."""

import numpy as np

from data_pipeline.structure.place import place_atom


def build_atoms(torsions: np.ndarray) -> np.ndarray:
    """Backbone atoms of torsions [..., N, 2] in degrees: float64 [..., N, 4, 3], atoms N, CA, C, O, Angstrom."""
    rotation, origin = chain_frames(torsions)
    local = np.stack(RESIDUE)
    atoms = np.einsum("...nij,aj->...nai", rotation, local) + origin[..., None, :]
    psi = np.deg2rad(torsions[..., 1])
    oxygen = place_atom(atoms[..., 0, :], atoms[..., 1, :], atoms[..., 2, :], 1.231, np.deg2rad(120.5), psi + np.pi)
    return np.concatenate([atoms, oxygen[..., None, :]], axis=-2)


def chain_frames(torsions: np.ndarray, psi_before: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Rotation [..., N, 3, 3] and origin [..., N, 3] of each residue's frame (CA at the origin).

    The first residue defines the world's frame, or, given the psi (degrees) of the one before it, that one does.
    """
    psi = torsions[..., :-1, 1]
    phi = torsions[..., 1:, 0]
    if psi_before is not None:
        first = np.broadcast_to(psi_before, (*torsions.shape[:-2], 1))
        psi, phi = np.concatenate([first, psi], axis=-1), torsions[..., 0]
    step_rotation, step_origin = _steps(np.deg2rad(psi), np.deg2rad(phi))
    rotation = np.broadcast_to(np.eye(3), (*torsions.shape[:-2], 3, 3))
    origin = np.zeros((*torsions.shape[:-2], 3))
    rotations, origins = ([], []) if psi_before is not None else ([rotation], [origin])
    for i in range(phi.shape[-1]):
        origin = origin + (rotation @ step_origin[..., i, :, None])[..., 0]
        rotation = rotation @ step_rotation[..., i, :, :]
        rotations.append(rotation)
        origins.append(origin)
    return np.stack(rotations, axis=-3), np.stack(origins, axis=-2)


def _residue() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """N, CA and C of one residue with CA at the origin."""
    nitrogen, alpha = np.array([-1.458, 0.0, 0.0]), np.zeros(3)
    carbon = place_atom(np.array([-1.458, 1.0, 0.0]), nitrogen, alpha, 1.525, np.deg2rad(111.0), 0.0)
    return nitrogen, alpha, carbon


RESIDUE = _residue()


def _steps(psi: np.ndarray, phi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frame of the next residue in the frame of this one, for trans peptide bonds; angles [...] in radians."""
    n, ca, c = (np.broadcast_to(atom, (*psi.shape, 3)) for atom in RESIDUE)
    next_n = place_atom(n, ca, c, 1.329, np.deg2rad(116.6), psi)
    next_ca = place_atom(ca, c, next_n, 1.458, np.deg2rad(121.7), np.full(psi.shape, np.pi))
    next_c = place_atom(c, next_n, next_ca, 1.525, np.deg2rad(111.0), phi)
    return _axes(next_n, next_ca, next_c) @ _axes(*RESIDUE).T, next_ca


def _axes(n: np.ndarray, ca: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Orthonormal axes [..., 3, 3] (columns) of a residue."""
    x = ca - n
    x = x / np.linalg.norm(x, axis=-1, keepdims=True)
    z = np.cross(x, c - ca)
    z = z / np.linalg.norm(z, axis=-1, keepdims=True)
    return np.stack([x, np.cross(z, x), z], axis=-1)
