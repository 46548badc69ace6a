"""What a task is: a named, versioned measurement of one model."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from configs.errors import UserError
from configs.evaluate import EvalConfig
from eval.data import EvalData
from eval.datasets.records import Dataset
from eval.features import Features
from eval.intervals import Measurement


class Datasets(Protocol):
    """Benchmark datasets by name, each read once."""

    def get(self, name: str) -> Dataset:
        """Cropped, drawn and clustered as the configuration says.

        Raises:
            DatasetMissing: it is not where the configuration says; the task is skipped with that reason.
        """


class DatasetMissing(UserError):
    """The files of a dataset are not there."""


@dataclass(frozen=True)
class Context:
    """Everything a task may use; `features` is shared, so that frozen tasks embed each sequence once between them."""

    config: EvalConfig
    shards: EvalData | None
    """Chains with structure, where the configuration names shards."""
    datasets: Datasets
    features: Features

    @property
    def data(self) -> EvalData:
        """Chains with structure, for tasks that need them."""
        assert self.shards is not None, "the runner gives tasks on structures their shards"
        return self.shards


@dataclass(frozen=True)
class Wants:
    """Sequences whose embeddings a task will ask for."""

    means: tuple[str, ...] = ()
    """Whose states averaged over residues are enough."""
    residues: tuple[str, ...] = ()
    """Whose every residue's state is needed."""


@dataclass(frozen=True)
class TaskFacts:
    """What a task measures and how, so that a number can be read years later."""

    version: str
    frozen: str
    """What of the checkpoint stays as it was trained."""
    head: str
    """What is fitted, on what; `none` where nothing is."""
    method: str
    """How the metric is defined, exactly."""
    data: str = "shards"
    """Source of the examples, and how the splits differ from the publisher's."""
    data_sha256: str | None = None
    """Of the dataset; None for tasks on shards, whose manifest hash stands in results.json."""
    split: str = "test"


@dataclass(frozen=True)
class Outcome:
    """What a task found: measurements, or the reason why there are none."""

    measurements: tuple[Measurement, ...] = ()
    """One for each metric and seed."""
    skipped: str | None = None
    artifacts: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    """File name -> arrays, saved as safetensors beside the results."""
    notes: dict[str, str] = field(default_factory=dict)
    """File name -> one line of text stored in that file."""
    remarks: tuple[str, ...] = ()
    """For people: what the leakage check found, settings chosen on validation."""


class Task(Protocol):
    """A benchmark; a change that moves any number gets a new version, and versions are never compared."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def metrics(self) -> tuple[str, ...]: ...

    @property
    def needs_shards(self) -> bool:
        """Whether it measures on chains with structure."""

    def facts(self, context: Context) -> TaskFacts:
        """What it measures with these settings and data. Asked before the model is open: `features` may be None."""

    def wants(self, context: Context) -> Wants:
        """What to embed before it runs; nothing for tasks that look at likelihoods or tune the trunk."""

    def run(self, context: Context) -> Outcome: ...


@dataclass(frozen=True)
class FunctionTask:
    """A task on shards whose work is one function."""

    name: str
    version: str
    frozen: str
    head: str
    method: str
    metrics: tuple[str, ...]
    work: Callable[[Context], Outcome]
    needs: Callable[[Context], Wants] = field(default=lambda context: Wants())
    needs_shards: bool = True

    def facts(self, context: Context) -> TaskFacts:
        """As declared."""
        split = context.shards.split if context.shards else "test"
        return TaskFacts(self.version, self.frozen, self.head, self.method, split=split)

    def wants(self, context: Context) -> Wants:
        """As declared."""
        return self.needs(context)

    def run(self, context: Context) -> Outcome:
        """Measure, and hold the function to the metrics it promised."""
        outcome = self.work(context)
        unknown = {m.metric for m in outcome.measurements} - set(self.metrics)
        assert not unknown, (self.name, unknown)
        return outcome
