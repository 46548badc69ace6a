"""One model under evaluation: which tasks, the shared embedding pass, each task's record, and results.json of all.

Every step leaves its work on disk under a name of weights and protocol, so that it may be done by another process, and
is not done twice.
"""

import logging
import os
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.numpy import save_file

from configs.errors import UserError
from configs.evaluate import EvalConfig
from data_pipeline.manifest import read_manifest
from data_pipeline.reader import ShardReader
from eval.data import EvalData, load_data
from eval.datasets.registry import LAYOUTS
from eval.datasets.store import DatasetStore
from eval.embedding_cache import remove_embeddings
from eval.examples import write_examples
from eval.features import Features
from eval.intervals import Measurement, estimate
from eval.models.open import open_model
from eval.models.protocol import NotSupported, ProteinModel
from eval.results import (
    Failed,
    Result,
    Results,
    Skipped,
    TaskRecord,
    examples_path,
    headline,
    protocol_sha256,
    read_record,
    record_path,
    task_protocol_sha256,
    write_record,
    write_results,
)
from eval.tasks.protocol import Context, DatasetMissing, Datasets, Outcome, Task, TaskFacts, Wants
from eval.tasks.registry import tasks_named
from pretrain.checkpoints import Checkpoint, is_checkpoint, open_checkpoint

PEER = "peer"
"""Stage of a model that is no checkpoint of ours."""
log = logging.getLogger("eval")


@dataclass(frozen=True)
class Job:
    """What to evaluate, how, and where its results go."""

    checkpoint: str
    """Checkpoint folder, transformers folder, `hf:ORG/NAME` or `callable:module:function`."""
    config: EvalConfig
    output: Path
    """Folder of this model's results.json and `tasks/`."""


@dataclass(frozen=True)
class Data:
    """What the evaluations of several models share: each is read once."""

    shards: EvalData | None
    datasets: Datasets


def load_shared(config: EvalConfig) -> Data:
    """Chains of the shards where a task needs them, and datasets, which are read when a task asks."""
    shards = None
    needing = [task.name for task in tasks_named(config.tasks) if task.needs_shards]
    if needing and config.data is None:
        raise UserError(
            f"data.shards is not set and task {needing[0]!r} measures on structures; set data.shards=FOLDER"
        )
    if needing:
        with ShardReader(config.data.shards) as reader:
            shards = load_data(reader, config.data, config.seed)
    return Data(shards, DatasetStore(config.benchmarks, config.seed, LAYOUTS))


class Evaluation:
    """The work on one model, with everything it needs opened once and only when needed."""

    def __init__(self, job: Job, data: Data | None = None, verify: bool = True) -> None:
        self.job = job
        self._given = data
        path = Path(job.checkpoint)
        self._source = open_checkpoint(path, verify) if is_checkpoint(path) else None
        if self._source is not None and self._source.config.trunk is None:
            raise UserError(
                f"checkpoint {self._source.path}: stage {self._source.config.stage!r} has no language model to "
                "evaluate; name a checkpoint of stage 'reference' or 'align'"
            )
        self.failed: dict[str, str] = {}

    @property
    def weights_sha256(self) -> str:
        """Names the weights; a checkpoint's manifest tells it without loading them."""
        return self._source.weights_sha256 if self._source is not None else self.model.weights_sha256

    @property
    def step(self) -> int:
        return self._source.step if self._source is not None else 0

    @cached_property
    def tasks(self) -> list[Task]:
        return tasks_named(self.job.config.tasks)

    @cached_property
    def data(self) -> Data:
        return self._given if self._given is not None else load_shared(self.job.config)

    @cached_property
    def model(self) -> ProteinModel:
        if self.job.config.execution.threads is not None:
            torch.set_num_threads(self.job.config.execution.threads)
        return open_model(self._source if self._source is not None else self.job.checkpoint, self.job.config)

    @cached_property
    def context(self) -> Context:
        config = self.job.config
        if self.data.shards is not None and self._source is not None:
            _check_held_out(self._source, config, self.data.shards)
        features = Features(self.model, config.features, config.batch_tokens, self._cache)
        filled = _with_training_shards(config, self._source)
        filled = filled.model_copy(update={"features": config.features.model_copy(update={"cache": self._cache})})
        return Context(filled, self.data.shards, self.data.datasets, features)

    @property
    def _cache(self) -> Path:
        return self.job.config.features.cache or self.job.output.parent / "embeddings"

    @property
    def manifest_sha256(self) -> str | None:
        return self.data.shards.manifest_sha256 if self.data.shards is not None else None

    def kept(self, task: Task) -> TaskRecord | None:
        """The record of the same weights and protocol, if it is there and whole."""
        path = record_path(self.job.output, task.name)
        if not path.is_file():
            return None
        try:
            record = read_record(path)
        except UserError as error:
            log.warning("%s", error)
            return None
        same = (record.weights_sha256, record.protocol_sha256) == (self.weights_sha256, self._protocol(task))
        return record if same else None

    def missing(self) -> list[Task]:
        """Tasks without a record, in order."""
        return [task for task in self.tasks if self.kept(task) is None]

    def embed(self) -> int:
        """The embedding pass of all tasks that have no record yet; returns sequences embedded now."""
        means, residues = {}, {}
        for task in self.missing():
            try:
                wants = task.wants(self.context)
            except (DatasetMissing, NotSupported):
                continue
            means |= dict.fromkeys(wants.means)
            residues |= dict.fromkeys(wants.residues)
        before = self.context.features.num_embedded
        if means or residues:
            self.context.features.embed(Wants(tuple(means), tuple(residues)))
        return self.context.features.num_embedded - before

    def run_task(self, task: Task) -> TaskRecord:
        """The task's record: the kept one, or that of the measurement made now."""
        record = self.kept(task)
        if record is not None:
            return record
        started = time.monotonic()
        outcome = self._measure(task)
        assert outcome.measurements or outcome.skipped, task.name
        seconds = round(time.monotonic() - started, 3)
        facts, output = self._facts(task), self.job.output
        rows, undefined = _results_of(task, facts, outcome, seconds, self.job.config)
        record = TaskRecord(
            task=task.name,
            weights_sha256=self.weights_sha256,
            protocol_sha256=self._protocol(task),
            facts=facts,
            results=rows,
            skipped=outcome.skipped or (None if rows else "; ".join(undefined)),
            remarks=(*outcome.remarks, *undefined),
            seconds=seconds,
        )
        record_path(output, task.name).parent.mkdir(parents=True, exist_ok=True)
        record_path(output, task.name).unlink(missing_ok=True)
        _write_artifacts(outcome, output)
        write_examples(examples_path(output, task.name), outcome.measurements)
        # The record last: a task without one has not been done.
        write_record(record, output)
        came = f"skipped: {headline(record.skipped)}" if record.skipped else f"{seconds} s"
        log.info("%s: %s %s", self.model.name, task.name, came)
        return record

    def finish(self, num_embedded: int, seconds: float) -> Results:
        """Join the records into results.json, and free the disk that the embeddings take."""
        found = {task.name: record for task in self.tasks if (record := self.kept(task)) is not None}
        shards, data = self.data.shards, self.job.config.data
        on_shards = shards is not None
        results = Results(
            run=self._source.config.name if self._source is not None else self.model.name,
            stage=self._source.config.stage if self._source is not None else PEER,
            trunk=self.model.description,
            step=self.step,
            weights_sha256=self.weights_sha256,
            manifest_sha256=self.manifest_sha256,
            training_manifest_sha256=self._source.state.get("data_sha256") if self._source is not None else None,
            protocol_sha256=protocol_sha256(self.job.config, self.manifest_sha256),
            fit_split=data.fit_split if on_shards else None,
            num_fit_chains=len(shards.fit) if on_shards else 0,
            num_test_chains=len(shards.test) if on_shards else 0,
            num_embedded=num_embedded,
            seconds=round(seconds, 3),
            tasks={name: record.facts for name, record in found.items()},
            results=tuple(result for record in found.values() for result in record.results),
            skipped=tuple(
                Skipped(task=name, task_version=record.facts.version, reason=record.skipped)
                for name, record in found.items()
                if record.skipped is not None
            ),
            failed=tuple(Failed(task=name, reason=reason) for name, reason in self.failed.items()),
            remarks={name: record.remarks for name, record in found.items() if record.remarks},
        )
        write_results(results, self.job.output)
        if not self.job.config.features.keep_cache:
            remove_embeddings(self._cache, self.weights_sha256)
        return results

    def _measure(self, task: Task) -> Outcome:
        try:
            return task.run(self.context)
        except DatasetMissing as error:
            return Outcome(skipped=str(error))
        except NotSupported as error:
            return Outcome(skipped=f"{self.model.name}: {error}")

    def _facts(self, task: Task) -> TaskFacts:
        try:
            return task.facts(Context(self.job.config, self.data.shards, self.data.datasets, None))
        except DatasetMissing as error:
            return TaskFacts(task.version, frozen="-", head="-", method="-", data=str(error), data_sha256="missing")

    def _protocol(self, task: Task) -> str:
        return task_protocol_sha256(self.job.config, self.manifest_sha256, task.name, self._facts(task))


def plan(job: Job) -> list[str]:
    """Names of the tasks that the job's configuration asks for, in order."""
    return [task.name for task in tasks_named(job.config.tasks)]


def embed(job: Job) -> int:
    """See `Evaluation.embed`; the checkpoint's hashes were verified by whoever made the job."""
    return Evaluation(job, verify=False).embed()


def run_task(job: Job, name: str) -> TaskRecord:
    """See `Evaluation.run_task`."""
    (task,) = tasks_named((name,))
    return Evaluation(job, verify=False).run_task(task)


def finish(job: Job, num_embedded: int = 0, seconds: float = 0.0, failed: dict[str, str] | None = None) -> Results:
    """See `Evaluation.finish`."""
    evaluation = Evaluation(job, verify=False)
    evaluation.failed = failed or {}
    return evaluation.finish(num_embedded, seconds)


def _check_held_out(checkpoint: Checkpoint, config: EvalConfig, data: EvalData) -> None:
    trained_on = (checkpoint.state.get("data_sha256"), checkpoint.config.data.split)
    if trained_on == (data.manifest_sha256, config.data.split):
        raise UserError(
            f"data.split {config.data.split!r} is what checkpoint {checkpoint.path} was trained on; "
            "name a split that is held out, e.g. data.split=test"
        )


def _with_training_shards(config: EvalConfig, checkpoint: Checkpoint | None) -> EvalConfig:
    """Where the leakage check looks for training chains, unless the configuration says it."""
    if config.benchmarks.training_shards is not None or checkpoint is None:
        return config
    shards = Path(checkpoint.config.data.shards)
    trained_on = checkpoint.state.get("data_sha256")
    if trained_on is not None and _manifest_sha256(shards) not in (None, trained_on):
        log.warning("%s: not the shards that %s was trained on; no leakage check on them", shards, checkpoint.path)
        return config
    benchmarks = config.benchmarks.model_copy(update={"training_shards": shards})
    return config.model_copy(update={"benchmarks": benchmarks})


def _manifest_sha256(shards: Path) -> str | None:
    try:
        return read_manifest(shards)[1]
    except UserError:
        return None


def _results_of(
    task: Task, facts: TaskFacts, outcome: Outcome, seconds: float, config: EvalConfig
) -> tuple[tuple[Result, ...], tuple[str, ...]]:
    """A row for each metric that is defined, and why others are not."""
    by_metric: dict[str, list[Measurement]] = {}
    for measurement in outcome.measurements:
        by_metric.setdefault(measurement.metric, []).append(measurement)
    rows, undefined = [], []
    for metric, seeds in by_metric.items():
        found = estimate(seeds, config.bootstrap_samples, config.seed)
        if found.value is None:
            undefined.append(f"{metric}: {found.reason}")
            continue
        rows.append(
            Result(
                task=task.name,
                task_version=task.version,
                split=facts.split,
                metric=metric,
                value=found.value,
                ci_low=found.ci_low,
                ci_high=found.ci_high,
                seeds=found.seeds,
                num_examples=found.num_examples,
                num_clusters=found.num_clusters,
                seconds=seconds,
            )
        )
    return tuple(rows), tuple(undefined)


def _write_artifacts(outcome: Outcome, folder: Path) -> None:
    for name, arrays in outcome.artifacts.items():
        temporary = folder / f"{name}.{os.getpid()}.part"
        note = outcome.notes.get(name)
        save_file(arrays, temporary, metadata={"note": note} if note is not None else None)
        os.replace(temporary, folder / name)
