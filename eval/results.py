"""results.json: what one checkpoint scored, with everything needed to know whether two files may be compared."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from configs.errors import UserError
from configs.evaluate import EvalConfig
from eval.intervals import Link, Measurement, PairedDifference, paired_difference

FORMAT_VERSION = "1.0"
RESULTS_FILE = "results.json"
EXAMPLES_FILE = "examples.safetensors"
REGRESSION_FILE = "contact_regression.safetensors"
CONTACT_EXAMPLE_FILE = "contact_example.safetensors"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Result(_Record):
    """One metric of one task."""

    task: str
    task_version: str
    split: str
    metric: str
    value: float
    ci_low: float | None
    """95 % interval by bootstrap over sequence clusters; null with fewer than two clusters."""
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


class TaskFacts(_Record):
    """What a task measures and how, so that a number can be read years later."""

    version: str
    frozen: str
    head: str
    method: str


class Results(_Record):
    """Content of results.json."""

    format_version: str = FORMAT_VERSION
    run: str
    stage: str
    trunk: str
    """Family and size, e.g. `esm2 6x320x20`."""
    step: int
    weights_sha256: str
    manifest_sha256: str
    """Of the shards that were evaluated on."""
    training_manifest_sha256: str | None = None
    """Of the shards that the run was trained on, where the checkpoint records it."""
    protocol_sha256: str
    """Of everything in the config that can change a number."""
    fit_split: str
    num_fit_chains: int
    num_test_chains: int
    num_embedded: int
    """Chains embedded in the pass that all frozen tasks share: each exactly once."""
    seconds: float
    tasks: dict[str, TaskFacts]
    results: tuple[Result, ...]
    skipped: tuple[Skipped, ...]

    def find(self, task: str, metric: str) -> Result | None:
        """The result of that task and metric, if there is one."""
        return next((r for r in self.results if (r.task, r.metric) == (task, metric)), None)


def protocol_sha256(config: EvalConfig, manifest_sha256: str) -> str:
    """Hash of the settings that can change a number; where things lie and how fast they run is left out."""
    tree = json.loads(config.model_dump_json(exclude={"device", "mlflow", "poll_seconds", "stall_seconds"}))
    tree["data"]["shards"] = manifest_sha256
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def write_results(results: Results, folder: Path) -> Path:
    """Write results.json by rename, so that a reader sees all of it or none."""
    path = folder / RESULTS_FILE
    temporary = path.with_suffix(".json.part")
    temporary.write_text(results.model_dump_json(indent=1) + "\n")
    os.replace(temporary, path)
    return path


def read_results(path: Path) -> Results:
    """Results of a results.json or of the folder that holds it.

    Raises:
        UserError: no such file, or one that is not a results.json of this format.
    """
    path = path / RESULTS_FILE if path.is_dir() else path
    try:
        results = Results.model_validate_json(path.read_text())
    except FileNotFoundError:
        raise UserError(f"results {path}: no such file; write it with `python -m eval run CHECKPOINT CONFIG`") from None
    except (ValidationError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"results {path}: not a results.json ({first}); evaluate the checkpoint again") from None
    if results.format_version != FORMAT_VERSION:
        raise UserError(
            f"results {path}: format {results.format_version}, this program reads {FORMAT_VERSION}; evaluate again"
        )
    return results


def read_all_results(folder: Path) -> list[Results]:
    """Results of every `step_*` folder, in step order."""
    found = [read_results(path) for path in sorted(folder.glob(f"step_*/{RESULTS_FILE}"))]
    return sorted(found, key=lambda results: results.step)


def write_examples(measurements: dict[str, Sequence[Measurement]], folder: Path) -> None:
    """Values of every example by task (`<task>|<metric>|values`, ...), for paired comparison later."""
    tensors: dict[str, np.ndarray] = {}
    facts: dict[str, dict[str, object]] = {}
    for task, ours in measurements.items():
        for m in ours:
            name = f"{task}|{m.metric}"
            facts[name] = {"keys": m.keys, "link": m.link}
            tensors |= {f"{name}|values": m.values, f"{name}|weights": m.weights, f"{name}|clusters": m.clusters}
    path = folder / EXAMPLES_FILE
    temporary = path.with_suffix(".part")
    save_file(tensors, temporary, metadata={"measurements": json.dumps(facts)})
    os.replace(temporary, path)


def read_examples(folder: Path) -> dict[tuple[str, str], Measurement]:
    """Measurements by (task, metric) that `write_examples` wrote.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = folder / EXAMPLES_FILE
    try:
        with safe_open(path, framework="numpy") as file:
            facts = json.loads(file.metadata()["measurements"])
            read: dict[tuple[str, str], Measurement] = {}
            for name, fact in facts.items():
                task, metric = name.split("|")
                arrays = [file.get_tensor(f"{name}|{part}") for part in ("values", "weights", "clusters")]
                link: Link = fact["link"]
                read[task, metric] = Measurement(metric, tuple(fact["keys"]), *arrays, link)
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"examples {path}: cannot be read ({error}); evaluate the checkpoint again") from None
    return read


def check_comparable(first: Results, second: Results) -> None:
    """Refuse two files whose numbers do not mean the same.

    Raises:
        UserError: a shared task has another version, or the data or settings differ.
    """
    for task in sorted(first.tasks.keys() & second.tasks.keys()):
        versions = (first.tasks[task].version, second.tasks[task].version)
        if versions[0] != versions[1]:
            raise UserError(f"comparison: task {task!r} has versions {versions[0]} and {versions[1]}; evaluate again")
    if first.manifest_sha256 != second.manifest_sha256:
        raise UserError(
            f"comparison: evaluated on different shards ({first.manifest_sha256[:12]}, {second.manifest_sha256[:12]}); "
            "evaluate both on the same"
        )


def compare(first: Path, second: Path, num_samples: int = 4000, seed: int = 0) -> dict[str, PairedDifference]:
    """Second evaluation minus first by `task/metric`, paired over the examples both hold.

    Raises:
        UserError: the two may not be compared (see `check_comparable`).
    """
    check_comparable(read_results(first), read_results(second))
    ours, theirs = read_examples(first), read_examples(second)
    shared = [name for name in ours if name in theirs]
    return {
        f"{task}/{metric}": paired_difference(ours[task, metric], theirs[task, metric], num_samples, seed)
        for task, metric in shared
    }
