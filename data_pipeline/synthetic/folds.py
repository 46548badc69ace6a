"""Folding of synthetic chains: loop torsions are drawn until units pack without clashes."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data_pipeline.synthetic.backbone import chain_frames
from data_pipeline.synthetic.layout import Layout, Unit

LOOP_BASINS = np.array([(-65.0, -40.0), (-120.0, 130.0), (-70.0, 145.0), (57.0, 40.0)])
LOOP_WEIGHTS = np.array([0.25, 0.3, 0.33, 0.12])
"""Degrees and shares of the alpha, beta, polyproline and left-handed regions; the last is where glycine stands."""
LOOP_SPREAD = 12.0
"""Degrees around a basin's centre."""
MIN_CA_DISTANCE = 4.6
"""Angstrom between CA atoms more than two residues apart and not of one unit."""
MIN_CA_DISTANCE_JITTERED = 4.0
CONTACT_DISTANCE = 10.0
"""Angstrom between CA atoms that count as packed."""
NUM_DRAWS = 96
"""Loop conformations tried for each unit."""
NUM_LEADERS = 8
NUM_ROUNDS = 3
"""Rounds of small changes to the NUM_LEADERS best draws."""
CLASH_COST = 10.0
NUM_TRIES = 4
"""Sets of draws for one unit while every draw clashes."""
NUM_ATTEMPTS = 4
"""Fresh starts of a chain whose every draw clashed."""


@dataclass(frozen=True)
class Backbone:
    """A folded chain of N residues."""

    layout: Layout
    torsions: np.ndarray
    """float64 [N, 2]: phi and psi, degrees."""
    anchors: np.ndarray
    """float64 [units, 3, 3]: first, middle and last CA of each unit in the frame of the first unit's first residue."""


@dataclass
class _Growing:
    """The part of a chain placed so far, in the frame of the first unit's first residue."""

    torsions: np.ndarray
    alphas: np.ndarray
    rotation: np.ndarray
    """[3, 3] frame of the last residue."""


@dataclass(frozen=True)
class _Placed:
    """K candidates for the next part of a chain; the lowest cost is the best."""

    loops: np.ndarray
    following: np.ndarray
    """Torsions of the unit after the loop, the same for all."""
    alphas: np.ndarray
    rotations: np.ndarray
    """[K, 3, 3] frames of the last residue."""
    clashes: np.ndarray
    cost: np.ndarray


def fold(layout: Layout, rng: np.random.Generator, like: Backbone | None = None) -> Backbone:
    """Fold `layout`: compactly, or, given `like` (same number of units), with its units near those of `like`.

    Each unit follows its loop in the best of NUM_DRAWS draws. A chain that clashes is started again; the last attempt
    with the fewest clashes stands when all clash, which only very long chains reach.
    """
    best: tuple[int, Backbone] | None = None
    for _ in range(NUM_ATTEMPTS):
        clashes, backbone = _attempt(layout, rng, like)
        if best is None or clashes < best[0]:
            best = clashes, backbone
        if not clashes:
            break
    return best[1]


def jittered(torsions: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """`torsions` [N, 2] plus the largest of 1, 1/2, 1/4 and 0 times `noise` [N, 2] (degrees) that brings no clash."""
    scales = np.array([1.0, 0.5, 0.25])
    candidates = torsions + scales[:, None, None] * noise
    _, alphas = chain_frames(candidates)
    for candidate, alpha in zip(candidates, alphas, strict=True):
        if _distances(alpha).min() >= MIN_CA_DISTANCE_JITTERED:
            return candidate
    return torsions


def _attempt(layout: Layout, rng: np.random.Generator, like: Backbone | None) -> tuple[int, Backbone]:
    first = layout.units[0]
    rotation, alphas = chain_frames(first.torsions)
    chain = _Growing(first.torsions, alphas, rotation[-1])
    anchors, clashes = [alphas[_anchor_rows(first)]], 0
    for i in range(1, len(layout.units)):
        target = None if like is None else like.anchors[i]
        clashes += _grow(chain, layout.units[i], target, lambda i=i: _draw_like(like, i, layout.loops[i], rng), rng)
        anchors.append(chain.alphas[-layout.units[i].num_residues :][_anchor_rows(layout.units[i])])
    clashes += _grow(chain, None, None, lambda: _draw_loops(layout.loops[-1], rng), rng)
    clashes += _prepend_tail(chain, layout.loops[0], rng)
    return clashes, Backbone(layout, chain.torsions, np.stack(anchors))


def _anchor_rows(unit: Unit) -> list[int]:
    return [0, unit.num_residues // 2, unit.num_residues - 1]


def _grow(
    chain: _Growing,
    unit: Unit | None,
    target: np.ndarray | None,
    draw: Callable[[], np.ndarray],
    rng: np.random.Generator,
) -> int:
    """Append the best loop of `draw` with the unit after it; draws again while all clash; returns the clashes left."""
    best: tuple[int, _Placed, int] | None = None
    for _ in range(NUM_TRIES):
        placed = _refine(chain, draw(), unit, target, rng)
        row = int(np.argmin(placed.cost))
        if best is None or placed.clashes[row] < best[0]:
            best = int(placed.clashes[row]), placed, row
        if not best[0]:
            break
    clashes, placed, row = best
    chain.torsions = np.concatenate([chain.torsions, placed.loops[row], placed.following])
    chain.alphas = np.concatenate([chain.alphas, placed.alphas[row]])
    chain.rotation = chain.rotation @ placed.rotations[row]
    return clashes


def _refine(
    chain: _Growing, draws: np.ndarray, unit: Unit | None, target: np.ndarray | None, rng: np.random.Generator
) -> _Placed:
    """Place loops [K, n, 2] and, in further rounds, small changes of the best of them."""
    placed = _place(chain, draws, unit, target)
    for round_number in range(1, NUM_ROUNDS):
        leaders = placed.loops[np.argsort(placed.cost, kind="stable")[:NUM_LEADERS]]
        changed = leaders[rng.integers(NUM_LEADERS, size=NUM_DRAWS - NUM_LEADERS)]
        changed = changed + rng.normal(0.0, LOOP_SPREAD / round_number, size=changed.shape)
        placed = _place(chain, np.concatenate([leaders, changed]), unit, target)
    return placed


def _place(chain: _Growing, draws: np.ndarray, unit: Unit | None, target: np.ndarray | None) -> _Placed:
    """Put loops [K, n, 2] and the unit after them at the end of the chain."""
    loop = draws.shape[1]
    torsions, following = draws, np.empty((0, 2)) if unit is None else unit.torsions
    if unit is not None:
        torsions = np.concatenate([draws, np.broadcast_to(following[:1], (len(draws), 1, 2))], axis=1)
    rotations, origins = chain_frames(torsions, psi_before=chain.torsions[-1, 1])
    last = rotations[:, -1]
    if unit is not None:
        inner_rotations, inner = _unit_frames(unit)
        origins = np.concatenate([origins, inner[1:] @ np.swapaxes(last, 1, 2) + origins[:, -1:]], axis=1)
        last = last @ inner_rotations[-1]
    alphas = origins @ chain.rotation.T + chain.alphas[-1]
    distances = _between(alphas, chain.alphas)
    distances[:, :2, -2:] = np.inf
    clashes = (distances < MIN_CA_DISTANCE).sum(axis=(1, 2)) + _loop_clashes(alphas, loop)
    if target is None:
        spread = np.linalg.norm(alphas - chain.alphas.mean(axis=0), axis=-1).mean(axis=-1)
        contacts = (distances < CONTACT_DISTANCE).sum(axis=(1, 2)) / alphas.shape[1]
        cost = spread - 2.0 * contacts
    else:
        anchors = alphas[:, loop:][:, _anchor_rows(unit)]
        cost = np.linalg.norm(anchors - target, axis=-1).mean(axis=-1)
    return _Placed(draws, following, alphas, last, clashes, CLASH_COST * clashes + cost)


@functools.lru_cache(maxsize=256)
def _unit_frames(unit: Unit) -> tuple[np.ndarray, np.ndarray]:
    return chain_frames(unit.torsions)


def _prepend_tail(chain: _Growing, length: int, rng: np.random.Generator) -> int:
    """Put the loop before the first unit; returns its number of clashes."""
    tails = _draw_loops(length, rng)
    following = np.broadcast_to(chain.torsions[:1], (NUM_DRAWS, 1, 2))
    rotations, origins = chain_frames(np.concatenate([tails, following], axis=1))
    alphas = np.einsum("kji,knj->kni", rotations[:, -1], origins[:, :-1] - origins[:, -1:])
    distances = _between(alphas, chain.alphas)
    distances[:, -2:, :2] = np.inf
    clashes = (distances < MIN_CA_DISTANCE).sum(axis=(1, 2)) + _loop_clashes(alphas, length)
    best = int(np.argmin(clashes))
    chain.torsions = np.concatenate([tails[best], chain.torsions])
    chain.alphas = np.concatenate([alphas[best], chain.alphas])
    return int(clashes[best])


def _draw_loops(length: int, rng: np.random.Generator) -> np.ndarray:
    """float64 [NUM_DRAWS, length, 2], degrees."""
    basins = LOOP_BASINS[rng.choice(len(LOOP_BASINS), size=(NUM_DRAWS, length), p=LOOP_WEIGHTS)]
    return basins + rng.normal(0.0, LOOP_SPREAD, size=basins.shape)


def _draw_like(like: Backbone | None, unit: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """Draws for the loop before `unit`: free ones, every second one after the loop of `like` where that is given."""
    draws = _draw_loops(length, rng)
    if like is not None:
        draws[::2] = _loops_like(like, unit, length, rng)
    return draws


def _loops_like(like: Backbone, unit: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """float64 [NUM_DRAWS / 2, length, 2]: varied copies of the loop before `unit` of `like`, cut or extended to fit."""
    end = sum(like.layout.loops[: unit + 1]) + sum(u.num_residues for u in like.layout.units[:unit])
    loop = like.torsions[end - like.layout.loops[unit] : end]
    while len(loop) != length:
        place = int(rng.integers(len(loop)))
        loop = np.delete(loop, place, axis=0) if len(loop) > length else np.insert(loop, place, LOOP_BASINS[1], axis=0)
    return loop + rng.normal(0.0, LOOP_SPREAD / 2, size=(NUM_DRAWS // 2, length, 2))


def _loop_clashes(alphas: np.ndarray, loop: int) -> np.ndarray:
    """int64 [K]: clashes of the first `loop` of CA positions [K, n, 3] with each other and with the rest."""
    distances = _between(alphas[:, :loop], alphas)
    distances[:, np.abs(np.arange(loop)[:, None] - np.arange(alphas.shape[1])) <= 2] = np.inf
    return (distances < MIN_CA_DISTANCE).sum(axis=(1, 2))


def _distances(alphas: np.ndarray) -> np.ndarray:
    """CA distances [..., n, n], infinite for residues at most two apart."""
    distances = _between(alphas, alphas)
    position = np.arange(alphas.shape[-2])
    distances[..., np.abs(position[:, None] - position) <= 2] = np.inf
    return distances


def _between(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Distances [..., n, m] of points [..., n, 3] and [..., m, 3]."""
    products = first @ np.swapaxes(second, -1, -2)
    squares = (first**2).sum(-1)[..., :, None] + (second**2).sum(-1)[..., None, :] - 2.0 * products
    return np.sqrt(np.maximum(squares, 0.0, out=squares), out=squares)
