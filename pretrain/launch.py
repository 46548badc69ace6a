"""From a config to a trained run: check, claim the folder, then Ray Train's workers or torchrun's processes."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from configs.errors import UserError
from configs.train import TrainConfig
from pretrain.checkpoints import list_checkpoints, open_checkpoint
from pretrain.deepspeed_settings import deepspeed_settings
from pretrain.engine import prepare_process
from pretrain.feed import chosen_chains, open_shards
from pretrain.progress import ProgressDisplay
from pretrain.run_folder import METRICS, claim, is_finished, read_metrics, read_status, run_path, write_status
from pretrain.tracking import Tracker, read_progress

EXIT_STOPPED = 143
"""128 + SIGTERM: stopped on request, after a checkpoint."""
log = logging.getLogger("pretrain.launch")


def train(config: TrainConfig) -> int:
    """Run a config's training to its end; returns the exit code: 0 finished (or was already), 143 stopped.

    Raises:
        UserError: a mistake in config, data or environment.
    """
    if is_finished(config):
        _tell_tracker(config)
        log.info("run %s is already finished at step %d", run_path(config), config.optimizer.steps)
        return 0
    by_env = config.engine.launcher == "env"
    if by_env:
        rank = int(_join_alone_or_as_started()["RANK"])
        # Before any thread imports something: this hides a module from DeepSpeed for a moment.
        prepare_process(config.engine)
        if rank > 0:
            return _exit_code(_run_here(config))
    data_sha256 = check(config)
    lock = claim(config)
    with lock, _companions(config, data_sha256) as outcome:
        if by_env:
            outcome |= _run_here(config)
        else:
            from pretrain.ray_workers import fit_on_ray

            outcome |= fit_on_ray(config)
    return _exit_code(outcome)


def check(config: TrainConfig) -> str:
    """Look at everything the workers will need before any is started; returns the data manifest's sha256.

    Raises:
        UserError: the first thing that is missing or does not fit.
    """
    if config.engine.deepspeed is not None:
        prepare_process(config.engine)
        deepspeed_settings(config)
    with open_shards(config.data) as reader:
        chosen_chains(reader, config.data)
        if config.stage != "teacher":
            from pretrain.stages.align import check_inputs

            check_inputs(config, reader)
        return reader.manifest_sha256


def _tell_tracker(config: TrainConfig) -> None:
    """What a finished run could not tell its tracking server, because that was down."""
    rows, told = read_metrics(run_path(config) / METRICS), read_progress(run_path(config))
    if config.tracking.mlflow and rows and (told is None or told.logged_step < rows[-1]["step"]):
        data_sha256 = open_checkpoint(list_checkpoints(run_path(config))[-1], verify=False).state["data_sha256"]
        Tracker(config, data_sha256).close("finished")


def _run_here(config: TrainConfig) -> dict[str, Any]:
    from pretrain.worker import run_worker

    return run_worker(config)


@contextmanager
def _companions(config: TrainConfig, data_sha256: str) -> Iterator[dict[str, Any]]:
    """Progress display and tracker beside the training; the yielded outcome tells them how it ended."""
    folder = run_path(config)
    display = ProgressDisplay(folder, config.optimizer.steps)
    tracker = Tracker(config, data_sha256) if config.tracking.mlflow else None
    outcome: dict[str, Any] = {}
    try:
        yield outcome
    except BaseException as error:
        detail = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        _say_failed(config, detail)
        raise
    finally:
        if "user_error" in outcome:
            _say_failed(config, outcome["user_error"])
        display.close()
        if tracker is not None:
            tracker.close(outcome.get("state", "failed"))


def _say_failed(config: TrainConfig, detail: str) -> None:
    step = read_status(run_path(config)).get("step", 0)
    write_status(run_path(config), "failed", step, config.optimizer.steps, detail)


def _exit_code(outcome: dict[str, Any]) -> int:
    if "user_error" in outcome:
        raise UserError(outcome["user_error"])
    return 0 if outcome["state"] == "finished" else EXIT_STOPPED


def _join_alone_or_as_started() -> os._Environ:
    """The variables of torchrun; srun's are translated, and without either this process is the whole world."""
    if "RANK" not in os.environ and "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        os.environ["RANK"] = os.environ["SLURM_PROCID"]
        os.environ["WORLD_SIZE"] = os.environ["SLURM_NTASKS"]
        os.environ["LOCAL_RANK"] = os.environ.get("SLURM_LOCALID", "0")
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise UserError(f"engine.launcher=env under srun: {missing[0]} is not set; export it in the job script")
    elif "RANK" not in os.environ:
        alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        os.environ |= {**alone, "MASTER_PORT": str(_free_port())}
    return os.environ


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
