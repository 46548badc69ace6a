"""The training loop: pools -> losses -> weights -> figures and checkpoints, for any stage."""

import logging
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field

import torch

from configs.loading import dump_config
from configs.train import TrainConfig
from pretrain import checkpoints
from pretrain.checkpoints import Checkpoint
from pretrain.engine import Engine
from pretrain.feed import Fed, prefetch
from pretrain.run_folder import RunFolder
from pretrain.sampler import Position, keyed_uniform
from pretrain.schedule import learning_rate_factor
from pretrain.stages.protocol import Stage

log = logging.getLogger("pretrain.loop")


@dataclass
class Progress:
    """Where training stands: all that a checkpoint must remember beside weights and optimizer."""

    step: int = 0
    position: Position = field(default_factory=Position)
    tokens: int = 0
    """Trained on since the first step."""
    seconds: float = 0.0
    """Of training, over all restarts."""

    @classmethod
    def of(cls, checkpoint: Checkpoint | None) -> "Progress":
        if checkpoint is None:
            return cls()
        state = checkpoint.state
        return cls(state["step"], Position(**state["position"]), state["tokens"], state["seconds"])


def train(config: TrainConfig, stage: Stage, engine: Engine, run: RunFolder, progress: Progress) -> Progress:
    """Train from `progress` to the configured number of steps, or until the run is asked to stop.

    Every rank calls it; only rank 0's `run` writes. The last step always writes a checkpoint.
    """
    world, total = engine.world, config.optimizer.steps
    with closing(prefetch(stage.batches(progress.position, world.rank, world.size))) as feed:
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
            progress.tokens += clock.num_tokens
            progress.seconds += clock.seconds
            if progress.step % config.tracking.every == 0 or progress.step == total:
                run.log(row_of(progress, stage.pools_per_epoch, figures, clock, rate, engine.grad_norm))
            stopping = engine.any_rank(run.stop_requested)
            if progress.step % config.checkpoint.every == 0 or progress.step == total or stopping:
                save(config, engine, run, progress, stage.data_sha256)
            if stopping:
                break
    return progress


def save(config: TrainConfig, engine: Engine, run: RunFolder, progress: Progress, data_sha256: str) -> None:
    """Write a checkpoint by all ranks, then drop the oldest beyond checkpoint.keep."""
    state = {
        "step": progress.step,
        "position": {"epoch": progress.position.epoch, "pool": progress.position.pool},
        "tokens": progress.tokens,
        "seconds": round(progress.seconds, 3),
        "optimizer_steps": engine.optimizer_steps,
        "schedule": {"warmup_steps": config.optimizer.warmup_steps, "steps": config.optimizer.steps},
        "random": {"seed": config.seed, "rule": "generators are seeded by (seed, position, rank) before every pool"},
        "precision": config.engine.precision,
        "data_sha256": data_sha256,
        "written_by": {"world_size": engine.world.size, "zero_stage": config.engine.zero_stage},
    }
    begun = time.perf_counter()
    path = checkpoints.save(
        run.path, progress.step, dump_config(config), state, engine.gather(), engine.world.rank, engine.exchange
    )
    run.checkpoint_written(path, time.perf_counter() - begun, config.checkpoint.keep)


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
) -> dict[str, float]:
    """One row of metrics.jsonl; losses are means over the step's pools, `epoch` is how much of the data was seen."""
    seconds = clock.seconds
    means = {name: sum(each[name] for each in figures) / len(figures) for name in figures[0]}
    return {
        "step": progress.step,
        **means,
        "lr": rate,
        "grad_norm": grad_norm,
        "epoch": round(progress.position.epoch + progress.position.pool / pools_per_epoch, 4),
        "seconds": round(seconds, 4),
        "tokens": progress.tokens,
        "tokens_per_second": round(clock.num_tokens / seconds, 1),
        "loader_wait_fraction": round(clock.wait_seconds / seconds, 4),
    }


def seed_everything(seed: int, position: Position, rank: int) -> None:
    """Make torch's generator a function of where the data stands, so that no generator state need be saved."""
    key = keyed_uniform(seed, position.epoch, torch.tensor([position.pool]).numpy(), rank)
    torch.manual_seed(int(key[0] * 2**53))
