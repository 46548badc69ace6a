"""Saves a run's checkpoints, one at a time, in a thread beside the training: it waits for a copy in memory only."""

import logging
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import UserError
from configs.loading import dump_config
from configs.train import TrainConfig
from pretrain import checkpoints
from pretrain.engine import Engine
from pretrain.run_folder import RunFolder
from pretrain.snapshot import Snapshot

if TYPE_CHECKING:
    from pretrain.loop import Progress

_CLOSING_SECONDS = 60.0
"""A checkpoint that is nearly written is worth this wait when training has failed."""
log = logging.getLogger("pretrain.saver")


class CannotGoOn(UserError):
    """What ends a run on every rank alike, and what no restart of workers would cure."""


class Saver:
    """At most one save is in flight; the next one, and the last, wait for it. Every rank has one."""

    def __init__(self, config: TrainConfig, engine: Engine, run: RunFolder, data_sha256: str) -> None:
        self._config, self._engine, self._run = config, engine, run
        self._data_sha256 = data_sha256
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def save(self, progress: "Progress", last: bool = False) -> None:
        """Take a snapshot and have it written; a collective. A `last` checkpoint is there when this returns.

        A checkpoint that cannot be written is said in one line, and training goes on.

        Raises:
            CannotGoOn: the last checkpoint could not be written; the ones before still stand.
        """
        begun = time.perf_counter()
        self._wait()
        asynchronous = self._config.checkpoint.asynchronous and not last
        snapshot = self._engine.snapshot(copy=asynchronous)
        state = self._state(progress)
        if asynchronous:
            waited = time.perf_counter() - begun
            self._thread = threading.Thread(target=self._write, args=(snapshot, state, waited), name="checkpoint")
            self._thread.daemon = True
            self._thread.start()
            return
        self._write(snapshot, state, None)
        if self._failure is not None and last:
            good = checkpoints.list_checkpoints(self._run.path)
            rest = f"it continues from {good[-1].name}" if good else "it begins anew"
            raise CannotGoOn(
                f"run {self._run.path}: the last checkpoint could not be written ({self._failure});"
                f" free space or mend the disk and start again, {rest}"
            )

    def close(self) -> None:
        """Let the save in flight end."""
        if self._thread is not None:
            self._thread.join(_CLOSING_SECONDS)

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure is not None and not isinstance(self._failure, OSError):
            raise self._failure

    def _write(self, snapshot: Snapshot, state: dict[str, Any], waited: float | None) -> None:
        begun = time.perf_counter()
        writers, self._failure = self._engine.world.writers, None
        try:
            path = checkpoints.save(
                self._run.path,
                state["step"],
                dump_config(self._config),
                state,
                snapshot,
                writers.rank,
                writers.exchange,
            )
        except OSError as error:
            self._failure = error
            self._run.checkpoint_failed(checkpoints.step_folder(self._run.path, state["step"]), error)
        except Exception as error:
            # A lost rank: the training meets it as well. In a thread nobody else would hear of it.
            self._failure = error
        else:
            self._written(path, time.perf_counter() - begun, waited)

    def _written(self, path: Path, seconds: float, waited: float | None) -> None:
        waited = seconds if waited is None else waited
        self._run.checkpoint_written(path, seconds, waited, self._config.checkpoint.keep)

    def _state(self, progress: "Progress") -> dict[str, Any]:
        config, engine = self._config, self._engine
        return {
            "step": progress.step,
            "position": asdict(progress.position),
            "tokens": progress.tokens,
            "seconds": round(progress.seconds, 3),
            "skipped": progress.skipped,
            "validation": progress.validation,
            "optimizer_steps": engine.optimizer_steps,
            "schedule": {"warmup_steps": config.optimizer.warmup_steps, "steps": config.optimizer.steps},
            "random": {
                "seed": config.seed,
                "rule": "generators are seeded by (seed, position, rank) before every pool",
            },
            "precision": config.engine.precision,
            "data_sha256": self._data_sha256,
            "written_by": {"world_size": engine.world.size, "zero_stage": config.engine.zero_stage},
        }
