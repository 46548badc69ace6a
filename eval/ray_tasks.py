"""The tasks of one evaluation as Ray tasks, each with its own resources and time limit."""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import ray
import ray.remote_function
from ray.exceptions import RayError, RayTaskError

from configs.errors import UserError
from configs.evaluate import ExecutionConfig
from eval.evaluation import Job, embed, run_task

log = logging.getLogger("eval")


def run_on_ray(job: Job, names: list[str]) -> tuple[int, dict[str, str]]:
    """Embed once, then run the named tasks side by side; returns sequences embedded, and why tasks failed.

    The tasks meet in the embedding cache and the folder of records, which every node must see under the same path.
    """
    own = connect(job.config.execution)
    try:
        num_embedded = ray.get(_remote(_embed, job).remote(_on_worker(job)))
        return num_embedded, _collect(job, names)
    finally:
        if own:
            ray.shutdown()


def connect(config: ExecutionConfig) -> bool:
    """Join the named cluster, or start a local one; returns whether this call did either.

    Raises:
        UserError: there is no cluster at that address.
    """
    if ray.is_initialized():
        return False
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    try:
        ray.init(
            address=address,
            include_dashboard=False if address == "local" else None,
            logging_level=logging.ERROR,
            log_to_driver=False,
            runtime_env={"env_vars": {"PYTHONPATH": os.getcwd()}},
        )
    except (ConnectionError, ValueError) as error:
        first = " ".join(str(error).split())[:200]
        raise UserError(f"execution.address {address}: no Ray cluster ({first}); start one, or unset it") from None
    return True


def _collect(job: Job, names: list[str]) -> dict[str, str]:
    """Wait for every task; the clock of one starts when it does, which Ray tells by the number that run at a time."""
    limit = job.config.execution.timeout_seconds
    for name in names:
        # Of an evaluation that was killed.
        _mark(job, name).unlink(missing_ok=True)
    waiting = {_remote(_run_task, job).remote(_on_worker(job), name): name for name in names}
    began = dict.fromkeys(waiting.values(), 0.0)
    failed: dict[str, str] = {}
    while waiting:
        done, _ = ray.wait(list(waiting), num_returns=1, timeout=1.0)
        for reference in done:
            name = waiting.pop(reference)
            try:
                log.info("%s: %.1f s", name, ray.get(reference))
            except RayTaskError as error:
                cause = error.as_instanceof_cause()
                failed[name] = f"{type(error.cause).__name__}: {' '.join(str(error.cause).split())[:300]}"
                log.debug("%s", cause)
            except RayError as error:
                failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        for reference, name in list(waiting.items()):
            began[name] = began[name] or _started(job, name)
            if began[name] and time.time() - began[name] > limit:
                ray.cancel(reference, force=True)
                waiting.pop(reference)
                failed[name] = f"took longer than {limit:g} s (execution.timeout_seconds)"
    return failed


def _started(job: Job, name: str) -> float:
    """When a worker began the task (its mark's age), 0 while it waits."""
    try:
        return _mark(job, name).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _mark(job: Job, name: str) -> Path:
    return job.output / "tasks" / f".{name}.started"


def _on_worker(job: Job) -> Job:
    """The job with this process's working directory in its paths, and the threads that the task was given."""
    execution = job.config.execution
    threads = execution.threads or max(1, int(execution.cpus_per_task))
    config = job.config.model_copy(update={"execution": execution.model_copy(update={"threads": threads})})
    return Job(job.checkpoint, config, job.output.absolute())


def _remote(function: Callable[..., object], job: Job) -> ray.remote_function.RemoteFunction:
    execution = job.config.execution
    return ray.remote(function).options(
        num_cpus=execution.cpus_per_task, num_gpus=execution.gpus_per_task, max_retries=0
    )


def _embed(job: Job) -> int:
    return embed(job)


def _run_task(job: Job, name: str) -> float:
    """Seconds of the task."""
    mark = _mark(job, name)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    try:
        return run_task(job, name).seconds
    finally:
        mark.unlink(missing_ok=True)
