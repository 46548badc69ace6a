"""Parsed batches on disk between parsing and sharding: what a restarted build does not do again."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from configs.build import BuildConfig, FilterConfig, GraphConfig
from data_pipeline.manifest import write_atomically
from data_pipeline.schema import SCHEMA_VERSION

PIPELINE_VERSION = "1"
"""Raised whenever the same structure file would give other shards than before."""
STEM_LENGTH = 32


@dataclass(frozen=True, slots=True)
class ChainRecord:
    """The small columns of one parsed chain: all that the driver needs to know of it."""

    key: str
    source: str
    chain: str
    sequence: str
    facts_offset: int
    """Byte range of the chain's JSON member in its batch's tar; `arrays_*` likewise of the safetensors member."""
    facts_length: int
    arrays_offset: int
    arrays_length: int
    quality: dict[str, Any]
    """The facts that decide on the high-quality subset."""


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
    chains: tuple[ChainRecord, ...]
    rejects: tuple[Reject, ...]
    seconds: dict[str, float]
    """Time by stage: read, parse, facts, threedi, graphs, write."""


@dataclass(frozen=True)
class BatchTask:
    """One Ray task of parsing; everything in it is a small picklable value."""

    stem: str
    """Names the spool files; a hash of all that decides on their content."""
    folder: str
    entries: tuple[Any, ...]
    filters: FilterConfig
    graphs: tuple[GraphConfig, ...]

    @property
    def tar(self) -> Path:
        return Path(self.folder) / f"{self.stem}.tar"

    @property
    def columns(self) -> Path:
        """Written after the tar: a batch is finished when both exist."""
        return Path(self.folder) / f"{self.stem}.json"


def cut_batches(
    entries: Sequence[Any], fingerprints: Sequence[str], config: BuildConfig, folder: Path
) -> Iterator[BatchTask]:
    """Batches of entries in their order, each named by a hash over entries, filters, graphs and versions."""
    settings = config.model_dump(mode="json", include={"filters", "graphs"})
    common = json.dumps([SCHEMA_VERSION, PIPELINE_VERSION, settings], sort_keys=True)
    for start in range(0, len(entries), config.structures_per_task):
        stop = start + config.structures_per_task
        content = "\n".join([common, *fingerprints[start:stop]])
        stem = hashlib.sha256(content.encode()).hexdigest()[:STEM_LENGTH]
        yield BatchTask(stem, str(folder), tuple(entries[start:stop]), config.filters, config.graphs)


def write_columns(task: BatchTask, batch: ParsedBatch) -> None:
    """Finish a batch: its tar must be in place already."""
    write_atomically(task.columns, json.dumps(asdict(batch), allow_nan=False).encode())


def read_columns(task: BatchTask) -> ParsedBatch | None:
    """The columns of a finished batch; None when it is not finished or its files do not fit together."""
    try:
        tree = json.loads(task.columns.read_bytes())
        if task.tar.stat().st_size != tree["tar_bytes"]:
            return None
    except (FileNotFoundError, ValueError, KeyError):
        return None
    chains = tuple(ChainRecord(**chain) for chain in tree.pop("chains"))
    rejects = tuple(Reject(**reject) for reject in tree.pop("rejects"))
    return ParsedBatch(chains=chains, rejects=rejects, **tree)
