"""structures -> shards: a pure function of inputs and configuration, resumable after any interruption."""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from configs.build import BuildConfig
from configs.errors import UserError
from data_pipeline.executor import ray_session, run_tasks, with_progress
from data_pipeline.inputs import Inputs, read_inputs
from data_pipeline.manifest import (
    MANIFEST_NAME,
    NO_LEAKAGE,
    REJECTS_NAME,
    SPLITS,
    LeakageFacts,
    Manifest,
    ShardFacts,
    SourceFacts,
    SplitFacts,
    read_manifest,
    vocabulary_sha256,
    write_atomically,
    write_sealed,
)
from data_pipeline.parse_task import count_parsed
from data_pipeline.placement import PlacedChain, ShardTask, place_chains, plan_shards
from data_pipeline.schema import SCHEMA_VERSION
from data_pipeline.shard_task import finished_shard, write_planned_shard
from data_pipeline.spool import BatchTask, ParsedBatch, Reject, cut_batches, read_columns

log = logging.getLogger("data_pipeline")

WORK_NAME = ".work"
INPUTS_NAME = "inputs.json"
"""Holds the hash over configuration and entries (with modification times) that a repeated build compares."""
NEUTRAL_SETTINGS = {"output", "num_workers"}
"""Settings that cannot change a byte of the shards."""
REMOVAL_TRIES = 5
SECONDS_BETWEEN_TRIES = 0.2


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
    with _sole_use(output):
        stages: dict[str, float] = {}
        with _timed(stages, "list inputs"):
            inputs = read_inputs(config)
        identity = _identity(config, inputs)
        manifest = _finished(output, identity)
        if manifest is not None:
            return BuildOutcome(manifest, True, time.monotonic() - start, stages, 0)
        manifest, resumed = _build_anew(config, output, inputs, identity, stages)
        return BuildOutcome(manifest, False, time.monotonic() - start, stages, resumed)


def _build_anew(
    config: BuildConfig, output: Path, inputs: Inputs, identity: str, stages: dict[str, float]
) -> tuple[Manifest, int]:
    """The manifest, and how many batches were found parsed; adds to `stages`."""
    parsed, scratch = _work_folders(output, identity)
    tasks = list(cut_batches(inputs.entries, inputs.fingerprints, config, parsed))
    with ExitStack() as stack:
        with _timed(stages, "start Ray"):
            workers = stack.enter_context(ray_session(config.num_workers))
        with _timed(stages, "parse"):
            batches, resumed = _parse(tasks, workers)
        rejects = [reject for batch in batches.values() for reject in batch.rejects]
        with _timed(stages, "cluster and split"):
            records = [(str(task.tar), chain) for task in tasks for chain in batches[task.stem].chains]
            placed, duplicates = place_chains(records, config)
        rejects = sorted([*rejects, *duplicates], key=lambda r: (r.path, r.chain, r.reason, r.detail))
        if not placed:
            raise _nothing_usable(inputs, rejects)
        shard_tasks = plan_shards(placed, config.shards.samples_per_shard, str(output), str(scratch))
        with _timed(stages, "write shards"):
            shards = _write(shard_tasks, output, workers)
    manifest = _finish(config, output, inputs, placed, shards, rejects, scratch, identity)
    for name in ("read", "parse", "threedi", "graphs", "facts", "write"):
        stages[f"worker: {name}"] = sum(batch.seconds.get(name, 0.0) for batch in batches.values())
    return manifest, resumed


def _parse(tasks: Sequence[BatchTask], workers: int) -> tuple[dict[str, ParsedBatch], int]:
    """Columns of every batch by stem, and how many were found finished."""
    found = {task.stem: read_columns(task) for task in tasks}
    batches = {stem: batch for stem, batch in found.items() if batch is not None}
    resumed = len(batches)
    if resumed:
        log.info("%d of %d batches were parsed before the interruption", resumed, len(tasks))
    missing = [task for task in tasks if task.stem not in batches]
    counts = run_tasks(count_parsed, missing, workers)
    for _ in with_progress(counts, len(missing), "parsing", lambda count: count, "chains"):
        pass
    for task in missing:
        batch = read_columns(task)
        assert batch is not None, f"{task.columns} vanished"
        batches[task.stem] = batch
    return batches, resumed


def _write(tasks: Sequence[ShardTask], output: Path, workers: int) -> dict[str, ShardFacts]:
    """Write the shards that are not there yet; drop those of an earlier build."""
    done = {task.name: finished_shard(task) for task in tasks}
    shards = {name: facts for name, facts in done.items() if facts is not None}
    keep = {name for facts in shards.values() for name in (facts.name, facts.index)}
    for split in SPLITS:
        for path in output.glob(f"{split}-[0-9]*"):
            if path.name not in keep:
                path.unlink()
    missing = [task for task in tasks if task.name not in shards]
    results = run_tasks(write_planned_shard, missing, workers)
    for facts in with_progress(results, len(missing), "writing shards", lambda facts: facts.samples, "chains"):
        shards[facts.name] = facts
    return shards


def _finish(
    config: BuildConfig,
    output: Path,
    inputs: Inputs,
    placed: Sequence[PlacedChain],
    shards: dict[str, ShardFacts],
    rejects: Sequence[Reject],
    scratch: Path,
    identity: str,
) -> Manifest:
    """Write the reject list, the inputs' hash and, last, the manifest; then remove the work folder."""
    lines = "".join(json.dumps(asdict(reject), sort_keys=True) + "\n" for reject in rejects).encode()
    write_atomically(output / REJECTS_NAME, lines, scratch)
    splits_of_cluster: dict[int, set[str]] = {}
    for chain in placed:
        splits_of_cluster.setdefault(chain.cluster, set()).add(chain.split)
    assert all(len(splits) == 1 for splits in splits_of_cluster.values()), "a cluster stands in two splits"
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        vocabulary_sha256=vocabulary_sha256(),
        config=config.model_dump(mode="json", exclude=NEUTRAL_SETTINGS),
        commit=_commit(),
        source=SourceFacts(
            kind=config.source.kind, entries=len(inputs.entries), entries_sha256=inputs.names_and_sizes_sha256
        ),
        splits={split: _split_facts(split, placed, shards) for split in SPLITS},
        chains=len(placed) + len(rejects),
        kept=len(placed),
        dropped=dict(sorted(Counter(reject.reason for reject in rejects).items())),
        rejects_sha256=hashlib.sha256(lines).hexdigest(),
        leakage=LeakageFacts(clusters_in_two_splits=0, statement=NO_LEAKAGE),
    )
    write_atomically(output / INPUTS_NAME, json.dumps({"identity": identity}).encode() + b"\n", scratch)
    write_sealed(output / MANIFEST_NAME, manifest, scratch)
    _remove(output / WORK_NAME)
    return manifest


def _split_facts(split: str, placed: Sequence[PlacedChain], shards: dict[str, ShardFacts]) -> SplitFacts:
    chains = [chain for chain in placed if chain.split == split]
    return SplitFacts(
        samples=len(chains),
        residues=sum(len(chain.record.sequence) for chain in chains),
        clusters=len({chain.cluster for chain in chains}),
        high_quality=sum(chain.high_quality for chain in chains),
        shards=tuple(shards[name] for name in sorted(shards) if name.startswith(f"{split}-")),
    )


def _identity(config: BuildConfig, inputs: Inputs) -> str:
    """Hash of all that decides on the shards; equal to the last build's means that there is nothing to do."""
    # The batches' names are hashes over entries, versions and the parsing settings.
    settings = config.model_dump(mode="json", exclude=NEUTRAL_SETTINGS)
    stems = [task.stem for task in cut_batches(inputs.entries, inputs.fingerprints, config, Path())]
    return hashlib.sha256(json.dumps([settings, stems], sort_keys=True).encode()).hexdigest()


def _finished(output: Path, identity: str) -> Manifest | None:
    """The manifest when the last build had the same inputs and every file still has its size."""
    if not (output / MANIFEST_NAME).is_file():
        return None
    try:
        manifest, _ = read_manifest(output)
        same = json.loads((output / INPUTS_NAME).read_bytes())["identity"] == identity
        shards = [shard for split in manifest.splits.values() for shard in split.shards]
        whole = all((output / s.name).stat().st_size == s.bytes and (output / s.index).is_file() for s in shards)
        whole = whole and (output / REJECTS_NAME).is_file()
    except (UserError, OSError, ValueError, KeyError):
        return None
    if not (same and whole):
        return None
    # Killed between its manifest and its last step.
    _remove(output / WORK_NAME)
    return manifest


def _work_folders(output: Path, identity: str) -> tuple[Path, Path]:
    """Folders for parsed batches and for this build's unfinished shards; leftovers of other builds go.

    The manifest goes first: from here on the folder must not be taken for a finished build.
    """
    foreign = [p.name for p in output.iterdir()] if not _ours(output) else []
    if foreign:
        raise UserError(
            f"output {output}: holds {len(foreign)} other files (e.g. {sorted(foreign)[0]}) and no shards; "
            "name a new or empty folder, or an earlier build's"
        )
    work = output / WORK_NAME
    parsed, scratch = work / "parsed", work / identity
    # Made before the manifest goes, so that the folder is known as ours at every moment.
    parsed.mkdir(parents=True, exist_ok=True)
    (output / MANIFEST_NAME).unlink(missing_ok=True)
    for path in work.iterdir():
        # Also disarms workers of a killed build that still run: their unfinished files have nowhere to go.
        if path not in (parsed, scratch):
            _remove(path)
    scratch.mkdir(exist_ok=True)
    for path in [*parsed.glob(".*.part"), *scratch.glob(".*.part")]:
        path.unlink()
    return parsed, scratch


def _ours(output: Path) -> bool:
    return (output / WORK_NAME).is_dir() or (output / INPUTS_NAME).is_file()


def _remove(folder: Path) -> None:
    """Remove a folder into which a worker of a killed build may still be writing its last file."""
    for _ in range(REMOVAL_TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(SECONDS_BETWEEN_TRIES)
    shutil.rmtree(folder)


def _nothing_usable(inputs: Inputs, rejects: Sequence[Reject]) -> UserError:
    counts = ", ".join(f"{n} {reason}" for reason, n in Counter(r.reason for r in rejects).most_common(5))
    first = next(iter(rejects), None)
    example = f"; e.g. {first.path}: {first.reason} {first.detail}" if first else ""
    return UserError(
        f"build: no usable chain in {len(inputs.entries)} entries of {inputs.place} ({counts}){example}; "
        "check source.path or loosen filters.*"
    )


@contextmanager
def _sole_use(output: Path) -> Iterator[None]:
    """The folder, made when missing, for this process alone; the lock ends with the process and leaves no file."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        handle = os.open(output, os.O_RDONLY)
    except OSError as error:
        raise UserError(
            f"output {output}: cannot be used ({error.strerror}); name a folder that can be written"
        ) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UserError(
            f"output {output}: another build is writing there; wait for it or name another folder"
        ) from None
    try:
        yield
    finally:
        os.close(handle)


@contextmanager
def _timed(stages: dict[str, float], name: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    stages[name] = time.monotonic() - start


def _commit() -> str | None:
    """Commit of this code: from SAPLM_COMMIT (a submitted job has no .git), else from git."""
    if given := os.environ.get("SAPLM_COMMIT"):
        return given
    root = Path(__file__).parents[1]
    command = ["git", "-C", str(root), "rev-parse", "--verify", "--quiet", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return answer.stdout.strip() or None
