"""What a task is: a named, versioned measurement of one checkpoint."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from configs.evaluate import EvalConfig
from eval.data import EvalData
from eval.features import Features
from eval.intervals import Measurement


@dataclass(frozen=True)
class Context:
    """Everything a task may use; `features` is shared, so that frozen tasks embed each chain once between them."""

    config: EvalConfig
    data: EvalData
    features: Features


@dataclass(frozen=True)
class Outcome:
    """What a task found: measurements, or the reason why there are none."""

    measurements: tuple[Measurement, ...] = ()
    skipped: str | None = None
    artifacts: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    """File name -> arrays, saved as safetensors beside the results."""
    notes: dict[str, str] = field(default_factory=dict)
    """File name -> one line of text stored in that file."""


class Task(Protocol):
    """A benchmark; a change that moves any number gets a new version, and versions are never compared."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def frozen(self) -> str:
        """What of the checkpoint stays as it was trained."""

    @property
    def head(self) -> str:
        """What is fitted, on what; `none` where nothing is."""

    @property
    def method(self) -> str:
        """How the metric is defined, exactly."""

    @property
    def metrics(self) -> tuple[str, ...]: ...

    def run(self, context: Context) -> Outcome: ...


@dataclass(frozen=True)
class FunctionTask:
    """A task whose work is one function."""

    name: str
    version: str
    frozen: str
    head: str
    method: str
    metrics: tuple[str, ...]
    work: Callable[[Context], Outcome]

    def run(self, context: Context) -> Outcome:
        """Measure, and hold the function to the metrics it promised."""
        outcome = self.work(context)
        unknown = {m.metric for m in outcome.measurements} - set(self.metrics)
        assert not unknown, (self.name, unknown)
        return outcome
