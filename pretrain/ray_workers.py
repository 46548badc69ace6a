"""Workers by Ray Train: Ray restarts them after a loss; the state they continue from is the run folder's."""

import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from configs.engine import EngineConfig
from configs.errors import UserError
from configs.loading import dump_config
from configs.train import TrainConfig
from pretrain.run_folder import STOP, run_path

ROOT = Path(__file__).parents[1]
"""Folder that holds our packages; workers need it on their path."""
_STORAGE = "ray_train"
_CONNECT_SECONDS = 5.0
log = logging.getLogger("pretrain.ray")


def fit_on_ray(config: TrainConfig) -> dict[str, Any]:
    """Train on engine.num_workers Ray workers, or as few as engine.min_workers; returns what rank 0's worker returned.

    Raises:
        UserError: no such cluster, or one that is too small; or a worker met a user's mistake.
        RuntimeError: workers failed more than engine.max_failures times; the message holds the cause.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    from pretrain.worker import train_on_ray

    with ray_cluster(config.engine):
        engine = config.engine
        trainer = TorchTrainer(
            train_on_ray,
            train_loop_config={"config": dump_config(config), "folder": os.getcwd()},
            scaling_config=ScalingConfig(
                num_workers=(engine.min_workers, engine.num_workers) if engine.min_workers else engine.num_workers,
                use_gpu=engine.gpus_per_worker > 0,
                resources_per_worker=_resources(engine),
            ),
            torch_config=TorchConfig(backend="nccl" if engine.gpus_per_worker else "gloo"),
            run_config=RunConfig(
                name=config.name,
                storage_path=str(run_path(config).resolve() / _STORAGE),
                failure_config=FailureConfig(max_failures=engine.max_failures),
            ),
        )
        with _stop_request_on_sigterm(run_path(config) / STOP):
            try:
                return trainer.fit().return_value
            except TrainingFailedError as error:
                raise _explained(error) from None


def _explained(error: Exception) -> Exception:
    """A worker's UserError as it was; anything else as one RuntimeError that names rank and cause."""
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
    causes = {rank: getattr(failure, "cause", None) or failure for rank, failure in failures.items()}
    for cause in causes.values():
        if isinstance(cause, UserError):
            return UserError(str(cause))
    log.error("%s", error)
    first = next(iter(sorted(causes.items())), None)
    what = f"worker {first[0]}: {first[1]}" if first else str(error)
    return RuntimeError(f"training failed; {what}")


@contextmanager
def ray_cluster(engine: EngineConfig) -> Iterator[None]:
    """A connection to the configured cluster, or one of this machine that ends with the run."""
    import ray

    if ray.is_initialized():
        _check_resources(engine)
        yield
        return
    address = engine.address or os.environ.get("RAY_ADDRESS") or "local"
    _check_answers(address)
    python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    options: dict[str, Any] = {"runtime_env": {"env_vars": {"PYTHONPATH": python_path}}, "log_to_driver": False}
    if address == "local":
        # Workers may outnumber cores: on a laptop that only costs speed.
        cpus = max(os.cpu_count() or 1, engine.num_workers * engine.cpus_per_worker)
        options |= {"include_dashboard": False, "num_cpus": cpus}
    try:
        ray.init(address=address, logging_level=logging.ERROR, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        problem = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"engine.address {address}: no Ray cluster answers ({problem}); start one or unset it"
        ) from None
    try:
        _check_resources(engine)
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Look for a listener first: Ray itself waits for minutes, and says little."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"engine.address {address}: no Ray cluster answers ({error.strerror or error}); start one, or unset"
            " engine.address and RAY_ADDRESS for a cluster of this machine"
        ) from None


def _check_resources(engine: EngineConfig) -> None:
    """Say at once what would otherwise wait for ever."""
    import ray

    have = ray.cluster_resources()
    for kind, per_worker in _resources(engine).items():
        fewest = engine.min_workers or engine.num_workers
        need = per_worker * fewest
        if have.get(kind, 0) < need:
            raise UserError(
                f"engine: {fewest} workers need {need:g} {kind}, the Ray cluster has {have.get(kind, 0):g};"
                " ask for fewer, or a larger cluster"
            )


def _resources(engine: EngineConfig) -> dict[str, float]:
    gpus = {"GPU": float(engine.gpus_per_worker)} if engine.gpus_per_worker else {}
    return {"CPU": float(engine.cpus_per_worker), **gpus}


@contextmanager
def _stop_request_on_sigterm(request: Path) -> Iterator[None]:
    """SIGTERM to this program becomes a request that rank 0 sees after its step, so a checkpoint is saved first."""

    def ask(*_: object) -> None:
        print("stopping after this step and a checkpoint", file=sys.stderr)
        request.touch()

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
