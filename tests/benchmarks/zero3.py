"""ZeRO-3 over two gloo ranks of one thread each: what it costs above DDP, and what the loop costs above a bare step.

ESM-2 35M with random weights and its three losses (teacher precomputed), float32, pools of two packs of 2,048 tokens of
real chains. Both ranks hold the engine and a DDP twin of the model, and step them in turn on the same batches; seconds
are CPU time of all ranks, all threads included:

* `cpu_time_over_ddp`: a step of our engine with ZeRO-3 over one of DDP with fused AdamW and the same gradient clipping;
  `cpu_time_over_ddp_mlm`: the same with the masked-language loss alone; `partitioned_fraction`: the share of parameters
  that are really divided;
* `loop_over_bare_step`: a step of the real training loop (data feed, figures, schedule, metrics.jsonl) over the
  engine's step on batches that are at hand; `loader_wait_fraction`: of the loop's wall time, the larger of the ranks.
"""

import argparse
import copy
import itertools
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from configs.train import TrainConfig
from pretrain import loop
from pretrain.batch import Batch
from pretrain.engine import Engine, World, build_engine, join_world, make_optimizer
from pretrain.run_folder import RunFolder, run_path
from pretrain.sampler import Position
from pretrain.stages.align import AlignStage
from tests.benchmarks._timing import report
from tests.benchmarks._training import real_config, start_ranks, wait_for_ranks, write_real_shards

ROUNDS, WARM_UP = 7, 3
"""DeepSpeed records the order of modules in the first two steps and uses it from the third on."""
LOOP_STEPS = 8


def exchange(value: Any) -> list[Any]:
    """Every rank's small value, on all ranks."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def ddp_step(stage: AlignStage, model: nn.Module, config: TrainConfig, world: World) -> Callable[[Batch], None]:
    """The same training step by torch alone."""
    wrapped = DistributedDataParallel(model)
    optimizer = make_optimizer(model, config.optimizer, world.device)

    def step(batch: Batch) -> None:
        optimizer.zero_grad(set_to_none=True)
        stage.loss(wrapped, batch, 1).total(world.size).backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip)
        optimizer.step()

    return step


def engine_step(stage: AlignStage, engine: Engine) -> Callable[[Batch], None]:
    def step(batch: Batch) -> None:
        engine.backward(stage.loss(engine.module, batch, 1).total(engine.world.size))
        engine.step()

    return step


def interleaved_ranks(
    contestants: dict[str, Callable[[Batch], None]], batches: list[Batch], rounds: int
) -> dict[str, float]:
    """Median CPU seconds of all ranks for one step of each, in turn, a barrier before each."""
    cpus: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(WARM_UP + rounds):
        for name, step in contestants.items():
            dist.barrier()
            begun = time.process_time()
            step(batches[number % len(batches)])
            spent = time.process_time() - begun
            if number >= WARM_UP:
                cpus[name].append(sum(exchange(spent)))
    return {name: statistics.median(values) for name, values in cpus.items()}


def over_ddp(config: TrainConfig, world: World, rounds: int) -> tuple[dict[str, Any], AlignStage, Engine]:
    stage = AlignStage(config)
    feed = stage.batches(Position(), world.rank, world.size)
    batches = [fed.batch for fed in itertools.islice(feed, 4)]
    twin = copy.deepcopy(stage.model)
    engine = build_engine(stage.model, config, world)
    engine.set_learning_rate(0.1)
    contestants = {"ddp": ddp_step(stage, twin, config, world), "zero3": engine_step(stage, engine)}
    seconds = interleaved_ranks(contestants, batches, rounds)
    sizes = [(p.ds_numel, p.ds_persist) for p in engine.module.parameters()]
    figures = {
        "cpu_time_over_ddp": seconds["zero3"] / seconds["ddp"],
        "cpu_seconds_ddp": seconds["ddp"],
        "cpu_seconds_zero3": seconds["zero3"],
        "partitioned_fraction": sum(n for n, persistent in sizes if not persistent) / sum(n for n, _ in sizes),
    }
    return figures, stage, engine


class TimedRun(RunFolder):
    """A run folder that, after each step of the loop, takes a bare step on the same kind of batch, and times both."""

    def __init__(self, path: Path, steps: int, rank: int, bare: Callable[[int], None]) -> None:
        super().__init__(path, steps, rank)
        self._bare = bare
        self._resumed = 0.0
        self.loop_seconds: list[float] = []
        self.bare_seconds: list[float] = []
        self.waits: list[float] = []

    def log(self, row: dict[str, float]) -> None:
        super().log(row)
        begun = time.process_time()
        self.loop_seconds.append(begun - self._resumed)
        self.waits.append(row["loader_wait_fraction"])
        self._bare(int(row["step"]) - 1)
        self._resumed = time.process_time()
        self.bare_seconds.append(self._resumed - begun)


def loop_against_bare(config: TrainConfig, stage: AlignStage, engine: Engine) -> dict[str, float]:
    """The loop's steps and bare ones alternate on the same batches; the checkpoint at the end is outside."""
    world = engine.world
    feed = stage.batches(Position(), world.rank, world.size)
    batches = [fed.batch for fed in itertools.islice(feed, config.optimizer.steps)]
    step = engine_step(stage, engine)
    path = run_path(config)
    path.mkdir(parents=True, exist_ok=True)
    run = TimedRun(path, config.optimizer.steps, world.rank, lambda number: step(batches[number]))
    run.begin(0)
    loop.train(config, stage, engine, run, loop.Progress())
    run.end("finished", config.optimizer.steps)
    # The first step also starts the feed and plans the epoch.
    mine = (run.loop_seconds[1:], run.bare_seconds[1:])
    every = exchange(mine)
    loops, bares = ([sum(rank) for rank in zip(*part, strict=True)] for part in zip(*every, strict=True))
    # Steps differ by the lengths of their chains: each is compared with the bare one on the same batch.
    ratios = [a / b for a, b in zip(loops, bares, strict=True)]
    waits = exchange(statistics.mean(run.waits[1:]))
    return {"loop_over_bare_step": statistics.median(ratios), "loader_wait_fraction": max(waits)}


def work(folder: Path, model: str, rounds: int) -> None:
    """What each rank does."""
    logging.getLogger("pretrain").setLevel(logging.ERROR)
    settings = {"engine__num_workers": 2, "trunk__model": model, "optimizer__steps": LOOP_STEPS}
    config = real_config(folder, **settings)
    world = join_world(config.engine)
    figures, stage, engine = over_ddp(config, world, rounds)
    figures |= loop_against_bare(config, stage, engine)
    del stage, engine
    mlm = real_config(folder, losses__structure=0, losses__contrast=0, **settings)
    alone, *_ = over_ddp(mlm, world, rounds)
    figures["cpu_time_over_ddp_mlm"] = alone["cpu_time_over_ddp"]
    if world.rank == 0:
        report("zero3", {**figures, "ranks": world.size, "model": model})
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="esm2_t12_35M_UR50D")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--rank-in", type=Path, help="internal: be one of the ranks, over the task in this folder")
    given = parser.parse_args()
    if given.rank_in:
        work(given.rank_in, given.model, given.rounds)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_real_shards(folder)
        ranks = start_ranks(
            "tests.benchmarks.zero3", ["--rank-in", name, "--model", given.model, "--rounds", str(given.rounds)], 2
        )
        wait_for_ranks(ranks, 1800)


if __name__ == "__main__":
    main()
