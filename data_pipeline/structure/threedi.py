"""3Di structural alphabet (van Kempen et al. 2024, Foldseek): each residue's state from its tertiary neighbourhood.

The states equal those of Foldseek's encoder and of its numpy port mini3di, whose trained weights are used. Where a port
compares all pairs of residues, a residue is compared here only with those within reach, and one network pass serves
many chains, so that the cost grows linearly with the number of residues.
"""

import functools
import importlib.resources
import itertools
import struct
from collections.abc import Sequence

import numpy as np
from scipy.spatial import cKDTree

from data_pipeline.structure.chain import THREEDI_STATES
from data_pipeline.structure.distances import DistanceBlocks
from data_pipeline.structure.vectors import TINY, components, cross, dot, length, normalized

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
_REACH = 6.5
"""Angstrom: in real chains 99.9 % of the virtual centers have another one within 6.4."""
_MAX_UNSURE = 16
"""Virtual centers alone within reach up to which comparing them with all is faster than a tree."""
_GROUP_RESIDUES = 16384
"""Residues encoded in one pass: few enough that their arrays stay in the processor's cache."""
_NETWORK_COLUMNS = 2048
"""Residues per pass of the network: with so few, BLAS takes one thread, as a second would cost more than it brings."""
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
    """`encode_3di` of each chain, many in one pass."""
    encoded: list[tuple[str, np.ndarray]] = []
    group: list[np.ndarray] = []
    for chain in chains:
        if group and sum(map(len, group)) + len(chain) > _GROUP_RESIDUES:
            encoded += _encode_group(group)
            group = []
        group.append(chain)
    return encoded + (_encode_group(group) if group else [])


def _encode_group(chains: Sequence[np.ndarray]) -> list[tuple[str, np.ndarray]]:
    lengths = np.array([len(chain) for chain in chains], dtype=np.int64)
    stops = np.cumsum(lengths)
    num_residues = int(stops[-1])
    states = np.full(num_residues, INVALID_STATE, dtype=np.int64)
    computed = np.zeros(num_residues, dtype=bool)
    if num_residues >= 3:
        n, ca, c, _, cb = components(np.concatenate(chains))
        with np.errstate(invalid="ignore", divide="ignore"):
            # A sum is finite only where every term is.
            complete = np.isfinite((n + ca + c).sum(axis=0))
            candidate = complete.copy()
            filled = stops[lengths > 0]
            candidate[filled - lengths[lengths > 0]] = candidate[filled - 1] = False
            partner = _partners(_centers(n, ca, c, cb), candidate, stops)
            # The one inner residue of a chain of three has no partner; Foldseek then takes the first residue.
            lonely = stops[lengths == 3] - 2
            partner[lonely] = lonely - 1
            surrounded = complete[:-2] & complete[1:-1] & complete[2:]
            computed[1:-1] = candidate[1:-1] & surrounded & surrounded.take(partner[1:-1] - 1, mode="clip")
            computed[lonely] = surrounded[lonely - 1]
            states[1:-1] = _states(_descriptors(ca, partner, lonely))
        states[~computed] = INVALID_STATE
    letters = _LETTERS[states].tobytes().decode()
    return [(letters[e - n : e], computed[e - n : e]) for n, e in zip(lengths.tolist(), stops.tolist(), strict=True)]


def virtual_centers(coordinates: np.ndarray) -> np.ndarray:
    """float64 [N, 3]: the point beside each residue whose nearest other such point defines the partner residue."""
    n, ca, c, _, cb = components(coordinates)
    return _centers(n, ca, c, cb).T


def _centers(n: np.ndarray, ca: np.ndarray, c: np.ndarray, cb: np.ndarray) -> np.ndarray:
    """`virtual_centers` of atoms [3, N] as float64 [3, N]."""
    missing = np.flatnonzero(~np.isfinite(cb.sum(axis=0)))
    if len(missing):
        cb = cb.copy()
        cb[:, missing] = _ideal_cb(n[:, missing], ca[:, missing], c[:, missing])
    to_cb = cb - ca
    normal = normalized(cross(to_cb, n - ca))
    cosine, sine = np.cos(VIRTUAL_CENTER_ANGLE), np.sin(VIRTUAL_CENTER_ANGLE)
    rotated = to_cb * cosine + cross(normal, to_cb) * sine + normal * (dot(normal, to_cb) * (1 - cosine))
    return rotated * VIRTUAL_CENTER_DISTANCE + ca


def _ideal_cb(n: np.ndarray, ca: np.ndarray, c: np.ndarray) -> np.ndarray:
    """CB of tetrahedral geometry as Foldseek places it; float64 [3, M] like the arguments."""
    to_c = normalized(c - ca)
    bisector = normalized(normalized(n - ca) + to_c / 3.0)
    normal = normalized(cross(to_c, bisector))
    direction = (np.sqrt(8) / 3.0) * (-bisector / 2.0 - normal * np.sqrt(3) / 2.0) - to_c / 3.0
    return direction * CA_CB_DISTANCE + ca


def _partners(centers: np.ndarray, candidate: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """int64 [N]: row of each candidate's nearest other candidate in its chain; its own row where there is none."""
    partner = np.arange(len(candidate))
    rows = np.flatnonzero(candidate)
    points = centers[:, rows]
    bounds = [0, *np.searchsorted(rows, stops).tolist()]
    for begin, end in itertools.pairwise(bounds):
        if end - begin >= 2:
            partner[rows[begin:end]] = rows[begin:end][_nearest_others(points[:, begin:end])]
    return partner


def _nearest_others(points: np.ndarray) -> np.ndarray:
    """int64 [P]: number of the point nearest to each of P >= 2 points (float64 [3, P]) but itself."""
    blocks = DistanceBlocks(points, _REACH)
    num_points = points.shape[1]
    nearest = np.empty(num_points, dtype=np.int64)
    for start, stop, first, distances in blocks:
        width = distances.shape[1]
        distances.ravel()[start - first :: width + 1][: stop - start] = np.inf
        distances.argmin(axis=1, out=nearest[start:stop])
        nearest[start:stop] += first
    if blocks.order is None:
        return nearest
    points = points[:, blocks.order]
    apart = points - points[:, nearest]
    # Beyond reach there may be points that no block held; a point alone in its block found itself.
    alone = nearest == np.arange(num_points)
    unsure = np.flatnonzero(alone | (dot(apart, apart) >= _REACH**2 - blocks.error))
    if len(unsure) > _MAX_UNSURE:
        _, index = cKDTree(points.T).query(points.T[unsure], k=2)
        nearest[unsure] = np.where(index[:, 0] == unsure, index[:, 1], index[:, 0])
    elif len(unsure):
        distances = blocks.to_all(unsure)
        distances[np.arange(len(unsure)), unsure] = np.inf
        nearest[unsure] = distances.argmin(axis=1)
    result = np.empty_like(nearest)
    result[blocks.order] = blocks.order[nearest]
    return result


def _descriptors(ca: np.ndarray, partner: np.ndarray, lonely: np.ndarray) -> np.ndarray:
    """float32 [10, N - 2]: angles between the CA segments around rows 1..N-2 and their partners, distance, separation.

    Args:
        ca: float64 [3, N].
        lonely: int64: rows whose partner is their chain's first residue, before which the last one is taken.
    """
    i, j = np.arange(1, len(partner) - 1), partner[1:-1]
    steps = np.empty_like(ca)
    steps[:, :-1] = normalized(ca[:, 1:] - ca[:, :-1])
    steps[:, -1] = np.nan
    u1, u2 = steps[:, :-2], steps[:, 1:-1]
    u3, u4 = steps.take(j - 1, axis=1, mode="clip"), steps.take(j, axis=1, mode="clip")
    u3[:, lonely - 1] = normalized(ca[:, lonely - 1] - ca[:, lonely + 1])
    across = ca.take(j, axis=1, mode="clip") - ca[:, 1:-1]
    distance = length(across)
    u5 = across / np.maximum(distance, TINY)
    separation = j - i
    descriptors = np.empty((10, len(i)), dtype=np.float32)
    pairs = ((u1, u2), (u3, u4), (u1, u5), (u3, u5), (u1, u4), (u2, u3), (u1, u3))
    for row, (first, second) in zip(descriptors, pairs, strict=False):
        row[:] = dot(first, second)
    descriptors[7] = distance
    descriptors[8] = np.clip(separation, -4, 4)
    descriptors[9] = np.copysign(np.log(np.abs(separation) + 1), separation)
    return descriptors


def _states(descriptors: np.ndarray) -> np.ndarray:
    """int64 [M]: nearest centroid of the latent position of each column of descriptors (float32 [10, M])."""
    num_columns = descriptors.shape[1]
    states = np.empty(num_columns, dtype=np.int64)
    # Squared distances but for |hidden|^2, which is the same for all centroids.
    factors, squares = -2 * CENTROIDS.T, (CENTROIDS**2).sum(1)
    for begin in range(0, num_columns, _NETWORK_COLUMNS):
        hidden = descriptors[:, begin : begin + _NETWORK_COLUMNS]
        for weight, bias, has_relu in network_layers():
            hidden = weight.T @ hidden
            hidden += bias[:, None]
            if has_relu:
                np.maximum(hidden, 0, out=hidden)
        states[begin : begin + _NETWORK_COLUMNS] = (hidden.T @ factors + squares).argmin(1)
    return states


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
