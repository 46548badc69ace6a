"""Verifying a folder of shards against its manifest, bit by bit, and what it holds in numbers."""

import hashlib
import io
import json
import multiprocessing
import tarfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors.numpy

from configs.errors import UserError
from data_pipeline.derived import (
    COMPONENTS_NAME,
    DERIVE_REMEDY,
    DERIVED_COLUMNS,
    DERIVED_FOLDER,
    DerivedManifest,
    derived_names,
)
from data_pipeline.manifest import (
    MANIFEST_NAME,
    REJECTS_NAME,
    DamagedShard,
    Manifest,
    ShardFacts,
    SplitFacts,
    read_manifest,
    read_sealed,
    split_order,
)
from data_pipeline.reader import DECODING_ERRORS
from data_pipeline.schema import INDEX_COLUMNS, Sample, decode_sample
from data_pipeline.structure.chain import THREEDI_STATES


@dataclass
class SplitCounts:
    """Sums over the samples of one split."""

    samples: int = 0
    residues: int = 0
    high_quality: int = 0
    clusters: set[int] = field(default_factory=set)
    threedi: np.ndarray = field(default_factory=lambda: np.zeros(len(THREEDI_STATES), dtype=np.int64))
    """Residues per 3Di state, invalid ones left out."""
    invalid: int = 0
    """Residues without a computed 3Di state."""
    unreliable: int = 0
    """Residues whose position is not to be trusted."""
    experimental_bfactor: list[float] = field(default_factory=lambda: [0.0, 0])
    """Sum and count over residues of experimental chains; zeros and unknown values left out."""
    plddt: list[float] = field(default_factory=lambda: [0.0, 0])
    methods: Counter[str] = field(default_factory=Counter)
    graph_edges: Counter[str] = field(default_factory=Counter)

    def add(self, other: "SplitCounts") -> None:
        """Take in the sums over other samples of the split."""
        for name in ("samples", "residues", "high_quality", "invalid", "unreliable", "threedi"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("experimental_bfactor", "plddt"):
            setattr(self, name, [a + b for a, b in zip(getattr(self, name), getattr(other, name), strict=True)])
        self.clusters |= other.clusters
        self.methods += other.methods
        self.graph_edges += other.graph_edges


@dataclass
class AuditReport:
    """What an audit found; damage maps a file (relative to the folder) to what is wrong with it."""

    damage: dict[str, str] = field(default_factory=dict)
    manifest: Manifest | None = None
    splits: dict[str, SplitCounts] = field(default_factory=dict)
    derived: dict[str, int] = field(default_factory=dict)
    """Verified samples of each derived column."""

    def blame(self, file: str, what: str) -> None:
        self.damage.setdefault(file, what)


@dataclass(frozen=True)
class _ShardFindings:
    """What the audit of one base shard found."""

    keys: list[str]
    counts: SplitCounts
    damage: dict[str, str]


def audit(folder: Path, workers: int = 1) -> AuditReport:
    """Check every hash, count, index, member and sample of a folder of shards and of its derived columns.

    Args:
        workers: processes that share the shards.

    Raises:
        UserError: there are no finished shards to audit.
    """
    report = AuditReport()
    try:
        report.manifest, _ = read_manifest(folder)
    except DamagedShard as error:
        report.blame(MANIFEST_NAME, str(error))
        return report
    splits = sorted(report.manifest.splits.items(), key=lambda item: split_order(item[0]))
    shards = [shard for _, facts in splits for shard in facts.shards]
    keys: dict[str, list[str]] = {}
    with ExitStack() as stack:
        findings = _all_findings(folder, shards, min(workers, len(shards)), stack)
        for split, facts in splits:
            counts = report.splits.setdefault(split, SplitCounts())
            for shard in facts.shards:
                found = next(findings)
                counts.add(found.counts)
                report.damage.update(found.damage)
                if not found.damage:
                    keys[shard.name] = found.keys
            _compare_totals(split, facts, counts, report)
    _check_across(folder, report.manifest, keys, report)
    for name in derived_names(folder):
        _audit_derived(folder, name, report.manifest, keys, report)
    return report


def _all_findings(folder: Path, shards: list[ShardFacts], workers: int, stack: ExitStack) -> Iterator[_ShardFindings]:
    """Findings of the shards in their order."""
    tasks = [(folder, shard) for shard in shards]
    if workers <= 1:
        return map(_findings, tasks)
    # Spawned, because the caller may hold threads that a forked child would not have.
    pool = stack.enter_context(ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")))
    return pool.map(_findings, tasks)


def _findings(task: tuple[Path, ShardFacts]) -> _ShardFindings:
    folder, shard = task
    report, counts = AuditReport(), SplitCounts()
    keys = _audit_shard(folder, shard, counts, report)
    return _ShardFindings(keys, counts, report.damage)


def _audit_shard(folder: Path, shard: ShardFacts, counts: SplitCounts, report: AuditReport) -> list[str]:
    """Keys of a shard in order; damage goes to the report."""
    opened = _open_files(folder, "", shard, len(INDEX_COLUMNS), report)
    if opened is None:
        return []
    data, table = opened
    keys = []
    try:
        suffixes = (".json", ".safetensors")
        for row, (start, members) in zip(table.tolist(), _members(data, len(table), suffixes), strict=True):
            values = dict(zip(INDEX_COLUMNS, row, strict=True))
            (_, facts_at, facts), (_, arrays_at, arrays) = members
            sample = decode_sample(facts, arrays)
            _check_sample(sample, members[0][0])
            found = {
                "offset": start,
                "json_offset": facts_at,
                "json_length": len(facts),
                "arrays_offset": arrays_at,
                "arrays_length": len(arrays),
                "residues": len(sample),
                "cluster": sample.cluster,
                "high_quality": int(sample.high_quality),
            }
            wrong = [name for name, value in found.items() if values[name] != value]
            if wrong:
                raise ValueError(f"sample {sample.key}: the index disagrees on {', '.join(wrong)}")
            _count(sample, counts)
            keys.append(sample.key)
    except (*DECODING_ERRORS, tarfile.TarError) as error:
        report.blame(shard.name, f"content: {error}")
    return keys


def _open_files(
    folder: Path, prefix: str, shard: ShardFacts, columns: int, report: AuditReport
) -> tuple[bytes, np.ndarray] | None:
    """Bytes of a tar and its index table, once sizes and hashes agree; None after blaming the file."""
    contents = {}
    for name, sha256, size in ((shard.name, shard.sha256, shard.bytes), (shard.index, shard.index_sha256, None)):
        try:
            contents[name] = (folder / prefix / name).read_bytes()
        except OSError as error:
            report.blame(f"{prefix}{name}", f"cannot be read: {error.strerror}")
            continue
        if size is not None and len(contents[name]) != size:
            report.blame(f"{prefix}{name}", f"{len(contents[name])} bytes, the manifest says {size}")
        elif hashlib.sha256(contents[name]).hexdigest() != sha256:
            report.blame(f"{prefix}{name}", "its sha256 differs from the manifest's")
    if {f"{prefix}{shard.name}", f"{prefix}{shard.index}"} & set(report.damage):
        return None
    table = np.load(io.BytesIO(contents[shard.index]), allow_pickle=False)
    if table.shape != (shard.samples, columns):
        report.blame(f"{prefix}{shard.index}", f"shape {table.shape}, {(shard.samples, columns)} expected")
        return None
    return contents[shard.name], table


def _members(
    data: bytes, samples: int, suffixes: tuple[str, ...]
) -> Iterator[tuple[int, list[tuple[str, int, bytes]]]]:
    """Per sample: where it starts, and (key, offset, bytes) of its members in the order of `suffixes`."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        members = tar.getmembers()
    if len(members) != samples * len(suffixes):
        raise ValueError(f"{len(members)} members, {samples * len(suffixes)} expected")
    for first in range(0, len(members), len(suffixes)):
        group = []
        for member, suffix in zip(members[first : first + len(suffixes)], suffixes, strict=True):
            if not member.name.endswith(suffix):
                raise ValueError(f"member {member.name}: {suffix} expected")
            start = member.offset_data
            group.append((member.name.removesuffix(suffix), start, data[start : start + member.size]))
        if len({key for key, _, _ in group}) != 1:
            raise ValueError(f"members {[key for key, _, _ in group]} of one sample have different keys")
        yield members[first].offset, group


def _check_sample(sample: Sample, key: str) -> None:
    """Every array has one row for each residue and every graph stays inside the chain."""
    n = len(sample)
    if sample.key != key:
        raise ValueError(f"member {key} holds sample {sample.key}")
    if not sample.bfactor.shape == sample.valid.shape == sample.threedi_valid.shape == (n,):
        raise ValueError(f"sample {key}: per-residue arrays are not of length {n}")
    for name, shape in (("reliable", (n,)), ("dihedrals", (n, 3)), ("frames", (n, 4))):
        array = getattr(sample, name)
        if array is not None and array.shape != shape:
            raise ValueError(f"sample {key}: {name} has shape {array.shape}, {shape} expected")
    if set(sample.threedi) - set(THREEDI_STATES):
        raise ValueError(f"sample {key}: letters that are no 3Di states")
    if not sample.graphs:
        raise ValueError(f"sample {key}: no graph")
    for name, graph in sample.graphs.items():
        ends_fit = graph.indptr.shape == (n + 1,) and graph.indptr[0] == 0 and graph.indptr[-1] == len(graph.index)
        inside = not len(graph.index) or graph.index.max() < n
        if not (ends_fit and inside and (np.diff(graph.indptr.astype(np.int64)) >= 0).all()):
            raise ValueError(f"sample {key}: graph {name} does not fit {n} residues")


def _count(sample: Sample, counts: SplitCounts) -> None:
    counts.samples += 1
    counts.residues += len(sample)
    counts.high_quality += int(sample.high_quality)
    counts.clusters.add(sample.cluster)
    states = sample.threedi_states()
    counts.threedi += np.bincount(states[states >= 0], minlength=len(THREEDI_STATES))
    counts.invalid += int((states < 0).sum())
    counts.unreliable += 0 if sample.reliable is None else int((~sample.reliable).sum())
    method = sample.facts.get("method")
    counts.methods[method or "unknown"] += 1
    # Files without measured B-factors hold zeros.
    known = sample.bfactor[np.isfinite(sample.bfactor) & (sample.bfactor != 0)]
    sums = counts.plddt if method == "predicted" else counts.experimental_bfactor
    sums[0] += float(known.sum(dtype=np.float64))
    sums[1] += len(known)
    for name, graph in sample.graphs.items():
        counts.graph_edges[name] += len(graph.index)


def _compare_totals(split: str, facts: SplitFacts, counts: SplitCounts, report: AuditReport) -> None:
    """The manifest's totals of a split, where no shard of it was found damaged."""
    if {name for shard in facts.shards for name in (shard.name, shard.index)} & set(report.damage):
        return
    stated = (facts.samples, facts.residues, facts.clusters, facts.high_quality)
    found = (counts.samples, counts.residues, len(counts.clusters), counts.high_quality)
    if stated != found:
        report.blame(MANIFEST_NAME, f"{split}: samples, residues, clusters, high quality {stated}; found {found}")


def _check_across(folder: Path, manifest: Manifest, keys: dict[str, list[str]], report: AuditReport) -> None:
    """What no single shard can show: repeated keys, clusters in two splits, unknown files, the reject list."""
    repeated = [key for key, count in Counter(key for names in keys.values() for key in names).items() if count > 1]
    if repeated:
        report.blame(MANIFEST_NAME, f"{len(repeated)} keys stand twice, e.g. {repeated[0]}")
    places = Counter(cluster for counts in report.splits.values() for cluster in counts.clusters)
    crossing = [cluster for cluster, count in places.items() if count > 1]
    if crossing:
        report.blame(MANIFEST_NAME, f"{len(crossing)} clusters stand in two splits, e.g. {crossing[0]}")
    listed = {
        name for split in manifest.splits.values() for shard in split.shards for name in (shard.name, shard.index)
    }
    for path in sorted([*folder.glob("*.tar"), *folder.glob("*.index.npy")]):
        if path.name not in listed:
            report.blame(path.name, "is not in the manifest")
    if manifest.rejects_sha256 is not None:
        _check_rejects(folder / REJECTS_NAME, manifest, report)


def _check_rejects(path: Path, manifest: Manifest, report: AuditReport) -> None:
    try:
        data = path.read_bytes()
    except OSError as error:
        report.blame(path.name, f"cannot be read: {error.strerror}")
        return
    if hashlib.sha256(data).hexdigest() != manifest.rejects_sha256:
        report.blame(path.name, "its sha256 differs from the manifest's")
        return
    reasons = Counter(json.loads(line)["reason"] for line in data.splitlines())
    if reasons != Counter(manifest.dropped) or manifest.chains != manifest.kept + reasons.total():
        report.blame(MANIFEST_NAME, "its counts of dropped chains disagree with the reject list")


def _audit_derived(folder: Path, name: str, base: Manifest, keys: dict[str, list[str]], report: AuditReport) -> None:
    """A derived column: its files, and that it has the base shards' keys in their order."""
    prefix = f"{DERIVED_FOLDER}/{name}/"
    remedy = DERIVE_REMEDY.format(folder=folder)
    try:
        manifest, _ = read_sealed(folder / prefix / MANIFEST_NAME, DerivedManifest, remedy)
    except UserError as error:
        report.blame(f"{prefix}{MANIFEST_NAME}", str(error))
        return
    if manifest.base_sha256 != base.content_sha256:
        report.blame(f"{prefix}{MANIFEST_NAME}", f"was made from other shards; {remedy}")
        return
    _check_components(folder / prefix, prefix, manifest, report)
    report.derived[name] = 0
    for split, shards in manifest.splits.items():
        expected = [shard.name for shard in base.splits[split].shards]
        if [shard.name for shard in shards] != expected:
            report.blame(f"{prefix}{MANIFEST_NAME}", f"{split}: its shards are not those of the base")
            continue
        for shard in shards:
            _audit_derived_shard(folder, prefix, shard, keys, report)
            report.derived[name] += shard.samples


def _check_components(folder: Path, prefix: str, manifest: DerivedManifest, report: AuditReport) -> None:
    """The side file of a column of principal components, without which its numbers mean nothing."""
    expected = manifest.facts.get("pca_sha256")
    if expected is None:
        return
    try:
        found = hashlib.sha256((folder / COMPONENTS_NAME).read_bytes()).hexdigest()
    except OSError as error:
        report.blame(f"{prefix}{COMPONENTS_NAME}", f"cannot be read: {error.strerror}")
        return
    if found != expected:
        report.blame(f"{prefix}{COMPONENTS_NAME}", "its sha256 differs from the manifest's")


def _audit_derived_shard(
    folder: Path, prefix: str, shard: ShardFacts, keys: dict[str, list[str]], report: AuditReport
) -> None:
    opened = _open_files(folder, prefix, shard, len(DERIVED_COLUMNS), report)
    if opened is None:
        return
    data, table = opened
    found = []
    try:
        for row, (start, [(key, offset, arrays)]) in zip(
            table.tolist(), _members(data, len(table), (".safetensors",)), strict=True
        ):
            safetensors.numpy.load(arrays)
            if (row[0], row[2], row[3]) != (start, offset, len(arrays)):
                raise ValueError(f"sample {key}: the index disagrees")
            found.append(key)
    except (*DECODING_ERRORS, tarfile.TarError) as error:
        report.blame(f"{prefix}{shard.name}", f"content: {error}")
        return
    # Where the base shard is damaged its keys are not known; it is blamed already.
    if shard.name in keys and found != keys[shard.name]:
        report.blame(f"{prefix}{shard.name}", "its keys are not those of the base shard in order")
