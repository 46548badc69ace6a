"""3Di structural alphabet (van Kempen et al. 2024, Foldseek): each residue's state from its tertiary neighbourhood.

The states equal those of Foldseek's encoder and of its numpy port mini3di, whose trained weights are used. Where a port
compares all pairs of residues, partners are found here in a k-d tree, and one network pass serves many chains, so that
the cost grows linearly with the number of residues.
"""

import functools
import importlib.resources
import struct
from collections.abc import Sequence

import numpy as np
from scipy.spatial import cKDTree

from data_pipeline.structure.chain import THREEDI_STATES
from data_pipeline.structure.geometry import CA, CB, C, N

INVALID_STATE = THREEDI_STATES.index("D")
"""Filled in where no state can be computed, as Foldseek does."""
CA_CB_DISTANCE = 1.5336
"""Angstrom, for a missing CB."""
VIRTUAL_CENTER_DISTANCE = 2.0
"""Distance of the virtual center from CA in units of |CB - CA|."""
VIRTUAL_CENTER_ANGLE = np.deg2rad(270.0)
"""Angle center-CA-CB; the dihedral to N is zero."""
CENTROIDS = np.array(
    [
        [-1.0729, -0.3600],
        [-0.1356, -1.8914],
        [0.4948, -0.4205],
        [-0.9874, 0.8128],
        [-1.6621, -0.4259],
        [2.1394, 0.0486],
        [1.5558, -0.1503],
        [2.9179, 1.1437],
        [-2.8814, 0.9956],
        [-1.1400, -2.0068],
        [3.2025, 1.7356],
        [1.7769, -1.3037],
        [0.6901, -1.2554],
        [-1.1061, -1.3397],
        [2.1495, -0.8030],
        [2.3060, -1.4988],
        [2.5522, 0.6046],
        [0.7786, -2.1660],
        [-2.3030, 0.3813],
        [1.0290, 0.8772],
    ]
)
"""Positions of the 20 states in the network's two-dimensional latent space."""
_CHAIN_SPACING = 1e6
"""Angstrom along a fourth axis between chains that share one tree: no partner is found across chains."""
_LETTERS = np.frombuffer(THREEDI_STATES.encode(), dtype=np.uint8)
_DENSE, _LINEAR, _RELU = 1, 1, 2


def encode_3di(coordinates: np.ndarray) -> tuple[str, np.ndarray]:
    """3Di letters of one chain and which of them were computed.

    Args:
        coordinates: float [N, 5, 3], Angstrom, atoms as in `chain.ATOM_NAMES`, NaN where missing.

    Returns:
        N letters of `chain.THREEDI_STATES` and bool [N]. The first and last residue, residues without N, CA or C, and
        those next to one (or whose partner is) are not computed and read `D`.
    """
    return encode_3di_many([coordinates])[0]


def encode_3di_many(chains: Sequence[np.ndarray]) -> list[tuple[str, np.ndarray]]:
    """`encode_3di` of each chain, all in one pass."""
    lengths = np.array([len(chain) for chain in chains], dtype=np.int64)
    if lengths.sum() == 0:
        return [("", np.zeros(0, dtype=bool)) for _ in chains]
    coordinates = np.concatenate([np.asarray(chain, dtype=np.float64) for chain in chains])
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    ends = starts + np.repeat(lengths, lengths) - 1
    complete = np.isfinite(coordinates[:, [N, CA, C]]).all(axis=(1, 2))
    rows = np.arange(len(coordinates))
    interior = (rows > starts) & (rows < ends)
    partner = _partners(virtual_centers(coordinates), complete & interior, starts, lengths)
    before = np.where(partner == starts, ends, partner - 1)
    computed = interior.copy()
    inner = np.flatnonzero(interior)
    for neighbour in (inner - 1, inner, inner + 1, before[inner], partner[inner], partner[inner] + 1):
        computed[inner] &= complete[neighbour]
    states = np.full(len(coordinates), INVALID_STATE, dtype=np.int64)
    chosen = np.flatnonzero(computed)
    states[chosen] = _states(_descriptors(coordinates[:, CA], chosen, partner[chosen], before[chosen]))
    letters = _LETTERS[states].tobytes().decode()
    stops = np.cumsum(lengths)
    return [(letters[e - n : e], computed[e - n : e]) for n, e in zip(lengths, stops, strict=True)]


def virtual_centers(coordinates: np.ndarray) -> np.ndarray:
    """float64 [N, 3]: the point beside each residue whose nearest other such point defines the partner residue."""
    n, ca, c, cb = (coordinates[:, atom] for atom in (N, CA, C, CB))
    missing = np.flatnonzero(~np.isfinite(cb[:, 0]))
    if len(missing):
        cb = cb.copy()
        cb[missing] = _ideal_cb(n[missing], ca[missing], c[missing])
    to_cb = cb - ca
    normal = _normalized(np.cross(to_cb, n - ca))
    cosine, sine = np.cos(VIRTUAL_CENTER_ANGLE), np.sin(VIRTUAL_CENTER_ANGLE)
    along = (normal * to_cb).sum(-1, keepdims=True)
    rotated = to_cb * cosine + np.cross(normal, to_cb) * sine + normal * along * (1 - cosine)
    return rotated * VIRTUAL_CENTER_DISTANCE + ca


def _ideal_cb(n: np.ndarray, ca: np.ndarray, c: np.ndarray) -> np.ndarray:
    """CB of tetrahedral geometry as Foldseek places it; float64 [M, 3]."""
    to_c = _normalized(c - ca)
    bisector = _normalized(_normalized(n - ca) + to_c / 3.0)
    normal = _normalized(np.cross(to_c, bisector))
    direction = (np.sqrt(8) / 3.0) * (-bisector / 2.0 - normal * np.sqrt(3) / 2.0) - to_c / 3.0
    return direction * CA_CB_DISTANCE + ca


def _partners(centers: np.ndarray, candidate: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """int64 [N]: row of each candidate's nearest other candidate in its chain; the chain's first row where none is."""
    partner = starts.copy()
    rows = np.flatnonzero(candidate)
    if len(rows) < 2:
        return partner
    points = centers[rows]
    if len(lengths) > 1:
        chain = np.repeat(np.arange(len(lengths)), lengths)[rows]
        points = np.column_stack([points, chain * _CHAIN_SPACING])
    distance, index = cKDTree(points, balanced_tree=False, compact_nodes=False).query(points, k=2)
    itself = index[:, 0] == np.arange(len(rows))
    nearest = np.where(itself, index[:, 1], index[:, 0])
    found = np.where(itself, distance[:, 1], distance[:, 0]) < _CHAIN_SPACING / 2
    partner[rows[found]] = rows[nearest[found]]
    return partner


def _descriptors(ca: np.ndarray, i: np.ndarray, j: np.ndarray, before_j: np.ndarray) -> np.ndarray:
    """float32 [M, 10]: angles between the CA segments around i and its partner j, their distance and separation."""
    steps = _normalized(ca[1:] - ca[:-1])
    u1, u2, u4 = steps[i - 1], steps[i], steps[j]
    u3 = steps[np.minimum(before_j, len(steps) - 1)]
    wraps = np.flatnonzero(before_j != j - 1)
    u3[wraps] = _normalized(ca[j[wraps]] - ca[before_j[wraps]])
    across = ca[j] - ca[i]
    distance = np.linalg.norm(across, axis=-1)
    u5 = across / np.where(distance == 0, 1.0, distance)[:, None]
    separation = j - i
    descriptors = np.empty((len(i), 10), dtype=np.float32)
    pairs = ((u1, u2), (u3, u4), (u1, u5), (u3, u5), (u1, u4), (u2, u3), (u1, u3))
    for column, (first, second) in enumerate(pairs):
        descriptors[:, column] = (first * second).sum(-1)
    descriptors[:, 7] = distance
    descriptors[:, 8] = np.clip(separation, -4, 4)
    descriptors[:, 9] = np.copysign(np.log(np.abs(separation) + 1), separation)
    return descriptors


def _states(descriptors: np.ndarray) -> np.ndarray:
    """int64 [M]: nearest centroid of each residue's latent position."""
    hidden = descriptors
    for weight, bias, has_relu in network_layers():
        hidden = hidden @ weight + bias
        if has_relu:
            hidden = np.maximum(hidden, 0)
    distance = (hidden**2).sum(1, keepdims=True) - 2 * hidden @ CENTROIDS.T + (CENTROIDS**2).sum(1)
    return distance.argmin(1)


@functools.cache
def network_layers() -> tuple[tuple[np.ndarray, np.ndarray, bool], ...]:
    """Weight float32 [in, out], bias float32 [out] and whether ReLU follows, of each dense layer.

    Read from the data file of mini3di (kerasify format: little-endian counts, then float32 values).
    """
    data = importlib.resources.files("mini3di").joinpath("encoder_weights_3di.kerasify").read_bytes()
    (num_layers,) = struct.unpack_from("<I", data)
    layers, position = [], 4
    for _ in range(num_layers):
        kind, num_in, num_out, num_bias = struct.unpack_from("<4I", data, position)
        assert kind == _DENSE, f"3Di weights: layer kind {kind}, only dense layers are known"
        weight = np.frombuffer(data, "<f4", num_in * num_out, position + 16).reshape(num_in, num_out)
        bias = np.frombuffer(data, "<f4", num_bias, position + 16 + weight.nbytes)
        (activation,) = struct.unpack_from("<I", data, position + 16 + weight.nbytes + bias.nbytes)
        assert activation in (_LINEAR, _RELU), f"3Di weights: unknown activation {activation}"
        layers.append((weight, bias, activation == _RELU))
        position += 20 + weight.nbytes + bias.nbytes
    return tuple(layers)


def _normalized(vectors: np.ndarray) -> np.ndarray:
    """Unit vectors along the last axis; zero vectors stay zero."""
    norm = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(norm == 0, 1.0, norm)
