"""The run folder: resolved config, metrics.jsonl, status.json, log.txt; who may continue it, and who may not."""

import errno
import fcntl
import json
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum
from io import FileIO
from pathlib import Path
from typing import IO, Any

from configs.errors import UserError
from configs.loading import dump_config, load_config
from configs.train import TrainConfig
from pretrain.checkpoints import list_checkpoints, prune

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
STATUS = "status.json"
STOP = "stop.request"
LOG = "log.txt"
LOCK = ".lock"
MAY_CHANGE = ("engine.", "checkpoint.", "tracking.", "runs", "derive.", "data.cache.")
"""Beginnings of the keys that a continued run may change; optimizer.steps may also grow."""
log = logging.getLogger("pretrain.run")


class Wish(IntEnum):
    """What somebody outside wants of the training; the largest of all ranks' counts."""

    NOTHING = 0
    SAVE = 1
    """A checkpoint now: this machine will be taken away."""
    STOP = 2
    """A checkpoint, then the end."""


class RunFolder:
    """What the loop reports to; on ranks other than 0 it only listens for wishes."""

    def __init__(self, path: Path, total_steps: int, rank: int = 0) -> None:
        self.path = path
        self._total_steps = total_steps
        self._writes = rank == 0
        self._metrics: FileIO | None = None
        self._unwritten: list[str] = []
        """Rows that a full disk did not take yet."""
        self.terminated = False
        """Set by a signal handler of this process."""
        self.preempted: Callable[[], bool] = lambda: False
        """Whether this process's machine was announced to be taken away."""
        self._preemption_seen = False

    @property
    def stop_requested(self) -> bool:
        """Whether this process got SIGTERM, or somebody wrote `stop.request` into the folder."""
        return self.terminated or (self._writes and (self.path / STOP).exists())

    @property
    def wish(self) -> Wish:
        """What is wanted after this step; a preemption asks for one checkpoint."""
        if self.stop_requested:
            return Wish.STOP
        if not self._preemption_seen and self.preempted():
            self._preemption_seen = True
            return Wish.SAVE
        return Wish.NOTHING

    def begin(self, step: int) -> None:
        """Announce that training continues after `step`; rows of metrics.jsonl past it are dropped."""
        if not self._writes:
            return
        (self.path / STOP).unlink(missing_ok=True)
        truncate_metrics(self.path / METRICS, step)
        # Unbuffered, so that what a full disk refuses is known at once.
        self._metrics = (self.path / METRICS).open("ab", buffering=0)
        self.set_status("running", step)

    def log(self, row: dict[str, float]) -> None:
        """Append a row to metrics.jsonl; on a full disk it waits for room, and training goes on."""
        if self._metrics is None:
            return
        self._unwritten.append(json.dumps(row) + "\n")
        self._write_rows()
        self.set_status("running", int(row["step"]))

    def checkpoint_written(self, path: Path, seconds: float, waited: float, keep: int | None) -> None:
        """Say so, and drop the oldest checkpoints beyond `keep`; `waited` is how long training stood still for it."""
        if self._writes:
            log.info("checkpoint %s written in %.1f s; training waited %.2f s", path.name, seconds, waited)
            for removed in prune(self.path, keep) if keep else ():
                log.info("checkpoint %s removed (checkpoint.keep is %d)", removed.name, keep)

    def checkpoint_failed(self, path: Path, error: OSError) -> None:
        """Say in one line that a checkpoint is missing, and why."""
        if self._writes:
            log.warning("%s: %s; the checkpoints before it stand", path.name, error)

    def update_skipped(self, step: int) -> None:
        """Say that a step left the weights as they were."""
        if self._writes:
            log.warning("step %d: loss or gradient is not finite; this update is skipped", step)

    def _write_rows(self) -> None:
        """Write the rows that wait; a row is written whole or not at all."""
        assert self._metrics is not None
        end, rows = os.fstat(self._metrics.fileno()).st_size, "".join(self._unwritten).encode()
        try:
            if self._metrics.write(rows) < len(rows):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._metrics.truncate(end)
            if len(self._unwritten) == 1:
                log.warning("%s: %s; rows wait in memory", METRICS, error)
            return
        self._unwritten.clear()

    def end(self, state: str, step: int, detail: str = "") -> None:
        """The run's last word in this process: finished, stopped or failed."""
        if self._metrics is not None:
            self._write_rows()
            self._metrics.close()
            self._metrics = None
        if self._writes:
            self.set_status(state, step, detail)

    def set_status(self, state: str, step: int, detail: str = "") -> None:
        """Replace status.json; on a full disk the one before stays."""
        with suppress(OSError):
            write_status(self.path, state, step, self._total_steps, detail)


def write_status(path: Path, state: str, step: int, total_steps: int, detail: str = "") -> None:
    """Replace a run's status.json atomically."""
    content = {"state": state, "step": step, "total_steps": total_steps, "pid": os.getpid(), "detail": detail}
    partial = path / f".{STATUS}.{os.getpid()}"
    partial.write_text(json.dumps(content) + "\n")
    os.replace(partial, path / STATUS)


def read_status(path: Path) -> dict[str, Any]:
    """Content of status.json; empty where there is none."""
    try:
        return json.loads((path / STATUS).read_text())
    except (FileNotFoundError, ValueError):
        return {}


def claim(config: TrainConfig) -> IO[str]:
    """Make or enter the run's folder, for one program at a time; hold the returned lock while training.

    Raises:
        UserError: another program trains in it.
    """
    path = run_path(config)
    path.mkdir(parents=True, exist_ok=True)
    lock = (path / LOCK).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise UserError(f"run {path}: another program is training it; wait, stop it, or choose another name=") from None
    partial = path / f".{CONFIG}"
    partial.write_text(dump_config(config))
    os.replace(partial, path / CONFIG)
    return lock


def run_path(config: TrainConfig) -> Path:
    return config.runs / config.name


def is_finished(config: TrainConfig) -> bool:
    """Whether the last step's checkpoint is already there.

    Raises:
        UserError: the folder belongs to a run with another config.
    """
    path = run_path(config)
    if (path / CONFIG).exists():
        refuse_other_config(path, load_config(TrainConfig, path / CONFIG), config)
    done = list_checkpoints(path)
    return bool(done) and int(done[-1].name.removeprefix("step_")) >= config.optimizer.steps


def refuse_other_config(path: Path, before: TrainConfig, now: TrainConfig) -> None:
    """Let a run continue only with what it was begun with.

    Raises:
        UserError: a key differs that decides what is learnt; names the first.
    """
    old, new = flatten(before.model_dump(mode="json")), flatten(now.model_dump(mode="json"))
    for key in sorted(old.keys() | new.keys()):
        grows = key == "optimizer.steps" and new[key] >= old[key]
        if old.get(key) == new.get(key) or key.startswith(MAY_CHANGE) or grows:
            continue
        raise UserError(
            f"run {path}: was begun with {key}={old.get(key)}, now {key}={new.get(key)};"
            " use the same config, choose another name=, or remove the folder"
        )


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def truncate_metrics(path: Path, step: int) -> None:
    """Keep the whole rows up to `step`; a row cut off by a crash is dropped."""
    if not path.exists():
        return
    kept = [row for row in read_metrics(path) if row["step"] <= step]
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
    os.replace(partial, path)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl; stops at the first that is not whole."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
