"""Which chains stand together: an epoch as pools of packs, a pure function of (seed, epoch), whatever the world size.

A *pack* is a handful of cropped chains within one token budget; a *pool* is `packs_per_pool` packs, forwarded together
across all ranks, so everything that depends on which residues stand together is fixed before ranks are assigned.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from configs.train import DataConfig

SPECIAL_TOKENS = 2
"""Tokens a chain costs beside its residues: `<cls>` and `<eos>`."""
_WINDOW_CHAINS = 4096
_CARRY_BELOW = 0.98


class Crop(NamedTuple):
    """A stretch of one chain."""

    sample: int
    """Number of the chain in its split."""
    start: int
    length: int
    """Residues."""


Pack = tuple[Crop, ...]
Pool = tuple[Pack, ...]


@dataclass(frozen=True)
class Position:
    """Where the data stands: the next pool to train on."""

    epoch: int = 0
    pool: int = 0

    def after(self, num_pools: int) -> "Position":
        """The position one pool later, in an epoch of `num_pools`."""
        return Position(self.epoch, self.pool + 1) if self.pool + 1 < num_pools else Position(self.epoch + 1, 0)


@dataclass(frozen=True)
class Plan(Sequence):
    """The pools of one epoch, kept as flat arrays: a sequence of `Pool`."""

    samples: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    """int64 [C] each: the crops in order of packs."""
    packs: np.ndarray
    """int64 [K + 1]: pack k holds the crops packs[k] .. packs[k + 1]."""
    packs_per_pool: int

    def __len__(self) -> int:
        return (len(self.packs) - 1) // self.packs_per_pool

    def __getitem__(self, pool: int) -> Pool:
        if not 0 <= pool < len(self):
            raise IndexError(pool)
        first = pool * self.packs_per_pool
        return tuple(self._pack(k) for k in range(first, first + self.packs_per_pool))

    def _pack(self, k: int) -> Pack:
        part = slice(self.packs[k], self.packs[k + 1])
        columns = (self.samples[part].tolist(), self.starts[part].tolist(), self.lengths[part].tolist())
        return tuple(map(Crop, *columns))


def plan_epoch(
    residues: np.ndarray, seed: int, epoch: int, config: DataConfig, samples: np.ndarray | None = None
) -> Plan:
    """Shuffle, crop, pack and pool the chains of one epoch; the same arguments give the same pools.

    Every chain is seen exactly once. The last pool may hold less than its budget: packs are halved until their number
    is whole; only where there are fewer chains than packs in a pool do chains repeat, so that no rank stands empty.

    Args:
        residues: int [S], length of every chain.
        samples: int [S], the chains' numbers in their split (default 0..S-1); crops are keyed by them.
    """
    assert len(residues), "an epoch needs at least one chain"
    samples = np.arange(len(residues)) if samples is None else np.asarray(samples, dtype=np.int64)
    residues = np.asarray(residues, dtype=np.int64)
    lengths = np.minimum(residues, config.max_residues)
    starts = (keyed_uniform(seed, epoch, samples) * (residues - lengths + 1)).astype(np.int64)
    shuffle = np.random.Generator(np.random.PCG64([seed, epoch]))
    packs = _pack_windows(lengths + SPECIAL_TOKENS, shuffle.permutation(len(residues)), config.pack_tokens)
    packs = [packs[k] for k in shuffle.permutation(len(packs))]
    packs = _whole_pools(packs, config.packs_per_pool)
    order = np.fromiter((i for pack in packs for i in pack), dtype=np.int64)
    bounds = np.concatenate([[0], np.cumsum([len(pack) for pack in packs])])
    return Plan(samples[order], starts[order], lengths[order], bounds, config.packs_per_pool)


def rank_crops(pool: Pool, rank: int, world_size: int) -> list[Crop]:
    """The crops of one rank's share of a pool: its packs `rank::world_size`, end to end."""
    return [crop for pack in pool[rank::world_size] for crop in pack]


def keyed_uniform(seed: int, epoch: int, samples: np.ndarray, residues: np.ndarray | int = 0) -> np.ndarray:
    """float64 in [0, 1) for each (seed, epoch, sample, residue): SplitMix64 over the four, no state and no order."""
    key = np.uint64(seed % (1 << 64))
    for part in (np.uint64(epoch), samples.astype(np.uint64), np.asarray(residues).astype(np.uint64)):
        key = _mix(key ^ _mix(part))
    return (key >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(value: np.ndarray | np.uint64) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014)."""
    with np.errstate(over="ignore"):
        value = np.asarray(value, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))


def _pack_windows(tokens: np.ndarray, order: np.ndarray, budget: int) -> list[list[int]]:
    """Pack each window of the shuffled order; chains of ill-filled packs go on to the next window."""
    packs: list[list[int]] = []
    carried: list[int] = []
    for begin in range(0, len(order), _WINDOW_CHAINS):
        window = carried + order[begin : begin + _WINDOW_CHAINS].tolist()
        done = list(_best_fit(tokens, window, budget))
        last = begin + _WINDOW_CHAINS >= len(order)
        carried = []
        for pack in done:
            if last or tokens[pack].sum() >= _CARRY_BELOW * budget:
                packs.append(pack)
            else:
                carried += pack
    return packs


def _best_fit(tokens: np.ndarray, chains: list[int], budget: int) -> Iterator[list[int]]:
    """Best-fit decreasing: longest chain first, each into the fullest pack that still takes it."""
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []
    for chain in sorted(chains, key=lambda i: (-tokens[i], i)):
        need = int(tokens[chain])
        at = bisect_left(room, (need, -1))
        if at < len(room):
            left, pack = room.pop(at)
        else:
            left, pack = budget, len(packs)
            packs.append([])
        packs[pack].append(chain)
        insort(room, (left - need, pack))
    yield from packs


def _whole_pools(packs: list[list[int]], packs_per_pool: int) -> list[list[int]]:
    """Halve the packs of the last, incomplete pool until it is whole; where nothing can be halved, repeat packs."""
    whole = len(packs) // packs_per_pool * packs_per_pool
    last = packs[whole:]
    if not last:
        return packs
    num_given = len(last)
    while len(last) < packs_per_pool:
        most = max(range(len(last)), key=lambda k: len(last[k]))
        if len(last[most]) < 2:
            last.append(last[len(last) % num_given])
        else:
            last.append(last[most][1::2])
            last[most] = last[most][0::2]
    return packs[:whole] + last
