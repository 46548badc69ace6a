"""Small real things for the service's tests: checkpoints of a few bytes, configurations, an executor by script."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from configs.loading import dump_config, validate
from configs.service import ServeConfig
from configs.train import TrainConfig
from eval.service.executors import Ended
from eval.service.work import Step
from pretrain import checkpoints

STAND_IN = "tests.unit.eval.service.stand_in"
PROTOCOL = "f" * 64
WAIT_SECONDS = 240.0
"""Far more than anything takes: children of a loaded machine import torch for half a minute."""


def tiny_checkpoint(runs: Path, step: int, name: str = "small", seed: int | None = None) -> Path:
    """A complete checkpoint with one small tensor, which differs from step to step unless `seed` says otherwise."""
    tree = {
        "stage": "align",
        "name": name,
        "runs": str(runs),
        "data": {"shards": str(runs / "shards"), "max_residues": 128, "pack_tokens": 256},
        "trunk": {"family": "esm2", "layers": 2, "width": 32, "heads": 4},
        "optimizer": {"steps": 20},
    }
    text = dump_config(validate(TrainConfig, tree, "test"))
    weights = {"weight": torch.full((4,), float(step if seed is None else seed))}
    return checkpoints.save(runs / name, step, text, {"step": step}, checkpoints.Share(weights, {}))


def serve_config(folder: Path, **changes: Any) -> ServeConfig:
    """A service over `folder/runs`, its own files in `folder/service`; a__b=value sets a.b."""
    tree: dict[str, Any] = {
        "folder": str(folder / "service"),
        "evaluation": {"tasks": ["fold"], "execution": {"threads": 1}},
        "watch": {"runs": [str(folder / "runs")], "every_seconds": 0.2},
        "port": 0,
        "executor": "process",
        "niceness": 0,
        "limits": {"requests_per_minute": 100_000},
    }
    for key, value in changes.items():
        *parents, leaf = key.split("__")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[leaf] = value
    return validate(ServeConfig, tree, "test")


def wait_until(reached: Callable[[], Any], what: str, seconds: float = WAIT_SECONDS) -> Any:
    """The first true value of `reached`; fails after a deadline that only a hang meets."""
    deadline = time.monotonic() + seconds
    while not (found := reached()):
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.01)
    return found


class Script:
    """An executor that does what a list says: (name of the step -> how it ends), everything else ends well."""

    def __init__(self, tasks: Sequence[str] = ("fold", "ec"), ends: dict[str, list[Ended]] | None = None) -> None:
        self.tasks = list(tasks)
        self.ends = ends or {}
        self.steps: list[Step] = []
        self.holds: dict[str, threading.Event] = {}

    def run(self, step: Step, timeout_seconds: float, stop: threading.Event) -> Ended:
        self.steps.append(step)
        hold = self.holds.get(step.name)
        while hold is not None and not hold.is_set():
            if stop.wait(0.01):
                return Ended("stopped", 0.0)
        if self.ends.get(step.name):
            return self.ends[step.name].pop(0)
        answers = {"plan": {"names": self.tasks}, "embed": {"num_embedded": 5}, "task": {"version": "1"}}
        return Ended("done", 0.5, answer={"ok": True, **answers.get(step.kind, {})})

    def close(self) -> None: ...


@contextmanager
def held(script: Script, name: str) -> Iterator[threading.Event]:
    """A step that waits until the event is set; it is at the end."""
    event = script.holds[name] = threading.Event()
    try:
        yield event
    finally:
        event.set()
