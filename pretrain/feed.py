"""The road from shards to one rank's batches: plan, read, collate, one batch ahead in a thread."""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from configs.errors import UserError
from configs.train import DataConfig
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


def pool_stream(
    plan_of: Callable[[int], Plan],
    make: Callable[[list[Crop], int], Any],
    position: Position,
    rank: int,
    world_size: int,
) -> Iterator[Fed]:
    """This rank's shares of the pools from `position` on, epoch after epoch without end.

    Args:
        plan_of: the pools of an epoch.
        make: one rank's crops and the epoch -> batch.
    """
    while True:
        plan = plan_of(position.epoch)
        for number in range(position.pool, len(plan)):
            pool = plan[number]
            batch = make(rank_crops(pool, rank, world_size), position.epoch)
            num_tokens = sum(crop.length + SPECIAL_TOKENS for pack in pool for crop in pack)
            yield Fed(batch, Position(position.epoch, number).after(len(plan)), num_tokens)
        position = Position(position.epoch + 1, 0)


def epoch_planner(reader: ShardReader, config: DataConfig, seed: int) -> Callable[[int], Plan]:
    """A function from the epoch to its pools."""
    samples, residues = chosen_chains(reader, config)
    return lambda epoch: plan_epoch(residues, seed, epoch, config, samples)


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
