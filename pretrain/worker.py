"""What every worker process does, whoever started it: join the world, continue from the last good checkpoint, train."""

import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import torch.distributed as dist
import yaml

from configs.errors import UserError
from configs.loading import validate
from configs.train import TrainConfig
from pretrain import loop
from pretrain.checkpoints import Checkpoint, last_good, open_checkpoint, remove_unfinished
from pretrain.engine import Engine, World, build_engine, join_world
from pretrain.model.execution import apply_execution
from pretrain.run_folder import LOG, RunFolder, run_path
from pretrain.saver import CannotGoOn
from pretrain.stages import open_stage
from pretrain.stages.protocol import Stage
from pretrain.throughput import open_meter

log = logging.getLogger("pretrain.worker")


def run_worker(config: TrainConfig) -> dict[str, Any]:
    """Train as one of the workers; returns {"state", "step"}, or {"user_error"} when set-up shows a user's mistake."""
    world = join_world(config.engine)
    run = RunFolder(run_path(config), config.optimizer.steps, world.rank)
    _stop_on_sigterm(run)
    run.preempted = preempted
    here = at_world_size(config, world.size)
    prepared, problem = None, None
    try:
        checkpoint = agree_on_checkpoint(run.path, world)
        prepared = open_stage(here, checkpoint)
        apply_execution(prepared.model, here.engine, world.device)
    except UserError as error:
        problem = str(error)
    # Every rank hears of a rank's mistake here, so none waits in a collective that the others never reach.
    problems = _exchange(problem, world)
    if prepared is None or any(problems):
        return {"user_error": next(each for each in problems if each)}
    return _train(config, prepared, checkpoint, world, run)


def _train(
    config: TrainConfig, stage: Stage, checkpoint: Checkpoint | None, world: World, run: RunFolder
) -> dict[str, Any]:
    engine = start_engine(at_world_size(config, world.size), stage, checkpoint, world)
    progress = loop.Progress.of(checkpoint)
    meter = open_meter(at_world_size(config, world.size), stage.model)
    run.begin(progress.step)
    try:
        progress = loop.train(config, stage, engine, run, progress, meter)
    except CannotGoOn as error:
        run.end("failed", progress.step, str(error))
        return {"user_error": str(error)}
    except BaseException as error:
        run.end("failed", progress.step, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        raise
    state = "finished" if progress.step >= config.optimizer.steps else "stopped"
    run.end(state, progress.step)
    return {"state": state, "step": progress.step}


def start_engine(config: TrainConfig, stage: Stage, checkpoint: Checkpoint | None, world: World) -> Engine:
    """The engine of a stage, at its start or where a checkpoint stands."""
    if checkpoint is not None:
        from pretrain.canonical import load_weights

        load_weights(stage.model, checkpoint)
    stage.to(world.device)
    engine = build_engine(stage.model, config, world)
    if checkpoint is not None:
        engine.restore(checkpoint)
    return engine


def agree_on_checkpoint(run: Path, world: World) -> Checkpoint | None:
    """The last good checkpoint: rank 0 verifies, the others open the same one."""
    found = None
    if world.rank == 0:
        for folder in remove_unfinished(run):
            log.info("checkpoint %s removed: its writing or removal was cut off", folder.name)
        found = last_good(run)
    path = _exchange(str(found.path) if found else None, world)[0]
    if path is None:
        return None
    if world.rank == 0:
        log.info("continuing from %s", path)
    return found or open_checkpoint(path, verify=False)


def at_world_size(config: TrainConfig, size: int) -> TrainConfig:
    """The config of a run that at present has `size` workers; it may be more or fewer after a restart."""
    return config.model_copy(update={"engine": config.engine.model_copy(update={"num_workers": size})})


def preempted() -> bool:
    """Whether Ray has announced that this worker's node will be taken away."""
    if "ray.train" not in sys.modules:
        return False
    try:
        # The public `ray.train.get_preemption_info` is a barrier of all workers in every step; this only looks.
        from ray.train.v2._internal.execution.context import get_train_context

        return get_train_context().preemption_context.preemption_info is not None
    except (ImportError, AttributeError, RuntimeError):
        return False


def train_on_ray(settings: dict[str, str]) -> dict[str, Any]:
    """The function that Ray Train runs in each worker; settings are `config` (YAML text) and `folder`."""
    import ray.train

    if Path(settings["folder"]).is_dir():
        # Paths in a config are relative to where the program was started, not to where Ray's workers start.
        os.chdir(settings["folder"])
    config = validate(TrainConfig, yaml.safe_load(settings["config"]), "config")
    context = ray.train.get_context()
    os.environ.setdefault("LOCAL_RANK", str(context.get_local_rank()))
    if context.get_world_rank() == 0:
        _log_to(run_path(config) / LOG)
    return run_worker(config)


def _log_to(path: Path) -> None:
    """What rank 0 logs goes to the run's log file; the program that people look at shows its lines."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("pretrain")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)


def _exchange(value: str | None, world: World) -> list[str | None]:
    values: list[str | None] = [None] * world.size
    dist.all_gather_object(values, value)
    return values


def _stop_on_sigterm(run: RunFolder) -> None:
    if threading.current_thread() is not threading.main_thread():
        # Ray Train calls from a thread; there the driver writes stop.request instead.
        return

    def stop(*_: object) -> None:
        run.terminated = True

    signal.signal(signal.SIGTERM, stop)
