"""One shard of a derived column: compute its chains in batches, write the tar, leave a mark that it is done."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import UserError
from configs.teacher import DeriveConfig
from data_pipeline.derived import DerivedShard
from data_pipeline.manifest import Record, ShardFacts, read_sealed, write_sealed
from data_pipeline.reader import DECODING_ERRORS, ShardFile, ShardReader
from data_pipeline.schema import INDEX_COLUMNS, SCHEMA_VERSION, Sample, decode_sample
from pretrain.derive_forms import Errors, Moments, one_thread, projection_sha256
from pretrain.derive_source import Maker, Source

WORK_FOLDER = ".work"
"""Inside the column's folder while it is being written: unfinished files and the marks of finished shards."""
WINDOW_BATCHES = 32
"""Chains are sorted by length within runs of this many batches, whose embeddings are held in memory."""
_FACTS_AT, _FACTS_LENGTH = INDEX_COLUMNS.index("json_offset"), INDEX_COLUMNS.index("json_length")
_ARRAYS_AT, _ARRAYS_LENGTH = INDEX_COLUMNS.index("arrays_offset"), INDEX_COLUMNS.index("arrays_length")
_RESIDUES = INDEX_COLUMNS.index("residues")


@dataclass(frozen=True)
class DeriveSettings:
    """All that a worker needs, wherever it runs."""

    started_in: str
    """Paths in a config are relative to this folder."""
    shards: Path
    column: Path
    """Folder of the derived column."""
    verify: bool
    source: Source
    derive: DeriveConfig
    pca: bool
    """Whether arrays are encoded with components beside the shards."""
    identity: str
    """sha256 over all that decides the column's bytes, beside the base shards."""


@dataclass(frozen=True)
class ShardTask:
    """Make sure that one shard of the column is there."""

    name: str
    """Of the base shard's tar."""
    split: str
    number: int
    """Of the shard within its split."""
    known: ShardFacts | None
    """What a finished column says of it."""


@dataclass(frozen=True)
class MomentsTask:
    """Sums for principal components over some chains of a shard."""

    name: str
    split: str
    number: int
    residues: int
    """Residues wanted; chains are drawn until there are so many."""


@dataclass(frozen=True)
class ShardResult:
    """A shard that is there."""

    split: str
    number: int
    facts: ShardFacts
    errors: Errors | None
    """None where a finished column is kept, whose manifest states them."""
    made: bool
    """Computed now, not found."""


class ShardMark(Record):
    """Says that a shard of an unfinished column is done, of what, and with which error."""

    schema_version: str
    identity: str
    base_sha256: str
    """Of the base shard."""
    pca_sha256: str | None
    facts: ShardFacts
    errors: dict[str, Any]


class ShardWorker:
    """Works on shards one after another; opens the source for the first that is not done yet."""

    def __init__(self, settings: DeriveSettings) -> None:
        self._settings = settings
        self._reader = ShardReader(settings.shards, verify=settings.verify)
        self._work = settings.column / WORK_FOLDER
        self._maker: Maker | None = None

    def __call__(self, task: ShardTask | MomentsTask) -> ShardResult | tuple[int, Moments]:
        base = self._reader.files(task.split)[task.number]
        try:
            with one_thread():
                return self._moments(base, task) if isinstance(task, MomentsTask) else self._shard(base, task)
        finally:
            base.close()

    def close(self) -> None:
        self._reader.close()

    def _shard(self, base: ShardFile, task: ShardTask) -> ShardResult:
        if task.known is not None and is_whole(self._settings.column, task.known):
            return ShardResult(task.split, task.number, task.known, None, made=False)
        pca = None
        if self._settings.pca:
            pca = projection_sha256(self._settings.column, self._settings.identity)
        path = self._work / f"{Path(base.facts.name).stem}.json"
        mark = read_mark(path)
        ours = (self._settings.identity, base.facts.sha256, pca)
        fits = mark is not None and ours == (mark.identity, mark.base_sha256, mark.pca_sha256)
        if mark is not None and fits and is_whole(self._settings.column, mark.facts):
            return ShardResult(task.split, task.number, mark.facts, Errors(**mark.errors), made=False)
        if task.known is not None:
            # Of a finished column, which has no such folder; otherwise derive made it, and only derive may.
            self._work.mkdir(exist_ok=True)
        facts, errors = self._write(base, task)
        write_sealed(
            path,
            ShardMark(
                schema_version=SCHEMA_VERSION,
                identity=self._settings.identity,
                base_sha256=base.facts.sha256,
                pca_sha256=pca,
                facts=facts,
                errors=asdict(errors),
            ),
        )
        return ShardResult(task.split, task.number, facts, errors, made=True)

    def _write(self, base: ShardFile, task: ShardTask) -> tuple[ShardFacts, Errors]:
        maker = self._open_maker()
        first = sum(file.facts.samples for file in self._reader.files(task.split)[: task.number])
        parts: list[Errors] = []
        with DerivedShard(self._settings.column / base.facts.name, self._work) as shard:
            for window in windows(_lengths(base), self._settings.derive.batch_residues):
                made: dict[int, Any] = {}
                for rows in window:
                    samples = [read_sample(base, row) for row in rows]
                    numbers = [first + row for row in rows]
                    for row, sample, chain in zip(rows, samples, maker(task.split, numbers, samples), strict=True):
                        made[row] = (sample.key, *chain)
                for row in sorted(made):
                    key, arrays, errors = made[row]
                    shard.add(key, arrays, int(base.table[row, _RESIDUES]))
                    parts.append(errors)
            return shard.commit(), Errors.total(parts)

    def _moments(self, base: ShardFile, task: MomentsTask) -> tuple[int, Moments]:
        teacher = self._open_maker().teacher
        lengths = _lengths(base)
        order = np.random.Generator(np.random.PCG64(task.number)).permutation(len(lengths))
        ends = np.cumsum(np.array(lengths)[order])
        chosen = np.sort(order[: int(np.searchsorted(ends, task.residues)) + 1])
        total = Moments(0, np.zeros(teacher.width), np.zeros((teacher.width, teacher.width)))
        for window in windows([lengths[row] for row in chosen], self._settings.derive.batch_residues):
            for batch in window:
                samples = [read_sample(base, int(chosen[place])) for place in batch]
                embeddings = teacher.embed_many(samples)
                rows = [embedding[sample.valid] for embedding, sample in zip(embeddings, samples, strict=True)]
                total = total.plus(Moments.of(np.concatenate(rows)))
        return task.number, total

    def _open_maker(self) -> Maker:
        if self._maker is None:
            self._maker = self._settings.source.open(self._settings.column, self._reader)
        return self._maker


def open_worker(settings: DeriveSettings) -> ShardWorker:
    """What a Ray actor opens once."""
    if Path(settings.started_in).is_dir():
        os.chdir(settings.started_in)
    return ShardWorker(settings)


def read_sample(base: ShardFile, row: int) -> Sample:
    """Sample `row` of a base shard, without the index of its whole split.

    Raises:
        DamagedShard: the shard's bytes are not those of the manifest.
    """
    ranges = base.table[row].tolist()
    facts = base.bytes_at(ranges[_FACTS_AT], ranges[_FACTS_LENGTH])
    arrays = base.bytes_at(ranges[_ARRAYS_AT], ranges[_ARRAYS_LENGTH])
    try:
        return decode_sample(facts, arrays)
    except DECODING_ERRORS as error:
        raise base.damaged(f"sample {row} of it does not decode: {error}") from None


def _lengths(base: ShardFile) -> list[int]:
    return base.table[:, _RESIDUES].tolist()


def windows(lengths: Sequence[int], batch_residues: int) -> Iterator[list[list[int]]]:
    """Numbers of the chains in batches of similar length, in runs of consecutive chains.

    Every chain stands once; a batch holds at most `batch_residues`, or one chain. A function of the lengths alone, so
    that a shard's batches are the same on any machine and after any restart.
    """
    start, held = 0, 0
    for stop, length in enumerate(lengths):
        if stop > start and held + length > WINDOW_BATCHES * batch_residues:
            yield _batches(range(start, stop), lengths, batch_residues)
            start, held = stop, 0
        held += length
    if start < len(lengths):
        yield _batches(range(start, len(lengths)), lengths, batch_residues)


def _batches(numbers: range, lengths: Sequence[int], batch_residues: int) -> list[list[int]]:
    batches: list[list[int]] = []
    room = 0
    for number in sorted(numbers, key=lambda n: (lengths[n], n)):
        if not batches or lengths[number] > room:
            batches.append([])
            room = batch_residues
        batches[-1].append(number)
        room -= lengths[number]
    return batches


def is_whole(folder: Path, facts: ShardFacts) -> bool:
    """Whether a shard's tar and index are there with the bytes that were written."""
    try:
        with (folder / facts.name).open("rb") as tar:
            if hashlib.file_digest(tar, "sha256").hexdigest() != facts.sha256:
                return False
        return hashlib.sha256((folder / facts.index).read_bytes()).hexdigest() == facts.index_sha256
    except OSError:
        return False


def read_mark(path: Path) -> ShardMark | None:
    """The mark of a finished shard; None where there is none, or no whole one."""
    try:
        return read_sealed(path, ShardMark, "")[0]
    except (OSError, UserError):
        return None
