"""Secondary structure from coordinates by hydrogen-bond patterns (Kabsch and Sander 1983, Biopolymers 22, 2577)."""

import numpy as np
from scipy.spatial import cKDTree

from data_pipeline.structure.geometry import CA, C, N, O, chain_breaks

HELIX, STRAND, COIL, UNASSIGNED = 0, 1, 2, -1
_BOND_FACTOR = 27.9
"""q1 q2 f of the electrostatic model: 0.42 * 0.20 * 332 kcal/mol Angstrom."""
_MAX_BOND_ENERGY = -0.5
"""kcal/mol: below it C=O and N-H are bonded."""
_LOWEST_ENERGY = -9.9
_SHORTEST_DISTANCE = 0.5
"""Angstrom: atoms nearer than this count as bonded with the lowest energy."""
_MAX_CA_DISTANCE = 9.0
"""Angstrom: residues farther apart have no hydrogen bond."""
_N_H_BOND = 1.0
"""Angstrom."""
_BEND_ANGLE = np.deg2rad(70.0)
_STATES = {"H": HELIX, "G": HELIX, "I": HELIX, "E": STRAND, "B": STRAND, "T": COIL, "S": COIL, "-": COIL}
_UNASSIGNED_LETTER = "X"


def secondary_structure(coordinates: np.ndarray, sequence: str | None = None) -> np.ndarray:
    """int64 [N]: 0 helix (H, G, I), 1 strand (E, B), 2 coil, -1 where N, CA, C or O is missing.

    Args:
        coordinates: float [N, 5, 3], Angstrom, atoms as in `chain.ATOM_NAMES`, NaN where missing.
        sequence: one-letter codes; proline then donates no hydrogen bond.
    """
    states = {**_STATES, _UNASSIGNED_LETTER: UNASSIGNED}
    return np.array([states[letter] for letter in dssp_states(coordinates, sequence)], dtype=np.int64)


def dssp_states(coordinates: np.ndarray, sequence: str | None = None) -> str:
    """The eight states of DSSP, one letter per residue: H G I E B T S, `-` for none, `X` where atoms are missing.

    Patterns do not cross chain breaks. As in DSSP 4, helices override strands and pi helices override alpha helices.
    """
    coordinates = coordinates.astype(np.float64)
    num_residues = len(coordinates)
    complete = np.isfinite(coordinates[:, : O + 1]).all(axis=(1, 2))
    if not complete.any():
        return _UNASSIGNED_LETTER * num_residues
    breaks = chain_breaks(coordinates) | ~complete[1:] | ~complete[:-1]
    segment = np.concatenate([[0], np.cumsum(breaks)])
    bonds = hydrogen_bonds(coordinates, complete, segment, sequence)
    states = np.full(num_residues, "-", dtype="U1")
    _mark_strands(states, bonds, segment)
    starts = {stride: _turn_starts(bonds, segment, stride) for stride in (3, 4, 5)}
    for stride, letter, replaceable in ((4, "H", "-BEH"), (3, "G", "-G"), (5, "I", "-IH")):
        _mark_helices(states, starts[stride], stride, letter, replaceable)
    _mark_turns_and_bends(states, starts, _bends(coordinates[:, CA], segment))
    states[~complete] = _UNASSIGNED_LETTER
    return "".join(states)


class Bonds:
    """Hydrogen bonds of a chain: `has(donors, acceptors)` tells which N-H -> O=C pairs of residues are bonded."""

    def __init__(self, donor: np.ndarray, acceptor: np.ndarray, num_residues: int) -> None:
        self.donor, self.acceptor, self.num_residues = donor, acceptor, num_residues
        self._keys = np.sort(donor * num_residues + acceptor)

    def has(self, donor: np.ndarray, acceptor: np.ndarray) -> np.ndarray:
        """bool, like the arguments; False where an index lies outside the chain."""
        inside = (donor >= 0) & (acceptor >= 0) & (donor < self.num_residues) & (acceptor < self.num_residues)
        if len(self._keys) == 0:
            return np.zeros(inside.shape, dtype=bool)
        wanted = donor * self.num_residues + acceptor
        place = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        return inside & (self._keys[place] == wanted)


def hydrogen_bonds(
    coordinates: np.ndarray, complete: np.ndarray, segment: np.ndarray, sequence: str | None = None
) -> Bonds:
    """The (at most two strongest) bonds that each residue donates, by electrostatic energy.

    H lies 1 Angstrom from N, opposite to the C=O before it. Without a residue before it, or in proline, there is none.

    Args:
        complete: bool [N]: N, CA, C and O are present.
        segment: int [N]: number of the unbroken stretch each residue belongs to.
    """
    n, c, o = coordinates[:, N], coordinates[:, C], coordinates[:, O]
    donates = np.zeros(len(n), dtype=bool)
    donates[1:] = segment[1:] == segment[:-1]
    if sequence is not None:
        donates &= np.frombuffer(sequence.encode(), dtype=np.uint8) != ord("P")
    hydrogen = n.copy()
    carbonyl = c[:-1] - o[:-1]
    hydrogen[1:] += _N_H_BOND * carbonyl / np.linalg.norm(carbonyl, axis=-1, keepdims=True)
    rows = np.flatnonzero(complete)
    pairs = rows[cKDTree(coordinates[rows, CA]).query_pairs(_MAX_CA_DISTANCE, output_type="ndarray")]
    donor, acceptor = np.concatenate([pairs, pairs[:, ::-1]]).T
    possible = donates[donor] & (donor != acceptor + 1)
    donor, acceptor = donor[possible], acceptor[possible]
    distances = np.stack(
        [
            np.linalg.norm(hydrogen[donor] - o[acceptor], axis=-1),
            np.linalg.norm(hydrogen[donor] - c[acceptor], axis=-1),
            np.linalg.norm(n[donor] - c[acceptor], axis=-1),
            np.linalg.norm(n[donor] - o[acceptor], axis=-1),
        ]
    )
    inverse = 1.0 / np.maximum(distances, _SHORTEST_DISTANCE)
    energy = -_BOND_FACTOR * (inverse[0] - inverse[1] + inverse[2] - inverse[3])
    energy = np.where((distances < _SHORTEST_DISTANCE).any(axis=0), _LOWEST_ENERGY, energy)
    energy = np.maximum(np.round(energy, 3), _LOWEST_ENERGY)
    bonded = np.flatnonzero(energy < _MAX_BOND_ENERGY)
    bonded = bonded[np.lexsort((acceptor[bonded], energy[bonded], donor[bonded]))]
    donor, acceptor = donor[bonded], acceptor[bonded]
    third = np.concatenate([[False, False], donor[2:] == donor[:-2]])[: len(donor)]
    return Bonds(donor[~third], acceptor[~third], len(n))


def _turn_starts(bonds: Bonds, segment: np.ndarray, stride: int) -> np.ndarray:
    """bool [N]: the C=O of residue i is bonded to the N-H of residue i + stride."""
    starts = np.zeros(len(segment), dtype=bool)
    first = np.arange(max(len(segment) - stride, 0))
    starts[first] = bonds.has(first + stride, first) & (segment[first] == segment[first + stride])
    return starts


def _mark_helices(states: np.ndarray, starts: np.ndarray, stride: int, letter: str, replaceable: str) -> None:
    """Two turns in a row make a helix of `stride` residues, where all of them hold a replaceable state."""
    for i in (np.flatnonzero(starts[1:] & starts[:-1]) + 1).tolist():
        if all(state in replaceable for state in states[i : i + stride]):
            states[i : i + stride] = letter


def _bends(ca: np.ndarray, segment: np.ndarray) -> np.ndarray:
    """bool [N]: the chain turns by more than 70 degrees over five residues."""
    bends = np.zeros(len(ca), dtype=bool)
    if len(ca) >= 5:
        before, after = ca[2:-2] - ca[:-4], ca[4:] - ca[2:-2]
        cosine = (before * after).sum(-1) / (np.linalg.norm(before, axis=-1) * np.linalg.norm(after, axis=-1))
        bends[2:-2] = (np.arccos(np.clip(cosine, -1, 1)) > _BEND_ANGLE) & (segment[:-4] == segment[4:])
    return bends


def _mark_turns_and_bends(states: np.ndarray, starts: dict[int, np.ndarray], bends: np.ndarray) -> None:
    """T inside a turn of any stride, S at a bend, where there is no other state; the chain's ends have neither."""
    inside = np.zeros(len(states), dtype=bool)
    for stride, turn in starts.items():
        for offset in range(1, stride):
            inside[offset:] |= turn[: max(len(turn) - offset, 0)]
    free = states == "-"
    free[[0, -1]] = False
    states[free & bends] = "S"
    states[free & inside] = "T"


def _mark_strands(states: np.ndarray, bonds: Bonds, segment: np.ndarray) -> None:
    """E in ladders of bridges (bulges included), B at single bridges."""
    ladders = _joined_over_bulges(_ladders(_bridges(bonds, segment)), segment)
    for letter in "BE":
        for _, i_side, j_side in ladders:
            if (len(i_side) > 1) == (letter == "E"):
                for side in (i_side, j_side):
                    states[side[0] : side[-1] + 1] = letter


def _bridges(bonds: Bonds, segment: np.ndarray) -> list[tuple[bool, int, int]]:
    """(is parallel, i, j) of every bridge with i + 3 <= j, sorted by i."""
    d, a = bonds.donor, bonds.acceptor
    parallel = _pairs(d - 1, a, bonds.has(a, d - 2))
    antiparallel = np.concatenate([_pairs(d, a, bonds.has(a, d)), _pairs(d - 1, a + 1, bonds.has(a + 2, d - 2))])
    last = len(segment) - 1
    found: dict[tuple[int, int], bool] = {}
    for is_parallel, pairs in ((True, parallel), (False, antiparallel)):
        pairs = np.sort(pairs, axis=1)
        i, j = pairs[(pairs[:, 0] >= 1) & (pairs[:, 1] < last) & (pairs[:, 1] - pairs[:, 0] >= 3)].T
        unbroken = (segment[i - 1] == segment[i + 1]) & (segment[j - 1] == segment[j + 1])
        for pair in zip(i[unbroken].tolist(), j[unbroken].tolist(), strict=True):
            found.setdefault(pair, is_parallel)
    return [(found[pair], *pair) for pair in sorted(found)]


def _pairs(i: np.ndarray, j: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    return np.stack([i[chosen], j[chosen]], axis=1)


def _ladders(bridges: list[tuple[bool, int, int]]) -> list[tuple[bool, list[int], list[int]]]:
    """(is parallel, rising residues of the i side, rising residues of the j side) of runs of consecutive bridges."""
    ladders: list[tuple[bool, list[int], list[int]]] = []
    open_ends: dict[tuple[bool, int, int], tuple[bool, list[int], list[int]]] = {}
    for is_parallel, i, j in bridges:
        ladder = open_ends.pop((is_parallel, i, j), None)
        if ladder is None:
            ladder = (is_parallel, [], [])
            ladders.append(ladder)
        ladder[1].append(i)
        ladder[2].insert(len(ladder[2]) if is_parallel else 0, j)
        open_ends[is_parallel, i + 1, j + 1 if is_parallel else j - 1] = ladder
    return ladders


def _joined_over_bulges(
    ladders: list[tuple[bool, list[int], list[int]]], segment: np.ndarray
) -> list[tuple[bool, list[int], list[int]]]:
    """Ladders of one kind joined where at most one extra residue stands on one side and four on the other."""
    ladders = list(ladders)
    first = 0
    while first < len(ladders):
        second = first + 1
        while second < len(ladders):
            if _is_bulge(ladders[first], ladders[second], segment):
                is_parallel, i_side, j_side = ladders[first]
                _, i_next, j_next = ladders.pop(second)
                ladders[first] = (is_parallel, i_side + i_next, j_side + j_next if is_parallel else j_next + j_side)
            else:
                second += 1
        first += 1
    return ladders


def _is_bulge(
    one: tuple[bool, list[int], list[int]], other: tuple[bool, list[int], list[int]], segment: np.ndarray
) -> bool:
    if one[0] != other[0] or other[1][0] - one[1][-1] >= 6 or one[1][-1] >= other[1][0]:
        return False
    unbroken = all(
        segment[min(one[side][0], other[side][0])] == segment[max(one[side][-1], other[side][-1])] for side in (1, 2)
    )
    i_gap = other[1][0] - one[1][-1]
    j_gap = other[2][0] - one[2][-1] if one[0] else one[2][0] - other[2][-1]
    return unbroken and j_gap >= 0 and ((j_gap < 6 and i_gap < 3) or j_gap < 3)
