"""Geometry of a protein backbone: virtual CB, dihedral angles, contacts, plausibility.

Coordinates are float [N, 5, 3] in Angstrom with atoms as in `chain.ATOM_NAMES`, NaN where an atom is missing.
"""

import numpy as np

from data_pipeline.structure.chain import ATOM_NAMES
from data_pipeline.structure.vectors import components, cross, dot, length

N, CA, C, O, CB = range(len(ATOM_NAMES))  # noqa: E741 - the chemical symbol of oxygen

MAX_PEPTIDE_BOND = 2.5
"""Angstrom: a longer C-N distance is a chain break (the limit DSSP uses)."""
BOND_LENGTHS = {"N-CA": 1.458, "CA-C": 1.525, "C-N": 1.329}
"""Ideal backbone bond lengths, Angstrom (Engh and Huber 1991)."""
BOND_TOLERANCE = 0.1
"""Angstrom: about five standard deviations of refined structures."""
_ALLOWED_BOXES = (
    (-180.0, -35.0, 40.0, 180.0),
    (-180.0, -35.0, -90.0, 40.0),
    (-180.0, -35.0, -180.0, -140.0),
    (160.0, 180.0, 90.0, 180.0),
    (160.0, 180.0, -180.0, -150.0),
    (30.0, 95.0, -45.0, 105.0),
    (40.0, 80.0, -180.0, -120.0),
)
"""Broad allowed (phi from, phi to, psi from, psi to) in degrees of residues other than glycine: beta and polyproline,
right-handed helix, their continuations over +-180 degrees, left-handed helix and the rare gamma' region."""


def virtual_cb(n: np.ndarray, ca: np.ndarray, c: np.ndarray) -> np.ndarray:
    """CB position implied by ideal tetrahedral geometry at CA, [..., 3] like the arguments (Angstrom).

    The coefficients are those of Dauparas et al. 2022 (ProteinMPNN), fitted to ideal L-amino-acid geometry.
    """
    b, d = ca - n, c - ca
    return -0.58273431 * np.cross(b, d) + 0.56802827 * b - 0.54067466 * d + ca


def dihedral(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Dihedral angle a-b-c-d in radians, IUPAC sign, in (-pi, pi]; NaN where an atom is; arguments [..., 3]."""
    axis, before, after = (np.moveaxis(vector, -1, 0) for vector in (c - b, b - a, d - c))
    return _torsion(before, axis, after)


def _torsion(before: np.ndarray, axis: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Dihedral angle [...] of three consecutive bonds [3, ...]."""
    first, second = cross(before, axis), cross(axis, after)
    return np.arctan2(length(axis) * dot(before, second), dot(first, second))


def chain_breaks(coordinates: np.ndarray) -> np.ndarray:
    """bool [N - 1]: residues i and i + 1 are not joined (C-N over MAX_PEPTIDE_BOND, or either atom missing)."""
    bond = coordinates[1:, N] - coordinates[:-1, C]
    return ~(length(bond.T) <= MAX_PEPTIDE_BOND)


def dihedrals(coordinates: np.ndarray) -> np.ndarray:
    """float64 [N, 3]: phi, psi and omega (of the bond to the next residue) in radians.

    NaN where undefined: at the ends, next to a chain break or a missing atom.
    """
    angles = np.full((len(coordinates), 3), np.nan)
    if len(coordinates) < 2:
        return angles
    n, ca, c = components(coordinates)[[N, CA, C]]
    to_ca, to_c, to_next = ca - n, c - ca, n[:, 1:] - c[:, :-1]
    to_next[:, ~(length(to_next) <= MAX_PEPTIDE_BOND)] = np.nan
    angles[1:, 0] = _torsion(to_next, to_ca[:, 1:], to_c[:, 1:])
    angles[:-1, 1] = _torsion(to_ca[:, :-1], to_c[:, :-1], to_next)
    angles[:-1, 2] = _torsion(to_c[:, :-1], to_next, to_ca[:, 1:])
    return angles


def geometry_outlier_fraction(coordinates: np.ndarray, angles: np.ndarray | None = None) -> float:
    """Fraction of residues with an implausible backbone: a stand-in for resolution and R-free where neither is known.

    A residue is an outlier when N-CA, CA-C or the peptide bond to the next residue is off its ideal length by more
    than BOND_TOLERANCE, or when it has a CB (so is not glycine) and (phi, psi) outside broad allowed regions. Only
    residues with N, CA and C count; peptide bonds across chain breaks do not. 1.0 when no residue counts.

    Args:
        coordinates: float [N, 5, 3], Angstrom.
        angles: `dihedrals(coordinates)`, where known already.
    """
    n, ca, c, _, cb = components(coordinates)
    # A sum is finite only where every term is.
    complete = np.isfinite((n + ca + c).sum(axis=0))
    if not complete.any():
        return 1.0
    outlier = _off_length(ca - n, "N-CA") | _off_length(c - ca, "CA-C")
    peptide = n[:, 1:] - c[:, :-1]
    outlier[:-1] |= (length(peptide) <= MAX_PEPTIDE_BOND) & _off_length(peptide, "C-N")
    phi, psi = np.degrees((dihedrals(coordinates) if angles is None else angles)[:, :2].T)
    outlier |= np.isfinite(cb[0]) & ramachandran_outliers(phi, psi)
    return float(outlier[complete].mean())


def ramachandran_outliers(phi: np.ndarray, psi: np.ndarray) -> np.ndarray:
    """bool, like the arguments (degrees): defined and outside every broad allowed region of non-glycine residues."""
    allowed = np.zeros(phi.shape, dtype=bool)
    for phi_from, phi_to, psi_from, psi_to in _ALLOWED_BOXES:
        allowed |= (phi >= phi_from) & (phi <= phi_to) & (psi >= psi_from) & (psi <= psi_to)
    return np.isfinite(phi) & np.isfinite(psi) & ~allowed


def cb_or_virtual(coordinates: np.ndarray) -> np.ndarray:
    """float64 [N, 3]: CB, or its virtual position where it is missing; NaN where the backbone is missing too."""
    coordinates = coordinates.astype(np.float64)
    ideal = virtual_cb(coordinates[:, N], coordinates[:, CA], coordinates[:, C])
    return np.where(np.isfinite(coordinates[:, CB]), coordinates[:, CB], ideal)


def contact_map(coordinates: np.ndarray, cutoff: float = 8.0) -> np.ndarray:
    """bool [N, N], symmetric: CB-CB distance below `cutoff` (Angstrom), virtual CB for glycine and missing CB.

    A residue without a position has no contacts, not even with itself.
    """
    cb = cb_or_virtual(coordinates)
    gram = np.linalg.norm(cb[:, None] - cb[None, :], axis=-1)
    return gram < cutoff


def _off_length(bonds: np.ndarray, name: str) -> np.ndarray:
    """bool [...]: bonds [3, ...] of known length that is off the ideal one."""
    return np.abs(length(bonds) - BOND_LENGTHS[name]) > BOND_TOLERANCE
