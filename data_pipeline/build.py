"""structures -> shards: a pure function of inputs and configuration, resumable after any interruption."""

import hashlib
import json
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from configs.build import BuildConfig
from configs.errors import UserError
from data_pipeline.conclusion import NEUTRAL_SETTINGS, conclude
from data_pipeline.executor import ray_session, run_tasks, with_progress
from data_pipeline.inputs import Inputs, read_inputs
from data_pipeline.manifest import SPLITS, Manifest, ShardFacts
from data_pipeline.output_folder import WORK_NAME, finished_manifest, remove_folder, sole_use, work_folders
from data_pipeline.parse_task import count_parsed
from data_pipeline.placement import ShardTask, place_chains, plan_shards
from data_pipeline.shard_task import finished_shard, write_planned_shard
from data_pipeline.splits.checks import check_split_inputs
from data_pipeline.splits.mmseqs import mmseqs_version
from data_pipeline.spool import BatchTask, MappedTable, ParsedBatch, Reject, cut_batches, read_columns

R = TypeVar("R")

log = logging.getLogger("data_pipeline")

COLUMNS_NAME = "columns.arrow"
SHARDS_AT_HAND = 8
"""Tasks of writing a shard that a worker holds: each takes less than a tenth of a second."""
UNTIL_FIRST = ": until the first result"
WORKER_STAGES = ("read", "parse", "threedi", "graphs", "facts", "write")


@dataclass(frozen=True)
class BuildOutcome:
    """What a build did, for the closing table."""

    manifest: Manifest
    up_to_date: bool
    """Nothing had to be done."""
    seconds: float
    stage_seconds: dict[str, float]
    """Wall-clock time of the driver's stages, and worker time of the parsing stages."""
    resumed_batches: int
    """Batches that an earlier, interrupted run had parsed already."""


def build(config: BuildConfig) -> Manifest:
    """Build shards as configured and return their manifest; does nothing when they are up to date.

    Raises:
        UserError: no structures, no usable chain, an output folder that holds something else or is in use.
    """
    return run_build(config).manifest


def run_build(config: BuildConfig) -> BuildOutcome:
    """`build` with what the closing table tells beside the manifest."""
    start = time.monotonic()
    output = config.output.absolute()
    check_split_inputs(config.split, config.leakage)
    with sole_use(output):
        stages: dict[str, float] = {}
        with _timed(stages, "list inputs"):
            inputs = read_inputs(config)
        identity = _identity(config, inputs)
        manifest = finished_manifest(output, identity)
        if manifest is not None:
            return BuildOutcome(manifest, True, time.monotonic() - start, stages, 0)
        manifest, resumed = _build_anew(config, output, inputs, identity, stages)
        return BuildOutcome(manifest, False, time.monotonic() - start, stages, resumed)


def _build_anew(
    config: BuildConfig, output: Path, inputs: Inputs, identity: str, stages: dict[str, float]
) -> tuple[Manifest, int]:
    """The manifest, and how many batches were found parsed; adds to `stages`."""
    parsed, scratch = work_folders(output, identity)
    tasks = list(cut_batches(inputs.entries, inputs.fingerprints, config, parsed))
    with ExitStack() as stack:
        with _timed(stages, "start Ray"):
            workers = stack.enter_context(ray_session(config.num_workers))
        with _timed(stages, "parse"):
            resumed = _parse(tasks, workers, stages)
        with _timed(stages, "cluster and split"):
            table, rejects, worker_seconds = gather(tasks, scratch)
            if not table.num_rows:
                raise _nothing_usable(inputs, rejects)
            placement, dropped = place_chains(table, config, scratch)
        rejects = sorted([*rejects, *dropped], key=lambda r: (r.path, r.chain, r.reason, r.detail))
        if not len(placement):
            raise _nothing_usable(inputs, rejects)
        shard_tasks = plan_shards(placement, config.shards.samples_per_shard, output, scratch, parsed)
        with _timed(stages, "write shards"):
            shards = _write(shard_tasks, output, workers, stages)
    manifest = conclude(config, inputs, identity, placement, shards, rejects, scratch)
    remove_folder(output / WORK_NAME)
    for name in WORKER_STAGES:
        stages[f"worker: {name}"] = worker_seconds.get(name, 0.0)
    return manifest, resumed


def _parse(tasks: Sequence[BatchTask], workers: int, stages: dict[str, float]) -> int:
    """Parse the batches that are not there yet; returns how many were.

    A batch of which an entry could not be read is parsed again: a network or a disk may be back.
    """
    missing = [task for task in tasks if _is_missing(read_columns(task))]
    resumed = len(tasks) - len(missing)
    if resumed:
        log.info("%d of %d batches were parsed before the interruption", resumed, len(tasks))
    counts = _first_timed(run_tasks(count_parsed, missing, workers), stages, "parse")
    for _ in with_progress(counts, len(missing), "parsing", lambda count: count, "chains"):
        pass
    return resumed


def _is_missing(batch: ParsedBatch | None) -> bool:
    return batch is None or any(reject.reason == "unreadable" for reject in batch.rejects)


def gather(tasks: Sequence[BatchTask], scratch: Path) -> tuple[pa.Table, list[Reject], dict[str, float]]:
    """Columns of all chains as one mapped table, all rejects, and the workers' seconds by stage."""
    columns = MappedTable(scratch / COLUMNS_NAME)
    rejects: list[Reject] = []
    seconds: dict[str, float] = defaultdict(float)
    for task in tasks:
        batch = read_columns(task)
        assert batch is not None, f"{task.columns} vanished"
        columns.append(batch.chains)
        rejects += batch.rejects
        for stage, spent in batch.seconds.items():
            seconds[stage] += spent
    return columns.finish(), rejects, seconds


def _write(tasks: Sequence[ShardTask], output: Path, workers: int, stages: dict[str, float]) -> dict[str, ShardFacts]:
    """Write the shards that are not there yet; drop those of an earlier build."""
    done = {task.name: finished_shard(task) for task in tasks}
    shards = {name: facts for name, facts in done.items() if facts is not None}
    keep = {name for facts in shards.values() for name in (facts.name, facts.index)}
    for split in SPLITS:
        for path in output.glob(f"{split}-[0-9]*"):
            if path.name not in keep:
                path.unlink()
    missing = [task for task in tasks if task.name not in shards]
    results = _first_timed(run_tasks(write_planned_shard, missing, workers, SHARDS_AT_HAND), stages, "write shards")
    for facts in with_progress(results, len(missing), "writing shards", lambda facts: facts.samples, "chains"):
        shards[facts.name] = facts
    return shards


def _identity(config: BuildConfig, inputs: Inputs) -> str:
    """Hash of all that decides on the shards; equal to the last build's means that there is nothing to do."""
    # The batches' names are hashes over entries, versions and the parsing settings.
    settings = config.model_dump(mode="json", exclude=NEUTRAL_SETTINGS)
    stems = [task.stem for task in cut_batches(inputs.entries, inputs.fingerprints, config, Path())]
    tables = [path for path in (config.split.membership, *config.leakage.against) if path is not None]
    states = [_state(Path(path)) for path in tables]
    content = [settings, stems, states, mmseqs_version() if _may_use_mmseqs(config) else None]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _state(path: Path) -> list[int] | None:
    """Size and modification time; None for a file that is not there, of which its reader will complain."""
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


def _may_use_mmseqs(config: BuildConfig) -> bool:
    """Clusters or hits may come from MMseqs2, whose versions may differ in what they find."""
    clusters = config.split.membership is None and config.split.method != "kmers"
    return clusters or (bool(config.leakage.against) and config.leakage.method != "kmers")


def _nothing_usable(inputs: Inputs, rejects: Sequence[Reject]) -> UserError:
    counts = ", ".join(f"{n} {reason}" for reason, n in Counter(r.reason for r in rejects).most_common(5))
    first = next(iter(rejects), None)
    example = f"; e.g. {first.path}: {first.reason} {first.detail}" if first else ""
    return UserError(
        f"build: no usable chain in {len(inputs.entries)} entries of {inputs.place} ({counts}){example}; "
        "check source.path or loosen filters.*"
    )


def _first_timed(results: Iterator[R], stages: dict[str, float], name: str) -> Iterator[R]:
    """Pass results through and note the seconds until the first one: the start of Ray's workers, and one task."""
    start = time.monotonic()
    for number, result in enumerate(results):
        if number == 0:
            stages[f"{name}{UNTIL_FIRST}"] = time.monotonic() - start
        yield result


@contextmanager
def _timed(stages: dict[str, float], name: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    stages[name] = time.monotonic() - start
