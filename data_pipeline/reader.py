"""Random access to shards through memory maps; no byte is used before its file's sha256 was checked.

A folder of shards may also be a URL: then manifest and index files are read at once, and tars are fetched into a local
cache, ahead of their use where `prefetch` was told of it.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from safetensors import SafetensorError

from configs.errors import UserError
from configs.training_data import CacheConfig
from data_pipeline import layout
from data_pipeline.layout import Arrays, read_arrays
from data_pipeline.manifest import AUDIT_REMEDY, DamagedShard, read_manifest, split_order
from data_pipeline.schema import INDEX_COLUMNS, Sample
from data_pipeline.shard_cache import RemotePath, ShardCache, is_url
from data_pipeline.shard_file import ShardFile
from data_pipeline.stored import ends_plainly, own_copy, stored_sample

__all__ = ["COLUMN", "DECODING_ERRORS", "DamagedShard", "ShardFile", "ShardReader", "SplitIndex"]

COLUMN = {name: number for number, name in enumerate(INDEX_COLUMNS)}
DECODING_ERRORS = (*layout.DECODING_ERRORS, SafetensorError)
"""What decoding raises on damaged members; seen only with `verify=False`."""
REQUESTS = 16
"""Index files of remote shards read at the same time."""
DOWNLOADS = 4


@dataclass(frozen=True)
class SplitIndex:
    """What samplers need to know of each of the S samples of a split, in the order of the shards."""

    residues: np.ndarray
    """int32 [S]."""
    cluster: np.ndarray
    """int32 [S]."""
    high_quality: np.ndarray
    """bool [S]."""
    shard: np.ndarray
    """int32 [S]: number of the shard within the split."""
    row: np.ndarray
    """int32 [S]: number of the sample within its shard."""

    def __len__(self) -> int:
        return len(self.residues)


class ShardReader:
    """Samples of a folder of shards by split and number.

    Args:
        folder: a local folder, or the URL of a remote one (any that fsspec reads).
        verify: check each file's sha256 when it is first touched (once per reader); without it only sizes are checked.
            What comes from remote storage is checked on arrival in any case.
        cache: where and how much of remote shards is kept locally.
    """

    def __init__(self, folder: Path | str, verify: bool = True, cache: CacheConfig | None = None) -> None:
        cache = cache or CacheConfig()
        self.folder: Path | RemotePath
        if is_url(folder):
            self.folder = RemotePath(str(folder), ShardCache.of(cache), cache.attempts)
        else:
            self.folder = Path(folder)
        self.verify = verify
        self.manifest, self.manifest_sha256 = read_manifest(self.folder)  # type: ignore[arg-type]
        filled = [name for name, split in self.manifest.splits.items() if split.samples]
        self.splits = tuple(sorted(filled, key=split_order))
        """Splits that hold samples, in the order train, validation, test, others."""
        self.shards_ahead = self._fitting_ahead(cache) if isinstance(self.folder, RemotePath) else 0
        """Shards that `prefetch` may usefully be asked for at a time."""
        self._files: dict[str, list[ShardFile]] = {}
        self._indexes: dict[str, SplitIndex] = {}
        self._downloads: ThreadPoolExecutor | None = None
        self._under_way: dict[str, Future] = {}

    def index(self, split: str) -> SplitIndex:
        """Lengths, clusters and quality of a split without touching its tars.

        Raises:
            UserError: no such split, or an empty one.
            DamagedShard: an index file is damaged.
        """
        if split not in self._indexes:
            self._indexes[split] = _split_index(self.files(split))
        return self._indexes[split]

    def sample(self, split: str, i: int) -> Sample:
        """Sample i of a split; its fields are read-only views of the shard, decoded when they are first used.

        Of a remote shard they are views of a copy: samples of more shards than the cache holds may stand together.

        Raises:
            DamagedShard: its shard's bytes are not those of the manifest.
        """
        index = self._indexes.get(split)
        if index is None:
            index = self.index(split)
        if not 0 <= i < len(index.shard):
            raise IndexError(f"sample {i} of split {split!r}: allowed 0 to {len(index) - 1}")
        file = self._files[split][index.shard.item(i)]
        row = index.row.item(i)
        mapped, table, header = file.opened or file.mapped, file.opened_table, file.headers[row]
        if table is None:
            table = file.table
        _, _, facts, facts_length, at, length, residues, _, _ = table[row].tolist()
        if header:
            assert file.layout is not None
            arrays, plain = (mapped, at + header, at + length, residues, file.layout), True
        else:
            arrays, plain = _check_sample(file, row)
        place = (arrays, mapped, facts, facts + facts_length, plain, file.damaged)
        return stored_sample(place if file.is_local else own_copy(place))

    def key(self, split: str, i: int) -> str:
        """The key of sample i of a split."""
        return self.sample(split, i).key

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

    def prefetch(self, split: str, numbers: Iterable[int]) -> int:
        """Start to fetch the shards of samples that will be read soon, in order of use; returns at once.

        A download that fails is tried again, and its error raised, when a sample of it is read.

        Returns:
            how many shards this call was the first to ask for.
        """
        if not isinstance(self.folder, RemotePath):
            return 0
        index, files = self.index(split), self.files(split)
        shards = dict.fromkeys(index.shard[np.fromiter(numbers, dtype=np.int64)].tolist())
        self._under_way = {name: download for name, download in self._under_way.items() if not download.done()}
        far = [f for f in map(files.__getitem__, shards) if f.facts.name not in self._under_way and not f.is_near()]
        if self._downloads is None:
            self._downloads = ThreadPoolExecutor(DOWNLOADS, thread_name_prefix="shards")
        for file in far:
            self._under_way[file.facts.name] = self._downloads.submit(file.fetch)
        return len(far)

    def close(self) -> None:
        if self._downloads is not None:
            self._downloads.shutdown(wait=False, cancel_futures=True)
            self._downloads = None
        for files in self._files.values():
            for file in files:
                file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _fitting_ahead(self, cache: CacheConfig) -> int:
        """No more than a third of the cache may wait for its use: the rest is for what is in use."""
        sizes = [shard.bytes for split in self.manifest.splits.values() for shard in split.shards]
        return min(cache.shards_ahead, int(cache.gigabytes * 1e9) // (3 * max(sizes, default=1)))


def _check_sample(file: ShardFile, row: int) -> tuple[Arrays, bool]:
    """The arrays of a sample, and whether its JSON `ends_plainly`, on its first touch.

    Raises:
        DamagedShard: the index points to something else than the members of one sample of that length.
    """
    mapped = file.mapped
    _, _, facts, facts_length, at, length, residues, _, _ = file.table[row].tolist()
    if any(
        first < 0 or size < 0 or first + size > len(mapped) for first, size in ((facts, facts_length), (at, length))
    ):
        raise file.damaged("its index points outside the file")
    try:
        arrays = read_arrays(mapped, at, length)
    except DECODING_ERRORS as error:
        raise file.damaged(f"sample {row} of it does not decode: {error}") from None
    if arrays[3] != residues:
        raise file.damaged(f"sample {row} of it has {arrays[3]} residues, its index says {residues}")
    if file.layout is None and arrays[4].signature:
        file.layout = arrays[4]
    plain = ends_plainly(mapped, facts, facts + facts_length, residues)
    if plain and file.layout is not None and file.layout.signature == arrays[4].signature:
        file.headers[row] = arrays[1] - at
    return arrays, plain


def _split_index(files: list[ShardFile]) -> SplitIndex:
    sizes = [file.facts.samples for file in files]
    total = sum(sizes)
    residues, cluster = (np.empty(total, dtype=np.int32) for _ in range(2))
    high_quality = np.empty(total, dtype=bool)
    at = 0
    for table in _tables(files):
        part = slice(at, at + len(table))
        residues[part] = table[:, COLUMN["residues"]]
        cluster[part] = table[:, COLUMN["cluster"]]
        high_quality[part] = table[:, COLUMN["high_quality"]]
        at += len(table)
    return SplitIndex(
        residues,
        cluster,
        high_quality,
        shard=np.repeat(np.arange(len(files), dtype=np.int32), sizes),
        row=np.concatenate([np.arange(size, dtype=np.int32) for size in sizes]),
    )


def _tables(files: list[ShardFile]) -> Iterator[np.ndarray]:
    """The index tables in order: remote ones are asked for side by side and kept, local ones read again when needed."""
    if isinstance(files[0].path, RemotePath):
        with ThreadPoolExecutor(REQUESTS) as pool:
            yield from pool.map(attrgetter("table"), files)
    else:
        for file in files:
            yield file.table
            file.release()
