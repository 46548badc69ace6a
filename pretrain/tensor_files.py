"""Safetensors files written as a stream and hashed on the way, so that a hash speaks of what memory held."""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True)
class TensorFacts:
    """What a digest of the weights is made of."""

    dtype: str
    """Safetensors name, e.g. `F32`."""
    shape: tuple[int, ...]
    sha256: str
    """Of the little-endian, row-major bytes."""


@dataclass(frozen=True)
class FileFacts:
    """One written file."""

    num_bytes: int
    sha256: str
    tensors: dict[str, TensorFacts] = field(default_factory=dict)


class TensorFile:
    """A safetensors file whose tensors are declared at first and then written one by one, in the same order."""

    def __init__(self, path: Path, declared: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        header, offset = {}, 0
        for name, (dtype, shape) in declared.items():
            end = offset + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        # Readers map the file: padding the header to 8 bytes keeps every tensor aligned.
        text += b" " * (-len(text) % 8)
        self._expected = iter(header)
        self._facts: dict[str, TensorFacts] = {}
        self._whole = hashlib.sha256()
        self._num_bytes = 8 + len(text) + offset
        self._file = path.open("wb")
        self._put(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, tensor: Tensor) -> None:
        """Append a CPU tensor."""
        assert name == next(self._expected), f"{name} is not the next declared tensor"
        data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
        self._put(data)
        self._facts[name] = TensorFacts(_DTYPES[tensor.dtype], tuple(tensor.shape), hashlib.sha256(data).hexdigest())

    def finish(self) -> FileFacts:
        """Force the file to disk and close it."""
        assert next(self._expected, None) is None, "a declared tensor was not written"
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())
        return FileFacts(self._num_bytes, self._whole.hexdigest(), self._facts)

    def abandon(self) -> None:
        """Close it as it is."""
        with suppress(OSError):
            self._file.close()

    def _put(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._whole.update(data)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> FileFacts:
    """Write CPU tensors in sorted order and force them to disk; memory use does not grow with the file."""
    names = sorted(tensors)
    file = TensorFile(path, {name: (tensors[name].dtype, tuple(tensors[name].shape)) for name in names})
    try:
        for name in names:
            file.write(name, tensors[name])
        return file.finish()
    except OSError:
        file.abandon()
        raise


def write_bytes(path: Path, data: bytes) -> FileFacts:
    """Write a small file and force it to disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return FileFacts(len(data), hashlib.sha256(data).hexdigest())


def hash_file(path: Path) -> str:
    """sha256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
