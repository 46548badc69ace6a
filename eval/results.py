"""Records on disk: what one task found (`tasks/<task>.json`), and results.json, which joins them."""

import hashlib
import json
import os
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from configs.errors import UserError
from configs.evaluate import EvalConfig
from eval.tasks.protocol import TaskFacts

FORMAT_VERSION = "2.0"
RESULTS_FILE = "results.json"
TASKS_FOLDER = "tasks"
REGRESSION_FILE = "contact_regression.safetensors"
CONTACT_EXAMPLE_FILE = "contact_example.safetensors"
_MOVE_NO_NUMBER = {"device", "mlflow", "poll_seconds", "stall_seconds", "execution", "batch_tokens", "tasks"}
"""Settings of where and how fast things run."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


_R = TypeVar("_R", bound=_Record)


class Result(_Record):
    """One metric of one task."""

    task: str
    task_version: str
    split: str
    metric: str
    value: float
    """Mean over seeds."""
    ci_low: float | None
    """95 % interval by bootstrap over sequence clusters (and seeds); null with fewer than two clusters."""
    ci_high: float | None
    seeds: tuple[int, ...]
    num_examples: int
    num_clusters: int
    seconds: float
    """Time of the whole task, of which this is one metric."""


class Skipped(_Record):
    task: str
    task_version: str
    reason: str


class Failed(_Record):
    """A task that ended in an error; it runs again when the evaluation does."""

    task: str
    reason: str


class TaskRecord(_Record):
    """Content of `tasks/<task>.json`: all that one task found."""

    format_version: str = FORMAT_VERSION
    task: str
    weights_sha256: str
    protocol_sha256: str
    """Of everything that can change a number of this task."""
    facts: TaskFacts
    results: tuple[Result, ...] = ()
    skipped: str | None = None
    """Why there are no results."""
    remarks: tuple[str, ...] = ()
    seconds: float


class Results(_Record):
    """Content of results.json."""

    format_version: str = FORMAT_VERSION
    run: str
    """Name of the run, or of a model from elsewhere."""
    stage: str
    """Of training; `peer` for a model from elsewhere."""
    trunk: str
    """Family and size, e.g. `esm2 6x320x20`."""
    step: int
    """0 for a model from elsewhere."""
    weights_sha256: str
    manifest_sha256: str | None
    """Of the shards that were evaluated on; null where no task needed any."""
    training_manifest_sha256: str | None = None
    """Of the shards that the run was trained on, where the checkpoint records it."""
    protocol_sha256: str
    """Of everything in the config that can change a number."""
    fit_split: str | None
    num_fit_chains: int
    num_test_chains: int
    num_embedded: int
    """Sequences embedded in the pass that all frozen tasks share: each exactly once."""
    seconds: float
    tasks: dict[str, TaskFacts]
    results: tuple[Result, ...]
    skipped: tuple[Skipped, ...]
    failed: tuple[Failed, ...] = ()
    remarks: dict[str, tuple[str, ...]] = {}
    """By task: what the leakage check found, settings chosen on validation."""

    def find(self, task: str, metric: str) -> Result | None:
        """The result of that task and metric, if there is one."""
        return next((r for r in self.results if (r.task, r.metric) == (task, metric)), None)


def headline(reason: str) -> str:
    """What a line on the console says of a reason: up to its first semicolon; what was tried and helps follows it."""
    return reason.split(";", 1)[0]


def protocol_sha256(config: EvalConfig, manifest_sha256: str | None) -> str:
    """Hash of the settings that can change a number; where things lie and how fast they run is left out."""
    return _hash(_settings(config, manifest_sha256))


def task_protocol_sha256(config: EvalConfig, manifest_sha256: str | None, task: str, facts: TaskFacts) -> str:
    """The same for one task: its own head's settings, its data, and not those of other tasks."""
    tree = _settings(config, manifest_sha256 if facts.data_sha256 is None else None)
    tree["probe"] = config.probe_of(task).model_dump(mode="json")
    del tree["probes"]
    if facts.data_sha256 is not None:
        tree["data"] = facts.data_sha256
    return _hash([task, facts.version, tree])


def _settings(config: EvalConfig, manifest_sha256: str | None) -> dict[str, object]:
    tree = json.loads(config.model_dump_json(exclude=_MOVE_NO_NUMBER))
    if tree["data"] is not None:
        tree["data"]["shards"] = manifest_sha256
    for name in ("root", "sources", "training_shards"):
        del tree["benchmarks"][name]
    for name in ("cache", "keep_cache"):
        del tree["features"][name]
    return tree


def _hash(tree: object) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def write_results(results: Results, folder: Path) -> Path:
    """Write results.json by rename, so that a reader sees all of it or none."""
    return _write(results, folder / RESULTS_FILE)


def write_record(record: TaskRecord, folder: Path) -> Path:
    """Write `tasks/<task>.json` by rename."""
    (folder / TASKS_FOLDER).mkdir(parents=True, exist_ok=True)
    return _write(record, record_path(folder, record.task))


def record_path(folder: Path, task: str) -> Path:
    """Where the record of a task lies; its examples lie beside it as `.safetensors`."""
    return folder / TASKS_FOLDER / f"{task}.json"


def examples_path(folder: Path, task: str) -> Path:
    """Where the values of every example of a task lie, for paired comparison later."""
    return folder / TASKS_FOLDER / f"{task}.safetensors"


def read_results(path: Path) -> Results:
    """Results of a results.json or of the folder that holds it.

    Raises:
        UserError: no such file, or one that is not a results.json of this format.
    """
    path = path / RESULTS_FILE if path.is_dir() else path
    return _read(Results, path, "write it with `python -m eval run CHECKPOINT CONFIG`")


def read_record(path: Path) -> TaskRecord:
    """What a `tasks/<task>.json` holds.

    Raises:
        UserError: as `read_results`.
    """
    return _read(TaskRecord, path, "evaluate the checkpoint again")


def read_records(folder: Path) -> dict[str, TaskRecord]:
    """Records by task of the folder that holds results.json."""
    return {path.stem: read_record(path) for path in sorted((folder / TASKS_FOLDER).glob("*.json"))}


def read_all_results(folder: Path) -> list[Results]:
    """Results of every `step_*` folder, in step order."""
    found = [read_results(path) for path in sorted(folder.glob(f"step_*/{RESULTS_FILE}"))]
    return sorted(found, key=lambda results: results.step)


def _write(record: _Record, path: Path) -> Path:
    temporary = path.with_suffix(f".{os.getpid()}.part")
    temporary.write_text(record.model_dump_json(indent=1) + "\n")
    os.replace(temporary, path)
    return path


def _read(kind: type[_R], path: Path, remedy: str) -> _R:
    try:
        content = path.read_text()
        version = json.loads(content)["format_version"]
    except FileNotFoundError:
        raise UserError(f"results {path}: no such file; {remedy}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"results {path}: not a results.json ({error}); evaluate the checkpoint again") from None
    if version != FORMAT_VERSION:
        raise UserError(f"results {path}: format {version}, this program reads {FORMAT_VERSION}; evaluate again")
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = str(error).splitlines()[0]
        raise UserError(f"results {path}: not a results.json ({first}); evaluate the checkpoint again") from None
