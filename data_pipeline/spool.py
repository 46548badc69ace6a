"""Parsed batches on disk between parsing and sharding: what a restarted build does not do again.

A batch is `<stem>.tar` with its samples and `<stem>.arrow` with one row of small columns for each of them. The driver
lays the columns of all batches end to end in one file that is mapped, not loaded, so that its own memory does not grow
with the sequences.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from configs.build import BuildConfig, FilterConfig, GraphConfig, ReliabilityConfig
from data_pipeline.isolation import JOURNAL_SUFFIX
from data_pipeline.manifest import temporary_path, write_atomically
from data_pipeline.schema import SCHEMA_VERSION

PIPELINE_VERSION = "2"
"""Raised whenever the same structure file would give other shards than before."""
STEM_LENGTH = 32
"""Hexadecimal digits."""
DIGEST_BYTES = 16
COLUMNS = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("entry", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("chain", pa.string(), nullable=False),
        pa.field("digest", pa.binary(DIGEST_BYTES), nullable=False),
        pa.field("residues", pa.int32(), nullable=False),
        pa.field("deposition_date", pa.string()),
        pa.field("method", pa.string()),
        pa.field("resolution", pa.float64()),
        pa.field("r_free", pa.float64()),
        pa.field("missing_fraction", pa.float64()),
        pa.field("observed_fraction", pa.float64()),
        pa.field("geometry_outlier_fraction", pa.float64()),
        pa.field("mean_bfactor", pa.float64()),
        pa.field("facts_offset", pa.int64(), nullable=False),
        pa.field("facts_length", pa.int32(), nullable=False),
        pa.field("arrays_offset", pa.int64(), nullable=False),
        pa.field("arrays_length", pa.int32(), nullable=False),
        pa.field("stem", pa.binary(STEM_LENGTH // 2), nullable=False),
        pa.field("sequence", pa.large_string(), nullable=False),
    ]
)
"""One row for each chain: identity, what splits and quality need, byte ranges in its batch's tar, and that tar's stem.
`digest` names the sequence."""
_NOTES = b"batch"


def sequence_digest(sequence: str) -> bytes:
    """DIGEST_BYTES that name a sequence: equal sequences, and in practice no others, share them."""
    return hashlib.blake2b(sequence.encode(), digest_size=DIGEST_BYTES).digest()


@dataclass(frozen=True, slots=True)
class Reject:
    """A chain, or a whole entry (`chain` empty), that was left out."""

    path: str
    chain: str
    reason: str
    detail: str


@dataclass(frozen=True)
class ParsedBatch:
    """Everything that parsing one batch told, beside the tar that holds its samples."""

    tar_bytes: int
    entries: int
    chains: pa.Table
    """COLUMNS."""
    rejects: tuple[Reject, ...]
    seconds: dict[str, float]
    """Time by stage: read, parse, facts, threedi, graphs, write."""


@dataclass(frozen=True)
class ParseSettings:
    """The settings that decide on what parsing makes of an entry."""

    filters: FilterConfig
    graphs: tuple[GraphConfig, ...]
    reliability: ReliabilityConfig
    backbone_features: bool
    seconds_per_structure: float

    @classmethod
    def of(cls, config: BuildConfig) -> Self:
        return cls(
            config.filters,
            config.graphs,
            config.reliability,
            config.backbone_features,
            config.seconds_per_structure,
        )

    def identity(self) -> dict[str, Any]:
        """The same as JSON-able values."""
        return {
            "filters": self.filters.model_dump(mode="json"),
            "graphs": [graph.model_dump(mode="json") for graph in self.graphs],
            "reliability": self.reliability.model_dump(mode="json"),
            "backbone_features": self.backbone_features,
            "seconds_per_structure": self.seconds_per_structure,
        }


@dataclass(frozen=True)
class BatchTask:
    """One Ray task of parsing; everything in it is a small picklable value."""

    stem: str
    """Names the spool files; a hash of all that decides on their content."""
    folder: str
    entries: tuple[Any, ...]
    settings: ParseSettings

    @property
    def tar(self) -> Path:
        return Path(self.folder) / f"{self.stem}.tar"

    @property
    def columns(self) -> Path:
        """Written after the tar: a batch is finished when both exist."""
        return Path(self.folder) / f"{self.stem}.arrow"

    @property
    def journal(self) -> Path:
        """Where a worker notes which entry it is reading, for the one after it to know whom to suspect."""
        return Path(self.folder) / f"{self.stem}{JOURNAL_SUFFIX}"


def cut_batches(
    entries: Sequence[Any], fingerprints: Sequence[str], config: BuildConfig, folder: Path
) -> Iterator[BatchTask]:
    """Batches of entries in their order, each named by a hash over entries, parsing settings and versions."""
    settings = ParseSettings.of(config)
    common = json.dumps([SCHEMA_VERSION, PIPELINE_VERSION, settings.identity()], sort_keys=True)
    for start in range(0, len(entries), config.structures_per_task):
        stop = start + config.structures_per_task
        content = "\n".join([common, *fingerprints[start:stop]])
        stem = hashlib.sha256(content.encode()).hexdigest()[:STEM_LENGTH]
        yield BatchTask(stem, str(folder), tuple(entries[start:stop]), settings)


def chain_table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Rows of COLUMNS as a table."""
    return pa.Table.from_pylist(list(rows), schema=COLUMNS)


def write_columns(task: BatchTask, batch: ParsedBatch) -> None:
    """Finish a batch: its tar must be in place already."""
    notes = {
        "tar_bytes": batch.tar_bytes,
        "entries": batch.entries,
        "rejects": [asdict(reject) for reject in batch.rejects],
        "seconds": batch.seconds,
    }
    table = batch.chains.replace_schema_metadata({_NOTES: json.dumps(notes, allow_nan=False).encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    write_atomically(task.columns, sink.getvalue().to_pybytes())


def read_columns(task: BatchTask) -> ParsedBatch | None:
    """The columns of a finished batch; None when it is not finished or its files do not fit together."""
    try:
        table = pa.ipc.open_file(pa.BufferReader(task.columns.read_bytes())).read_all()
        notes = json.loads(table.schema.metadata[_NOTES])
        if task.tar.stat().st_size != notes["tar_bytes"]:
            return None
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None
    rejects = tuple(Reject(**reject) for reject in notes.pop("rejects"))
    return ParsedBatch(chains=table.replace_schema_metadata(None), rejects=rejects, **notes)


class MappedTable:
    """A table written part by part into a file and then mapped: its rows take room in the page cache only."""

    def __init__(self, path: Path, schema: pa.Schema = COLUMNS) -> None:
        self.path = path
        self._temporary = temporary_path(path)
        self._writer = pa.ipc.new_file(str(self._temporary), schema)

    def append(self, part: pa.Table) -> None:
        self._writer.write_table(part)

    def finish(self) -> pa.Table:
        self._writer.close()
        self._temporary.replace(self.path)
        return map_table(self.path)


def map_table(path: Path) -> pa.Table:
    """The table of a file that `MappedTable` wrote."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
