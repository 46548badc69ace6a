"""Small shards in fsspec's memory file system, and a storage that fails on demand."""

from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from configs.training_data import CacheConfig
from data_pipeline.reader import ShardReader
from tests.unit.data_pipeline.samples import small_splits

URL = "memory://bucket/shards"


def upload(folder: Path) -> None:
    fsspec.filesystem("memory").put(str(folder), "/bucket/shards", recursive=True)


def cache_config(tmp_path: Path, **changes: Any) -> CacheConfig:
    return CacheConfig(folder=tmp_path / "cache", **changes)


def cached_bytes(tmp_path: Path) -> int:
    return sum(path.stat().st_size for path in (tmp_path / "cache").iterdir())


def read_all(reader: ShardReader, split: str = "train") -> list[str]:
    return [reader.sample(split, i).sequence for i in range(len(reader.index(split)))]


def sequences(split: str = "train") -> list[str]:
    return [sample.sequence for sample in small_splits()[split]]


class Failing:
    """Makes every n-th opening of a tar fail, or give other bytes, as long as `left` says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, left: int, error: Exception | None) -> None:
        self.left, self.opened = left, 0
        original = MemoryFileSystem._open

        def opening(system: MemoryFileSystem, path: str, *args: Any, **kwargs: Any) -> Any:
            if not path.endswith(".tar"):
                return original(system, path, *args, **kwargs)
            self.opened += 1
            if self.left > 0:
                self.left -= 1
                if error is not None:
                    raise error
                return fsspec.implementations.memory.MemoryFile(data=b"other bytes")
            return original(system, path, *args, **kwargs)

        monkeypatch.setattr(MemoryFileSystem, "_open", opening)
