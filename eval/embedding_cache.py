"""Embeddings on disk: append-only files that several processes write and map, indexed by the sequences' sha256.

`<folder>/<weights>-<representation>-<precision>/` holds `chunk-*.safetensors`, each written under another name and then
renamed, so that a killed process leaves nothing half done but a file that nobody reads. A chunk of n sequences has
`digests` uint8 [n, 32], `means` float32 [n, D] and, where states of residues were wanted, `starts` int64 [n + 1] and
`states` float16 [rows, D] (float32 where a value is beyond float16).
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

FLOAT16_MAX = float(np.finfo(np.float16).max)
_DTYPES = {"U8": np.uint8, "I64": np.int64, "F16": np.float16, "F32": np.float32}
_PARTIAL = ".part"
log = logging.getLogger("eval.embeddings")


@dataclass(frozen=True)
class _Chunk:
    """One file, mapped."""

    means: np.ndarray
    starts: np.ndarray | None
    states: np.ndarray | None


class EmbeddingCache:
    """Embeddings of one model's weights in one representation and precision.

    Args:
        folder: holds the caches of many models.
        weights_sha256, representation, precision: what the embeddings depend on besides the sequence.
    """

    def __init__(self, folder: Path, weights_sha256: str, representation: str, precision: str) -> None:
        self.folder = folder / f"{weights_sha256[:32]}-{representation}-{precision}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._chunks: list[_Chunk] = []
        self._seen: set[str] = set()
        self._means: dict[bytes, tuple[int, int]] = {}
        self._states: dict[bytes, tuple[int, int]] = {}
        self.refresh()

    def __len__(self) -> int:
        """Sequences whose means are there."""
        return len(self._means)

    def missing(self, sequences: Sequence[str], with_states: bool) -> list[str]:
        """Those, each once, of which the means (or the states of residues) are not there, whoever wrote them."""
        index = self._states if with_states else self._means
        distinct = list(dict.fromkeys(sequences))
        lacking = [sequence for sequence in distinct if digest(sequence) not in index]
        if lacking:
            self.refresh()
        return [sequence for sequence in lacking if digest(sequence) not in index]

    def mean(self, sequence: str) -> np.ndarray:
        """float32 [D], mapped; the sequence must be there."""
        chunk, row = self._means[digest(sequence)]
        return self._chunks[chunk].means[row]

    def residues(self, sequence: str) -> np.ndarray:
        """float16 or float32 [N, D], mapped; the sequence must be there with its states."""
        number, row = self._states[digest(sequence)]
        chunk = self._chunks[number]
        assert chunk.starts is not None, "the index names chunks with states"
        assert chunk.states is not None
        return chunk.states[chunk.starts[row] : chunk.starts[row + 1]]

    def write(self, sequences: Sequence[str], means: np.ndarray, states: Sequence[np.ndarray] | None = None) -> None:
        """Add a chunk: means [n, D], and the states [N, D] of each sequence where they are wanted. Hold the lock."""
        digests = np.frombuffer(b"".join(map(digest, sequences)), dtype=np.uint8).reshape(-1, 32)
        arrays = {"digests": digests, "means": np.ascontiguousarray(means, dtype=np.float32)}
        if states is not None:
            rows = np.concatenate(states)
            fits = bool(np.abs(rows).max(initial=0.0) <= FLOAT16_MAX)
            arrays["states"] = rows.astype(np.float16 if fits else np.float32)
            arrays["starts"] = np.cumsum([0, *map(len, states)], dtype=np.int64)
        path = self.folder / f"chunk-{uuid.uuid4().hex}.safetensors"
        partial = path.with_suffix(_PARTIAL)
        save_file(arrays, partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
        self.refresh()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Alone among all processes that write here; a killed one lets go, and its unfinished file is removed."""
        with (self.folder / ".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            for partial in self.folder.glob(f"*{_PARTIAL}"):
                partial.unlink(missing_ok=True)
            yield

    def refresh(self) -> None:
        """Take in chunks that appeared since the last look, other processes' too."""
        for path in sorted(self.folder.glob("chunk-*.safetensors")):
            if path.name in self._seen:
                continue
            self._seen.add(path.name)
            arrays = map_safetensors(path)
            if arrays is None:
                log.warning("%s: damaged; its sequences are embedded again", path)
                continue
            number = len(self._chunks)
            self._chunks.append(_Chunk(arrays["means"], arrays.get("starts"), arrays.get("states")))
            for row, name in enumerate(arrays["digests"]):
                self._means.setdefault(name.tobytes(), (number, row))
                if "states" in arrays:
                    self._states.setdefault(name.tobytes(), (number, row))


def digest(sequence: str) -> bytes:
    """sha256 of a sequence's letters, 32 bytes."""
    return hashlib.sha256(sequence.encode()).digest()


def map_safetensors(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of a safetensors file as views of the mapped file; None where it is not whole."""
    try:
        data = np.memmap(path, dtype=np.uint8, mode="r")
        length = int.from_bytes(data[:8].tobytes(), "little")
        header = json.loads(data[8 : 8 + length].tobytes())
        base, found, end = 8 + length, {}, 0
        for name, facts in header.items():
            if name == "__metadata__":
                continue
            start, stop = facts["data_offsets"]
            end = max(end, stop)
            found[name] = data[base + start : base + stop].view(_DTYPES[facts["dtype"]]).reshape(facts["shape"])
        return found if base + end == len(data) and {"digests", "means"} <= found.keys() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def remove_embeddings(folder: Path, weights_sha256: str) -> None:
    """Remove all that is cached of these weights, and the folder if nothing else is in it."""
    for each in folder.glob(f"{weights_sha256[:32]}-*"):
        shutil.rmtree(each, ignore_errors=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
