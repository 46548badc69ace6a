"""What a build will take, told from a sample of its source: time, disk and memory, before any of it is spent."""

import resource
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.compute as pc

from configs.build import BuildConfig
from configs.errors import UserError
from data_pipeline.inputs import Inputs, read_inputs
from data_pipeline.manifest import SPLITS
from data_pipeline.parse_task import parse_batch
from data_pipeline.shards import TarWriter
from data_pipeline.splits.checks import check_split_inputs
from data_pipeline.spool import BatchTask, ParsedBatch, cut_batches

SAMPLED_ENTRIES = 96
"""Entries that a dry run parses, evenly spread over the source."""
ENTRIES_PER_BATCH = 16
RAY_EFFICIENCY = 0.95
"""Throughput of the workers under Ray over that of the bare functions (`python -m tests.benchmarks.build`)."""
START_SECONDS = 12.0
"""Ray, and its workers twice: for parsing and for writing."""
RAY_BYTES = 1.0e9
"""Resident memory of Ray's own processes on one machine."""


@dataclass(frozen=True)
class UnitCosts:
    """Measured costs of the pipeline on one CPU core."""

    parse_seconds: float
    """Per residue: read, parse, 3Di, graphs, facts, write to the spool."""
    shard_seconds: float
    """Per residue: from the spool to the shard."""
    shard_bytes: float
    """Per residue, tar headers and padding included."""
    driver_bytes: float
    """Per entry: what the driver's memory holds of it."""
    worker_bytes: float
    """Peak resident memory of one worker."""
    residues_per_entry: float
    """Residues kept."""
    chains_per_entry: float
    kept: float
    """Fraction of the chains found that stay (before duplicates, which only the whole shows)."""


@dataclass(frozen=True)
class Prediction:
    """What a build of so many entries takes."""

    entries: int
    workers: int
    chains: float
    residues: float
    hours: float
    core_hours: float
    shard_bytes: float
    peak_disk_bytes: float
    """Shards and the spool of parsed batches beside them, which goes at the end."""
    driver_bytes: float
    worker_bytes: float
    """All workers of one machine together with Ray's own processes."""


@dataclass(frozen=True)
class DryRun:
    """The sample, what it cost, and what that means for the whole."""

    sampled: int
    reasons: Counter[str]
    """Drops of the sample."""
    costs: UnitCosts
    prediction: Prediction


def dry_run(config: BuildConfig, workers: int, sampled: int = SAMPLED_ENTRIES) -> DryRun:
    """List the source, parse a sample of it into a temporary folder, and predict the whole build.

    Raises:
        UserError: nothing at the source, or no chain of the sample passes the filters.
    """
    check_split_inputs(config.split, config.leakage)
    tracemalloc.start()
    inputs = read_inputs(config)
    listed_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    chosen = spread(inputs, sampled)
    with tempfile.TemporaryDirectory(prefix="saplm-dry-run-") as folder:
        costs, reasons = measure(chosen, config, Path(folder), listed_bytes / len(inputs.entries))
    return DryRun(len(chosen.entries), reasons, costs, predict(costs, len(inputs.entries), workers))


def spread(inputs: Inputs, count: int) -> Inputs:
    """At most `count` entries, evenly spread over the source."""
    total = len(inputs.entries)
    rows = sorted({number * total // min(count, total) for number in range(min(count, total))})
    return replace(
        inputs,
        entries=tuple(inputs.entries[row] for row in rows),
        fingerprints=tuple(inputs.fingerprints[row] for row in rows),
    )


def measure(inputs: Inputs, config: BuildConfig, folder: Path, driver_bytes: float) -> tuple[UnitCosts, Counter[str]]:
    """Costs of parsing these entries into `folder`, and what was dropped of them by reason.

    The first batch is parsed twice and timed the second time: the first pays for imports and caches.
    """
    settings = config.model_copy(update={"structures_per_task": ENTRIES_PER_BATCH})
    tasks = list(cut_batches(inputs.entries, inputs.fingerprints, settings, folder))
    parse_batch(tasks[0])
    start = time.process_time()
    batches = [parse_batch(task) for task in tasks]
    seconds = time.process_time() - start
    reasons = Counter(reject.reason for batch in batches for reject in batch.rejects)
    chains = sum(batch.chains.num_rows for batch in batches)
    if not chains:
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(5))
        raise UserError(
            f"dry run: none of {len(inputs.entries)} sampled entries of {inputs.place} is usable ({counts}); "
            "check source.path or loosen filters.*"
        )
    residues = sum(_residues(batch) for batch in batches)
    tar_bytes = sum(batch.tar_bytes for batch in batches)
    entries = len(inputs.entries)
    columns = sum(batch.chains.drop(["sequence"]).nbytes for batch in batches)
    costs = UnitCosts(
        parse_seconds=seconds / residues,
        shard_seconds=_copy_seconds(tasks, folder) / residues,
        shard_bytes=tar_bytes / residues,
        driver_bytes=driver_bytes + columns / entries,
        worker_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0,
        residues_per_entry=residues / entries,
        chains_per_entry=chains / entries,
        kept=chains / (chains + sum(reasons.values())),
    )
    return costs, reasons


def predict(costs: UnitCosts, entries: int, workers: int) -> Prediction:
    """Scale measured costs to a whole source: everything is linear in residues, but for what the driver holds."""
    residues = entries * costs.residues_per_entry
    core_seconds = residues * (costs.parse_seconds + costs.shard_seconds)
    shard_bytes = residues * costs.shard_bytes
    return Prediction(
        entries=entries,
        workers=workers,
        chains=entries * costs.chains_per_entry,
        residues=residues,
        hours=(START_SECONDS + core_seconds / workers / RAY_EFFICIENCY) / 3600,
        core_hours=core_seconds / 3600,
        shard_bytes=shard_bytes,
        peak_disk_bytes=2 * shard_bytes,
        driver_bytes=entries * costs.driver_bytes,
        worker_bytes=workers * costs.worker_bytes + RAY_BYTES,
    )


def _residues(batch: ParsedBatch) -> int:
    return int(pc.sum(batch.chains["residues"]).as_py() or 0)


def _copy_seconds(tasks: Sequence[BatchTask], folder: Path) -> float:
    """CPU seconds to write the samples of the batches once more, as shards are written from the spool."""
    start = time.process_time()
    with TarWriter(folder / f"{SPLITS[0]}-copy.tar") as copy:
        for task in tasks:
            copy.add(task.stem, task.tar.read_bytes())
        copy.commit()
    return time.process_time() - start
