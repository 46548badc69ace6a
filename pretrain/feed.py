"""The road from shards to one rank's batches: plan, read, collate, one batch ahead in a thread."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from configs.errors import UserError
from configs.training_data import DataConfig
from data_pipeline.reader import ShardReader
from pretrain.sampler import SPECIAL_TOKENS, Crop, Plan, Position, plan_epoch, rank_crops

T = TypeVar("T")


@dataclass(frozen=True)
class Fed:
    """One rank's share of a pool, and where the data stands after it."""

    batch: Any
    """What the stage's `loss` takes."""
    position: Position
    """The next pool."""
    num_tokens: int
    """Tokens of the whole pool, all ranks."""


def chosen_chains(reader: ShardReader, config: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and lengths (int64 [S] each) of the chains that take part: the split, or its high-quality subset.

    Raises:
        UserError: the shards have no such split, or nothing is left of it.
    """
    if config.split not in reader.splits:
        raise UserError(f"data.split {config.split!r} is not in {config.shards}; allowed: {', '.join(reader.splits)}")
    index = reader.index(config.split)
    keep = np.asarray(index.high_quality, dtype=bool) if config.high_quality_only else np.ones(len(index), dtype=bool)
    if not keep.any():
        what = "high-quality chains" if config.high_quality_only else "chains"
        raise UserError(f"data: split {config.split!r} of {config.shards} holds no {what}; build more or another split")
    return np.flatnonzero(keep), np.asarray(index.residues, dtype=np.int64)[keep]


def open_shards(config: DataConfig) -> ShardReader:
    """The reader of a run's shards, local or remote.

    Raises:
        UserError: there are none, or they cannot be reached.
    """
    return ShardReader(config.shards, config.verify, config.cache)


@dataclass(frozen=True)
class EpochPlanner:
    """From the epoch to its pools; knows the reader, so that a stream can have remote shards fetched ahead."""

    reader: ShardReader
    config: DataConfig
    seed: int
    samples: np.ndarray
    residues: np.ndarray
    """int64 [S] each: what `chosen_chains` gives."""

    def __call__(self, epoch: int) -> Plan:
        shards = None
        if self.config.shuffle_window_shards is not None:
            shards = self.reader.index(self.config.split).shard[self.samples]
        return plan_epoch(self.residues, self.seed, epoch, self.config, self.samples, shards)


def epoch_planner(reader: ShardReader, config: DataConfig, seed: int) -> EpochPlanner:
    """A function from the epoch to its pools."""
    return EpochPlanner(reader, config, seed, *chosen_chains(reader, config))


def pool_stream(
    plan_of: Callable[[int], Plan],
    make: Callable[[list[Crop], int], Any],
    position: Position,
    rank: int,
    world_size: int,
    shards: tuple[ShardReader, str] | None = None,
) -> Iterator[Fed]:
    """This rank's shares of the pools from `position` on, epoch after epoch without end.

    Args:
        plan_of: the pools of an epoch.
        make: one rank's crops and the epoch -> batch.
        shards: reader and split whose remote shards are fetched ahead; an `EpochPlanner` brings its own.
    """
    if shards is None and isinstance(plan_of, EpochPlanner):
        shards = plan_of.reader, plan_of.config.split
    while True:
        plan = plan_of(position.epoch)
        ahead = None
        if shards is not None and shards[0].shards_ahead:
            ahead = FetchAhead(*shards, plan, position.pool, rank, world_size)
        for number in range(position.pool, len(plan)):
            if ahead is not None:
                ahead.before(number)
            pool = plan[number]
            batch = make(rank_crops(pool, rank, world_size), position.epoch)
            num_tokens = sum(crop.length + SPECIAL_TOKENS for pack in pool for crop in pack)
            yield Fed(batch, Position(position.epoch, number).after(len(plan)), num_tokens)
        position = Position(position.epoch + 1, 0)


class FetchAhead:
    """Walks through a rank's pools in front of the training and asks for the shards that are not here yet.

    It stops where as many shards as the reader allows were asked for by pools that are still to come.
    """

    def __init__(
        self, reader: ShardReader, split: str, plan: Plan, first_pool: int, rank: int, world_size: int
    ) -> None:
        self._reader = reader
        self._split = split
        self._plan = plan
        self._rank, self._world_size = rank, world_size
        self._next = first_pool
        self._asked: deque[tuple[int, int]] = deque()
        """(pool, shards that it was the first to ask for)."""

    def before(self, pool: int) -> None:
        """To be called before a pool is read."""
        while self._asked and self._asked[0][0] < pool:
            self._asked.popleft()
        while self._next < len(self._plan) and self._waiting() < self._reader.shards_ahead:
            crops = rank_crops(self._plan[self._next], self._rank, self._world_size)
            far = self._reader.prefetch(self._split, [crop.sample for crop in crops])
            if far:
                self._asked.append((self._next, far))
            self._next += 1

    def _waiting(self) -> int:
        return sum(far for _, far in self._asked)


def prefetch(source: Iterator[T], depth: int = 2) -> Iterator[T]:
    """The same values, made up to `depth` ahead by a thread; closing the iterator ends the thread."""
    ready: queue.Queue = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def offer(message: tuple[str, object]) -> bool:
        while not stop.is_set():
            try:
                ready.put(message, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for value in source:
                if not offer(("value", value)):
                    return
            offer(("end", None))
        except BaseException as error:
            offer(("error", error))

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stop.set()
        thread.join(timeout=5)
