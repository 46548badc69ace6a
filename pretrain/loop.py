"""The training loop: pools -> losses -> weights -> figures and checkpoints, for any stage."""

import logging
import math
import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Protocol

import torch

from configs.train import TrainConfig
from pretrain.checkpoints import Checkpoint
from pretrain.engine import Engine
from pretrain.feed import Fed, prefetch
from pretrain.run_folder import RunFolder, Wish
from pretrain.sampler import Position, keyed_uniform
from pretrain.saver import CannotGoOn, Saver
from pretrain.schedule import learning_rate_factor
from pretrain.stages.protocol import Stage

VALIDATION = "validation_"
"""Before the names of held-out losses in metrics.jsonl."""
log = logging.getLogger("pretrain.loop")


class Meter(Protocol):
    """Further figures of a step."""

    def figures(self, num_tokens: int, seconds: float) -> dict[str, float]:
        """What to log beside the losses of a step with so many tokens (all ranks) that took so long."""
        ...


@dataclass
class Progress:
    """Where training stands: all that a checkpoint must remember beside weights and optimizer."""

    step: int = 0
    position: Position = field(default_factory=Position)
    tokens: int = 0
    """Trained on since the first step."""
    seconds: float = 0.0
    """Of training, over all restarts."""
    skipped: int = 0
    """Updates left out because loss or gradient was not finite."""
    skipped_in_a_row: int = 0
    validation: dict[str, float] = field(default_factory=dict)
    """Held-out losses at the last checkpoint."""

    @classmethod
    def of(cls, checkpoint: Checkpoint | None) -> "Progress":
        if checkpoint is None:
            return cls()
        state = checkpoint.state
        position = Position(**state["position"])
        return cls(state["step"], position, state["tokens"], state["seconds"], state.get("skipped", 0))


def train(
    config: TrainConfig,
    stage: Stage,
    engine: Engine,
    run: RunFolder,
    progress: Progress,
    meter: Meter | None = None,
) -> Progress:
    """Train from `progress` to the configured number of steps, or until the run is asked to stop.

    Every rank calls it; only rank 0's `run` writes. The last step always writes a checkpoint.

    Raises:
        CannotGoOn: the last checkpoint could not be written, or too many updates in a row were skipped.
    """
    world, total = engine.world, config.optimizer.steps
    feed = prefetch(stage.batches(progress.position, world.rank, world.size))
    with closing(feed), closing(Saver(config, engine, run, stage.data_sha256)) as saver:
        while progress.step < total:
            progress.step += 1
            clock = StepClock()
            rate = engine.set_learning_rate(learning_rate_factor(progress.step, config.optimizer))
            figures = []
            for _ in range(config.data.pools_per_step):
                fed = clock.wait_for(feed)
                seed_everything(config.seed, progress.position, world.rank)
                losses = stage.loss(engine.module, fed.batch, progress.step)
                engine.backward(losses.total(world.size))
                engine.step()
                figures.append(losses.logged())
                clock.num_tokens += fed.num_tokens
                progress.position = fed.position
            count_step(progress, clock, engine, run, config.engine.max_skipped)
            row = row_of(progress, stage.pools_per_epoch, figures, clock, rate, engine.grad_norm, meter)
            wish = engine.max_over_ranks(run.wish)
            last = progress.step == total or wish == Wish.STOP
            saves = last or wish == Wish.SAVE or progress.step % config.checkpoint.every == 0
            if saves:
                progress.validation = stage.validate(engine.module, world.rank, world.size)
                row |= {f"{VALIDATION}{name}": value for name, value in progress.validation.items()}
            if saves or progress.step % config.tracking.every == 0:
                run.log(row)
            if saves:
                saver.save(progress, last)
            if last:
                break
    return progress


def count_step(progress: Progress, clock: "StepClock", engine: Engine, run: RunFolder, max_skipped: int) -> None:
    """Note what a step did, and say so where its update was skipped.

    Raises:
        CannotGoOn: more than `max_skipped` in a row.
    """
    progress.tokens += clock.num_tokens
    progress.seconds += clock.seconds
    if engine.updated:
        progress.skipped_in_a_row = 0
        return
    run.update_skipped(progress.step)
    progress.skipped += 1
    progress.skipped_in_a_row += 1
    if progress.skipped_in_a_row > max_skipped:
        raise CannotGoOn(
            f"step {progress.step}: loss or gradient was not finite {progress.skipped_in_a_row} times in a row, allowed"
            f" engine.max_skipped={max_skipped}; lower optimizer.trunk_lr and head_lr, or look at the data"
        )


@dataclass
class StepClock:
    """Times one step, and in it the wait for data."""

    begun: float = field(default_factory=time.perf_counter)
    wait_seconds: float = 0.0
    num_tokens: int = 0

    def wait_for(self, feed: Iterator[Fed]) -> Fed:
        """The next share, its waiting time counted."""
        begun = time.perf_counter()
        fed = next(feed)
        self.wait_seconds += time.perf_counter() - begun
        return fed

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.begun


def row_of(
    progress: Progress,
    pools_per_epoch: int,
    figures: list[dict[str, float]],
    clock: StepClock,
    rate: float,
    grad_norm: float,
    meter: Meter | None = None,
) -> dict[str, float]:
    """One row of metrics.jsonl; losses are means over the step's pools, `epoch` is how much of the data was seen.

    Figures that are no number are left out: after a skipped update, loss or gradient norm.
    """
    seconds = clock.seconds
    names = dict.fromkeys(name for each in figures for name in each)
    means = {name: statistics.fmean(each[name] for each in figures if name in each) for name in names}
    row = {
        "step": progress.step,
        **means,
        "lr": rate,
        "grad_norm": grad_norm,
        "epoch": round(progress.position.epoch + progress.position.pool / pools_per_epoch, 4),
        "seconds": round(seconds, 4),
        "tokens": progress.tokens,
        "tokens_per_second": round(clock.num_tokens / seconds, 1),
        "loader_wait_fraction": round(clock.wait_seconds / seconds, 4),
        "skipped": progress.skipped,
        **(meter.figures(clock.num_tokens, seconds) if meter else {}),
    }
    return {name: value for name, value in row.items() if math.isfinite(value)}


def seed_everything(seed: int, position: Position, rank: int) -> None:
    """Make torch's generator a function of where the data stands, so that no generator state need be saved."""
    key = keyed_uniform(seed, position.epoch, torch.tensor([position.pool]).numpy(), rank)
    torch.manual_seed(int(key[0] * 2**53))
