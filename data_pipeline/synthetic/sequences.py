"""Sequences of synthetic proteins: each residue is drawn by what its place in the structure favours."""

import numpy as np

from data_pipeline.structure.chain import AMINO_ACIDS
from data_pipeline.structure.geometry import virtual_cb
from data_pipeline.synthetic.layout import HELIX, LOOP, STRAND, TURN

FAVOURED = {
    "helix packed": "AAAAAAAAGGGSSIVVCC",
    "helix buried": "LLLLLLLLIIIMMMFFWA",
    "helix exposed": "EEEEEEKKKKKRRRRQQQAD",
    "helix start": "EEEEEDDDDPPPPAAASTQ",
    "helix cap": "SSSSSSDDDDDTTTTNNNGP",
    "helix end": "GGGGGGGNNNNNKKHS",
    "strand buried": "VVVVVVVVIIIIIIFFYCLA",
    "strand exposed": "TTTTTTTKKRRQQEYYVVWH",
    "turn first": "GGGGGGGGGGGGGGGN",
    "turn second": "NNNNNSSSSTTTDDDKG",
    "loop buried": "PPPPLLAAVVFFYYIIGW",
    "loop exposed": "PPPPDDDDGGGSSSSNNNKKEETTQRHA",
    "loop left-handed": "GGGGGGGGNNNNDDK",
}
"""Residues favoured by each environment, once per share; the trends are those of Chou and Fasman (1978) and, for caps
and turns, of Aurora and Rose (1998), sharpened so that few proteins suffice to learn them."""
ENVIRONMENTS = tuple(FAVOURED)
BACKGROUND = 0.004
"""Share of every residue anywhere."""
BURIED_NEIGHBOURS = 7
"""Buried: at least this many CA atoms within NEIGHBOUR_DISTANCE on the side of the CB (half-sphere exposure)."""
NEIGHBOUR_DISTANCE = 12.0
"""Angstrom."""
PACKED_DISTANCE = 5.5
"""Packed: another CB, more than four residues away in sequence, within this many Angstrom."""
CONSERVED_SHARE = 0.4
CONSERVED_LENGTHS = (9, 16)
"""A family keeps segments of these lengths (its motifs), which make up about CONSERVED_SHARE of the chain."""


def propensities() -> np.ndarray:
    """float64 [environments, 20]: probability of each residue of AMINO_ACIDS, rows sum to 1."""
    counts = np.array(
        [[letters.count(residue) / len(letters) for residue in AMINO_ACIDS] for letters in FAVOURED.values()]
    )
    return (1.0 - BACKGROUND * len(AMINO_ACIDS)) * counts + BACKGROUND


def environments(kinds: np.ndarray, torsions: np.ndarray, atoms: np.ndarray) -> np.ndarray:
    """int64 [N]: index into ENVIRONMENTS; kinds [N], torsions [N, 2] in degrees, atoms [N, 4, 3] in Angstrom."""
    buried = half_sphere_neighbours(atoms) >= BURIED_NEIGHBOURS
    packed = nearest_distant(atoms) < PACKED_DISTANCE
    place = {name: i for i, name in enumerate(ENVIRONMENTS)}
    result = np.where(buried, place["loop buried"], place["loop exposed"])
    result[(kinds == LOOP) & (torsions[:, 0] > 0)] = place["loop left-handed"]
    helical = np.where(buried, place["helix buried"], place["helix exposed"])
    helical[packed] = place["helix packed"]
    result[kinds == HELIX] = helical[kinds == HELIX]
    result[kinds == STRAND] = np.where(buried, place["strand buried"], place["strand exposed"])[kinds == STRAND]
    turns = np.flatnonzero(kinds == TURN)
    result[turns[::2]], result[turns[1::2]] = place["turn first"], place["turn second"]
    helix = np.concatenate([[False], kinds == HELIX, [False]])
    starts, ends = np.flatnonzero(helix[1:-1] & ~helix[:-2]), np.flatnonzero(helix[1:-1] & ~helix[2:])
    for offset in range(3):
        result[starts + offset] = place["helix start"]
    result[np.maximum(starts - 1, 0)] = place["helix cap"]
    result[np.minimum(ends + 1, len(kinds) - 1)] = place["helix end"]
    return result


def half_sphere_neighbours(atoms: np.ndarray) -> np.ndarray:
    """int64 [N]: CA atoms within NEIGHBOUR_DISTANCE on the CB side of each residue; atoms [N, 4, 3]."""
    alpha = atoms[:, 1]
    outward = virtual_cb(atoms[:, 0], alpha, atoms[:, 2]) - alpha
    offsets = alpha[None, :] - alpha[:, None]
    near = np.linalg.norm(offsets, axis=-1) < NEIGHBOUR_DISTANCE
    return (near & (np.einsum("ijx,ix->ij", offsets, outward) > 0)).sum(axis=1)


def nearest_distant(atoms: np.ndarray) -> np.ndarray:
    """float64 [N]: distance from each CB to the nearest CB more than four residues away, Angstrom; atoms [N, 4, 3]."""
    beta = virtual_cb(atoms[:, 0], atoms[:, 1], atoms[:, 2])
    distances = np.linalg.norm(beta[:, None] - beta[None, :], axis=-1)
    position = np.arange(len(beta))
    distances[np.abs(position[:, None] - position) <= 4] = np.inf
    return distances.min(axis=1)


def draw_sequence(places: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """int64 [N]: residues as indices into AMINO_ACIDS for environments [N]."""
    cumulative = propensities().cumsum(axis=1)[places]
    return np.minimum((rng.random(len(places))[:, None] > cumulative).sum(axis=1), len(AMINO_ACIDS) - 1)


def conserved_sites(num_residues: int, rng: np.random.Generator) -> np.ndarray:
    """bool [N]: the segments a family keeps, about CONSERVED_SHARE of its residues."""
    conserved = np.zeros(num_residues, dtype=bool)
    for _ in range(1000):
        if conserved.mean() >= CONSERVED_SHARE:
            break
        length = int(rng.integers(*CONSERVED_LENGTHS))
        start = int(rng.integers(max(1, num_residues - length)))
        conserved[start : start + length] = True
    return conserved


def diverge(
    ancestor: np.ndarray, places: np.ndarray, conserved: np.ndarray, rate: float, rng: np.random.Generator
) -> np.ndarray:
    """A member of a family: each of the ancestor's residues [N] is redrawn with a mean probability `rate`.

    Conserved residues change with probability rate^3 and the others with what keeps the mean, so that at moderate rates
    members share their motifs, by which sequence clustering joins them, and at rate 1 nothing is kept.
    """
    share = conserved.mean()
    slow = rate**3
    fast = min(1.0, (rate - share * slow) / max(1.0 - share, 1e-9))
    redrawn = rng.random(len(ancestor)) < np.where(conserved, slow, fast)
    return np.where(redrawn, draw_sequence(places, rng), ancestor)
