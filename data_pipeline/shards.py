"""Writing shards: tars of reproducible bytes, each with an index file beside it."""

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from data_pipeline.manifest import (
    MANIFEST_NAME,
    NO_LEAKAGE,
    LeakageFacts,
    Manifest,
    ShardFacts,
    SourceFacts,
    SplitFacts,
    temporary_path,
    vocabulary_sha256,
    write_atomically,
    write_sealed,
)
from data_pipeline.schema import INDEX_COLUMNS, SCHEMA_VERSION, Sample, encode_arrays, encode_facts

BLOCK = 512
MEMBER_MODE = 0o644
KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,100}")
"""No dot: webdataset ends a key at the first one; no slash: a key names a file."""


@dataclass(frozen=True)
class PackedSample:
    """A sample in its final bytes, with the facts that the index repeats."""

    key: str
    facts: bytes
    arrays: bytes
    residues: int
    cluster: int
    high_quality: bool


def pack_sample(sample: Sample) -> PackedSample:
    return PackedSample(
        sample.key, encode_facts(sample), encode_arrays(sample), len(sample), sample.cluster, sample.high_quality
    )


class TarWriter:
    """Writes one tar whose bytes depend on nothing but its members; hashes while writing; appears whole or not at all.

    Headers are GNU tar's with mtime, uid and gid 0 and no owner names, so that every tar program and any webdataset
    reader understands them. The file is written as a `.part` in `scratch` (same filesystem) and renamed by `commit`.
    """

    def __init__(self, path: Path, scratch: Path | None = None) -> None:
        self.path = path
        self._temporary = temporary_path(path, scratch)
        self._file = self._temporary.open("wb")
        self._hash = hashlib.sha256()
        self.offset = 0
        self._open = True

    def add(self, name: str, data: bytes) -> int:
        """Append a member; returns the offset of its content (its header starts at `offset` before the call)."""
        header = tarfile.TarInfo(name)
        header.size, header.mode = len(data), MEMBER_MODE
        self._write(header.tobuf(tarfile.GNU_FORMAT))
        start = self.offset
        self._write(data)
        self._write(b"\0" * (-len(data) % BLOCK))
        return start

    def commit(self) -> tuple[int, str]:
        """Close and rename to the final name; returns size in bytes and sha256."""
        self._write(b"\0" * (2 * BLOCK))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._temporary.replace(self.path)
        self._open = False
        return self.offset, self._hash.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open:
            self._file.close()
            self._temporary.unlink(missing_ok=True)
            self._open = False

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.offset += len(data)


def index_bytes(table: np.ndarray) -> bytes:
    """An index table (int64 [samples, columns]) as the bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(table, dtype="<i8"), allow_pickle=False)
    return buffer.getvalue()


def index_name(shard: str) -> str:
    return f"{Path(shard).stem}.index.npy"


def shard_name(split: str, number: int) -> str:
    return f"{split}-{number:06d}.tar"


def write_shard(path: Path, samples: Iterable[PackedSample], scratch: Path | None = None) -> ShardFacts:
    """Write one shard and its index file; members of a sample are `<key>.json`, then `<key>.safetensors`."""
    rows: list[tuple[int, ...]] = []
    with TarWriter(path, scratch) as tar:
        for sample in samples:
            assert KEY_PATTERN.fullmatch(sample.key), sample.key
            start = tar.offset
            facts = tar.add(f"{sample.key}.json", sample.facts)
            arrays = tar.add(f"{sample.key}.safetensors", sample.arrays)
            ranges = (start, tar.offset - start, facts, len(sample.facts), arrays, len(sample.arrays))
            rows.append((*ranges, sample.residues, sample.cluster, int(sample.high_quality)))
        size, sha256 = tar.commit()
    table = np.array(rows, dtype=np.int64).reshape(-1, len(INDEX_COLUMNS))
    index = index_bytes(table)
    write_atomically(path.with_name(index_name(path.name)), index, scratch)
    return ShardFacts(
        name=path.name,
        samples=len(rows),
        residues=int(table[:, INDEX_COLUMNS.index("residues")].sum()),
        bytes=size,
        sha256=sha256,
        index=index_name(path.name),
        index_sha256=hashlib.sha256(index).hexdigest(),
    )


def write_shards(folder: Path, splits: Mapping[str, Sequence[Sample]], samples_per_shard: int = 256) -> Manifest:
    """Write samples that are already at hand as a complete folder of shards: for tests and for converters.

    Samples keep their order; the caller answers for distinct keys and for clusters that do not cross splits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    facts: dict[str, SplitFacts] = {}
    for split, samples in splits.items():
        parts = [samples[i : i + samples_per_shard] for i in range(0, len(samples), samples_per_shard)]
        shards = [write_shard(folder / shard_name(split, n), map(pack_sample, part)) for n, part in enumerate(parts)]
        facts[split] = SplitFacts(
            samples=len(samples),
            residues=sum(map(len, samples)),
            clusters=len({sample.cluster for sample in samples}),
            high_quality=sum(sample.high_quality for sample in samples),
            shards=tuple(shards),
        )
    kept = sum(split.samples for split in facts.values())
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        vocabulary_sha256=vocabulary_sha256(),
        config={},
        commit=None,
        source=SourceFacts(kind="samples", entries=kept),
        splits=facts,
        chains=kept,
        kept=kept,
        dropped={},
        rejects_sha256=None,
        leakage=LeakageFacts(clusters_in_two_splits=0, statement=NO_LEAKAGE),
    )
    write_sealed(folder / MANIFEST_NAME, manifest)
    return manifest
