"""Which chains stand together: an epoch as pools of packs, a pure function of (seed, epoch), whatever the world size.

A *pack* is a handful of cropped chains within one token budget; a *pool* is `packs_per_pool` packs, forwarded together
across all ranks, so everything that depends on which residues stand together is fixed before ranks are assigned.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from configs.training_data import DataConfig

SPECIAL_TOKENS = 2
"""Tokens a chain costs beside its residues: `<cls>` and `<eos>`."""
KEYED_BITS = 53
"""Random bits of a keyed number: as many as a float64 holds."""
_UNUSED_BITS = np.uint64(64 - KEYED_BITS)
_STRETCH_CHAINS = 4096
_CARRY_BELOW = 0.98
_ORDER_SPREAD = 0.5
"""Packing takes chains by length times a number drawn anew each epoch from 1 -+ half of this. By length alone the same
chains met in every epoch (of 1,000 real chains all pairs of a pack, now one in ten); packs stay as full."""
_ORDER_KEY = 2**62
"""Keyed numbers of this residue decide the order; no chain has so many."""


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
    residues: np.ndarray,
    seed: int,
    epoch: int,
    config: DataConfig,
    samples: np.ndarray | None = None,
    shards: np.ndarray | None = None,
) -> Plan:
    """Shuffle, crop, pack and pool the chains of one epoch; the same arguments give the same pools.

    Every chain is seen exactly once. The last pool may hold less than its budget: packs are halved until their number
    is whole; only where there are fewer chains than packs in a pool do chains repeat, so that no rank stands empty.

    With `config.shuffle_window_shards` chains are shuffled within windows of so many shards, the shards in shuffled
    order; the few chains that would leave a pack of their window ill filled go on to the next window.

    Args:
        residues: int [S], length of every chain.
        samples: int [S], the chains' numbers in their split (default 0..S-1); crops are keyed by them.
        shards: int [S], the shard of every chain; needed for windows of shards.
    """
    assert len(residues), "an epoch needs at least one chain"
    samples = np.arange(len(residues)) if samples is None else np.asarray(samples, dtype=np.int64)
    residues = np.asarray(residues, dtype=np.int64)
    lengths = np.minimum(residues, config.max_residues)
    starts = (keyed_uniform(seed, epoch, samples) * (residues - lengths + 1)).astype(np.int64)
    spread = 1 + _ORDER_SPREAD * (keyed_uniform(seed, epoch, samples, _ORDER_KEY) - 0.5)
    order = np.argsort(np.argsort(-(lengths + SPECIAL_TOKENS) * spread, kind="stable"))
    shuffle = np.random.Generator(np.random.PCG64([seed, epoch]))
    if config.shuffle_window_shards is None:
        windows = [shuffle.permutation(len(residues))]
    else:
        assert shards is not None, "windows of shards need the shard of every chain"
        windows = _shard_windows(shards, config.shuffle_window_shards, shuffle)
    packs: list[list[int]] = []
    carried: list[int] = []
    for number, window in enumerate(windows):
        last = number == len(windows) - 1
        done, carried = _pack_window(lengths + SPECIAL_TOKENS, order, carried, window, config.pack_tokens, last)
        packs += [done[k] for k in shuffle.permutation(len(done))]
    packs = _whole_pools(packs, config.packs_per_pool)
    placed = np.fromiter((i for pack in packs for i in pack), dtype=np.int64)
    bounds = np.concatenate([[0], np.cumsum([len(pack) for pack in packs])])
    return Plan(samples[placed], starts[placed], lengths[placed], bounds, config.packs_per_pool)


def rank_crops(pool: Pool, rank: int, world_size: int) -> list[Crop]:
    """The crops of one rank's share of a pool: its packs `rank::world_size`, end to end."""
    return [crop for pack in pool[rank::world_size] for crop in pack]


def keyed_uniform(seed: int, epoch: int, samples: np.ndarray, residues: np.ndarray | int = 0) -> np.ndarray:
    """float64 in [0, 1) for each (seed, epoch, sample, residue): SplitMix64 over the four, no state and no order."""
    mixed = _mix(np.atleast_1d(np.asarray(residues)).astype(np.uint64))
    return (_mix(_sample_keys(seed, epoch, samples) ^ mixed) >> _UNUSED_BITS).astype(np.float64) * 2.0**-KEYED_BITS


def keyed_bits(seed: int, epoch: int, samples: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """uint64 below 2^KEYED_BITS for each residue of some crops, end to end.

    They are `keyed_uniform` times 2^KEYED_BITS for the residue's number in its chain, counted from 1.
    """
    begins = (starts + 1).tolist()
    ends = (starts + 1 + lengths).tolist()
    table = _mixed_residues(1 << max(12, max(ends).bit_length()))
    mixed = np.concatenate([table[begin:end] for begin, end in zip(begins, ends, strict=True)])
    mixed ^= _sample_keys(seed, epoch, samples).repeat(lengths)
    bits = _mix(mixed)
    bits >>= _UNUSED_BITS
    return bits


def _sample_keys(seed: int, epoch: int, samples: np.ndarray) -> np.ndarray:
    return _mix(_epoch_key(seed, epoch) ^ _mix(samples.astype(np.uint64)))


@lru_cache(maxsize=4)
def _epoch_key(seed: int, epoch: int) -> np.uint64:
    return _mix(np.array([seed % (1 << 64)], dtype=np.uint64) ^ _mix(np.array([epoch], dtype=np.uint64)))[0]


@lru_cache(maxsize=4)
def _mixed_residues(number: int) -> np.ndarray:
    """uint64 [number]: the mixed number of every residue below."""
    return _mix(np.arange(number, dtype=np.uint64))


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014) of each value; multiplication is modulo 2^64."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    shifted = values >> np.uint64(30)
    values ^= shifted
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= np.right_shift(values, np.uint64(27), out=shifted)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= np.right_shift(values, np.uint64(31), out=shifted)
    return values


def _shard_windows(shards: np.ndarray, width: int, shuffle: np.random.Generator) -> list[np.ndarray]:
    """The chains of each window of `width` shards, shuffled; the shards stand in shuffled order."""
    present, shard_of = np.unique(shards, return_inverse=True)
    window_of = np.empty(len(present), dtype=np.int64)
    window_of[shuffle.permutation(len(present))] = np.arange(len(present)) // width
    order = shuffle.permutation(len(shards))
    order = order[np.argsort(window_of[shard_of[order]], kind="stable")]
    sizes = np.bincount(window_of[shard_of])
    return np.split(order, np.cumsum(sizes)[:-1])


def _pack_window(
    tokens: np.ndarray, order: np.ndarray, carried: list[int], window: np.ndarray, budget: int, last: bool
) -> tuple[list[list[int]], list[int]]:
    """Pack a window's shuffled chains in stretches; chains of ill-filled packs go on to the next stretch.

    Args:
        order: int [S], every chain's place when chains are taken, about by falling length.
        carried: chains that come from the window before; they stay here, so that no shard is needed for long.
        last: no window follows.

    Returns:
        the packs, and the chains that go on to the next window.
    """
    packs: list[list[int]] = []
    strangers = set(carried)
    for begin in range(0, len(window), _STRETCH_CHAINS):
        done = list(_best_fit(tokens, order, carried + window[begin : begin + _STRETCH_CHAINS].tolist(), budget))
        at_end = begin + _STRETCH_CHAINS >= len(window)
        carried = []
        for pack in done:
            stay = at_end and (last or not strangers.isdisjoint(pack))
            if stay or tokens[pack].sum() >= _CARRY_BELOW * budget:
                packs.append(pack)
            else:
                carried += pack
    return packs, carried


def _best_fit(tokens: np.ndarray, order: np.ndarray, chains: list[int], budget: int) -> Iterator[list[int]]:
    """Best fit, long chains about first: each into the fullest pack that still takes it."""
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []
    for chain in sorted(chains, key=order.__getitem__):
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
