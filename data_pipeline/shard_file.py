"""One shard on disk: a tar mapped into memory and its index table, both checked before they are used."""

import hashlib
import io
import mmap
import threading
from array import array
from pathlib import Path
from typing import IO
from weakref import WeakValueDictionary

import numpy as np

from configs.errors import UserError
from data_pipeline.layout import Layout
from data_pipeline.manifest import DamagedShard, ShardFacts
from data_pipeline.shard_cache import RemotePath

MAX_OPEN_SHARDS = 8192
"""Maps that a process holds at a time; Linux allows 65,530 by default, of all kinds."""
OPEN_SHARE = 16
"""A process keeps at most this part of the cache open, because what is open cannot make room for what comes next."""


class _OpenShards:
    """The shards that this process has mapped, oldest first; beyond the limit the oldest is let go of."""

    def __init__(self) -> None:
        # Weak, so that a reader that nobody closed lets go of its maps when it goes away.
        self._files: WeakValueDictionary[int, ShardFile] = WeakValueDictionary()
        self._lock = threading.RLock()

    def add(self, file: "ShardFile") -> None:
        with self._lock:
            self._files[id(file)] = file
            while len(self._files) > MAX_OPEN_SHARDS:
                self.release_oldest()
            if isinstance(file.path, RemotePath):
                self._release_remote(file, file.path.cache.max_bytes // OPEN_SHARE)

    def remove(self, file: "ShardFile") -> None:
        with self._lock:
            self._files.pop(id(file), None)

    def _release_remote(self, newest: "ShardFile", limit: int) -> None:
        """Let go of the oldest remote shards, down to `limit` bytes but never of the newest."""
        remote = [file for file in self._files.values() if isinstance(file.path, RemotePath)]
        total = sum(file.facts.bytes for file in remote)
        for file in remote:
            if total > limit and file is not newest:
                self.remove(file)
                file.release()
                total -= file.facts.bytes

    def release_oldest(self) -> bool:
        """Let go of the shard that was opened first; False when none is open."""
        with self._lock:
            file = self._files.pop(next(iter(self._files.keys()), 0), None)
        if file is None:
            return False
        file.release()
        return True


_OPEN = _OpenShards()


class ShardFile:
    """One tar and its index, mapped into memory on first touch."""

    def __init__(self, folder: Path | RemotePath, facts: ShardFacts, columns: int, verify: bool, remedy: str) -> None:
        self.path = folder / facts.name
        self.facts = facts
        self.layout: Layout | None = None
        """Of most of its samples."""
        self.headers = array("I", bytes(4 * facts.samples))
        """Bytes before the arrays of each sample that was found in order, with this layout; 0 for the others."""
        self._index_path = folder / facts.index
        self._columns = columns
        self._verify = verify
        self._verified = False
        self._remedy = remedy
        self.opened_table: np.ndarray | None = None
        """`table` where it is at hand."""
        self.opened: mmap.mmap | None = None
        """`mapped` where it is at hand."""

    @property
    def table(self) -> np.ndarray:
        """int64 [samples, columns]; read again after `release`.

        Raises:
            DamagedShard: the index file is missing, or its bytes or form are not those of the manifest.
        """
        if self.opened_table is None:
            self.opened_table = self._read_index()
        return self.opened_table

    @property
    def mapped(self) -> mmap.mmap:
        """The tar's bytes.

        Raises:
            DamagedShard: the file is missing, or its size or sha256 differs from the manifest's.
        """
        # One read of the attribute: another thread may let go of the map meanwhile.
        mapped = self.opened
        if mapped is None:
            mapped = self.opened = self._open()
            _OPEN.add(self)
        return mapped

    def bytes_at(self, offset: int, length: int) -> bytes:
        """A slice of the tar.

        Raises:
            DamagedShard: as `mapped`.
        """
        mapped = self.mapped
        if offset < 0 or length < 0 or offset + length > len(mapped):
            raise self.damaged("its index points outside the file")
        return mapped[offset : offset + length]

    def damaged(self, what: str) -> DamagedShard:
        return DamagedShard(f"{self.path}: damaged ({what}); {self._remedy}")

    def release(self) -> None:
        """Let go of the map; the next touch brings it back, without hashing a second time."""
        # Not closed: arrays that still look into the map keep it alive, and nothing breaks under another thread.
        self.opened = None
        if isinstance(self.path, Path):
            self.opened_table = None

    def close(self) -> None:
        _OPEN.remove(self)
        self.release()

    @property
    def is_local(self) -> bool:
        """Whether the tar itself is mapped, and not a copy in a cache."""
        return isinstance(self.path, Path)

    def is_near(self) -> bool:
        """Whether the tar can be mapped without a download."""
        return isinstance(self.path, Path) or self.opened is not None or self.path.cached(self.facts.sha256)

    def fetch(self) -> None:
        """Bring a remote tar into the local cache."""
        if isinstance(self.path, RemotePath):
            self.path.fetch(self.facts.bytes, self.facts.sha256, _OPEN.release_oldest)

    def _open(self) -> mmap.mmap:
        try:
            mapped, problem = self._map_file()
            if problem and isinstance(self.path, RemotePath):
                # The copy in the cache, not the remote file: those bytes were right when they arrived.
                self.path.cache.forget(self.facts.sha256)
                mapped, problem = self._map_file()
        except UserError:
            raise
        except (OSError, ValueError) as error:
            raise self.damaged(f"cannot be read: {error}") from None
        if problem:
            mapped.close()
            raise self.damaged(problem)
        self._verified = True
        return mapped

    def _map_file(self) -> tuple[mmap.mmap, str | None]:
        """The map, and what is wrong with its bytes."""
        with self._open_file() as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        problem = None
        if len(mapped) != self.facts.bytes:
            problem = f"{len(mapped)} bytes, the manifest says {self.facts.bytes}"
        elif self._verify and not self._verified and hashlib.sha256(mapped).hexdigest() != self.facts.sha256:
            problem = "its sha256 differs from the manifest's"
        return mapped, problem

    def _open_file(self) -> IO[bytes]:
        if isinstance(self.path, RemotePath):
            return self.path.open_cached(self.facts.bytes, self.facts.sha256, _OPEN.release_oldest)
        return self.path.open("rb")

    def _read_index(self) -> np.ndarray:
        path = self._index_path
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
        if table.shape != (self.facts.samples, self._columns) or table.dtype != np.int64:
            raise DamagedShard(f"{path}: damaged (shape {table.shape}, type {table.dtype}); {self._remedy}")
        return table
