"""Random access to shards through memory maps; no byte is used before its file's sha256 was checked."""

import hashlib
import io
import json
import mmap
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from safetensors import SafetensorError

from configs.errors import UserError
from data_pipeline.manifest import AUDIT_REMEDY, DamagedShard, ShardFacts, read_manifest, split_order
from data_pipeline.schema import INDEX_COLUMNS, Sample, decode_sample

COLUMN = {name: number for number, name in enumerate(INDEX_COLUMNS)}
DECODING_ERRORS = (ValueError, KeyError, IndexError, TypeError, SafetensorError)
"""What decoding raises on damaged members; seen only with `verify=False`."""


@dataclass(frozen=True)
class SplitIndex:
    """What samplers need to know of each of the S samples of a split, in the order of the shards."""

    residues: np.ndarray
    """int64 [S]."""
    cluster: np.ndarray
    """int64 [S]."""
    high_quality: np.ndarray
    """bool [S]."""
    shard: np.ndarray
    """int64 [S]: number of the shard within the split."""
    row: np.ndarray
    """int64 [S]: number of the sample within its shard."""

    def __len__(self) -> int:
        return len(self.residues)


class ShardFile:
    """One tar and its index, mapped into memory on first touch."""

    def __init__(self, folder: Path, facts: ShardFacts, columns: int, verify: bool, remedy: str) -> None:
        self.path = folder / facts.name
        self.facts = facts
        self._verify = verify
        self._remedy = remedy
        self.table = self._read_index(folder / facts.index, columns)
        """int64 [samples, columns]."""
        self._map: mmap.mmap | None = None

    def bytes_at(self, offset: int, length: int) -> bytes:
        """A slice of the tar.

        Raises:
            DamagedShard: the file is missing, or its size or sha256 differs from the manifest's.
        """
        if self._map is None:
            self._map = self._open()
        if offset < 0 or length < 0 or offset + length > len(self._map):
            raise self.damaged("its index points outside the file")
        return self._map[offset : offset + length]

    def damaged(self, what: str) -> DamagedShard:
        return DamagedShard(f"{self.path}: damaged ({what}); {self._remedy}")

    def close(self) -> None:
        if self._map is not None:
            self._map.close()
            self._map = None

    def _open(self) -> mmap.mmap:
        try:
            with self.path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise self.damaged(f"cannot be read: {error}") from None
        problem = None
        if len(mapped) != self.facts.bytes:
            problem = f"{len(mapped)} bytes, the manifest says {self.facts.bytes}"
        elif self._verify and hashlib.sha256(mapped).hexdigest() != self.facts.sha256:
            problem = "its sha256 differs from the manifest's"
        if problem:
            mapped.close()
            raise self.damaged(problem)
        return mapped

    def _read_index(self, path: Path, columns: int) -> np.ndarray:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DamagedShard(f"{path}: damaged (cannot be read: {error}); {self._remedy}") from None
        if self._verify and hashlib.sha256(data).hexdigest() != self.facts.index_sha256:
            raise DamagedShard(f"{path}: damaged (its sha256 differs from the manifest's); {self._remedy}")
        try:
            table = np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise DamagedShard(f"{path}: damaged (not an index: {error}); {self._remedy}") from None
        if table.shape != (self.facts.samples, columns) or table.dtype != np.int64:
            raise DamagedShard(f"{path}: damaged (shape {table.shape}, type {table.dtype}); {self._remedy}")
        return table


class ShardReader:
    """Samples of a folder of shards by split and number.

    Args:
        verify: check each file's sha256 when it is first touched (once per reader); without it only sizes are checked.
    """

    def __init__(self, folder: Path, verify: bool = True) -> None:
        self.folder = Path(folder)
        self.verify = verify
        self.manifest, self.manifest_sha256 = read_manifest(self.folder)
        filled = [name for name, split in self.manifest.splits.items() if split.samples]
        self.splits = tuple(sorted(filled, key=split_order))
        """Splits that hold samples, in the order train, validation, test, others."""
        self._files: dict[str, list[ShardFile]] = {}
        self._indexes: dict[str, SplitIndex] = {}

    def index(self, split: str) -> SplitIndex:
        """Lengths, clusters and quality of a split without touching its tars.

        Raises:
            UserError: no such split, or an empty one.
            DamagedShard: an index file is damaged.
        """
        if split not in self._indexes:
            self._indexes[split] = _split_index([file.table for file in self.files(split)])
        return self._indexes[split]

    def sample(self, split: str, i: int) -> Sample:
        """Sample i of a split, decoded.

        Raises:
            DamagedShard: its shard's bytes are not those of the manifest.
        """
        file, row = self._locate(split, i)
        facts = file.bytes_at(row[COLUMN["json_offset"]], row[COLUMN["json_length"]])
        arrays = file.bytes_at(row[COLUMN["arrays_offset"]], row[COLUMN["arrays_length"]])
        try:
            return decode_sample(facts, arrays)
        except DECODING_ERRORS as error:
            raise file.damaged(f"sample {i} of {split} does not decode: {error}") from None

    def key(self, split: str, i: int) -> str:
        """The key of sample i of a split."""
        file, row = self._locate(split, i)
        facts = file.bytes_at(row[COLUMN["json_offset"]], row[COLUMN["json_length"]])
        try:
            return json.loads(facts)["key"]
        except DECODING_ERRORS as error:
            raise file.damaged(f"sample {i} of {split} does not decode: {error}") from None

    def files(self, split: str) -> list[ShardFile]:
        """The split's shards in order."""
        if split not in self._files:
            if split not in self.splits:
                raise UserError(
                    f"shards {self.folder}: no samples in split {split!r}; allowed: {', '.join(self.splits)}"
                )
            remedy = AUDIT_REMEDY.format(folder=self.folder)
            shards = self.manifest.splits[split].shards
            self._files[split] = [ShardFile(self.folder, s, len(INDEX_COLUMNS), self.verify, remedy) for s in shards]
        return self._files[split]

    def close(self) -> None:
        for files in self._files.values():
            for file in files:
                file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _locate(self, split: str, i: int) -> tuple[ShardFile, list[int]]:
        index = self.index(split)
        if not 0 <= i < len(index):
            raise IndexError(f"sample {i} of split {split!r}: allowed 0 to {len(index) - 1}")
        file = self.files(split)[index.shard[i]]
        return file, file.table[index.row[i]].tolist()


def _split_index(tables: list[np.ndarray]) -> SplitIndex:
    sizes = [len(table) for table in tables]
    rows = np.concatenate(tables)
    return SplitIndex(
        residues=rows[:, COLUMN["residues"]].copy(),
        cluster=rows[:, COLUMN["cluster"]].copy(),
        high_quality=rows[:, COLUMN["high_quality"]].astype(bool),
        shard=np.repeat(np.arange(len(tables)), sizes),
        row=np.concatenate([np.arange(size) for size in sizes]),
    )
