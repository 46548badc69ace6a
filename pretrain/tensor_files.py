"""Safetensors files written as a stream and hashed on the way, so that a hash speaks of what memory held."""

import hashlib
import json
import os
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


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> FileFacts:
    """Write CPU tensors in sorted order and force them to disk; memory use does not grow with the file."""
    names = sorted(tensors)
    header, offset = {}, 0
    for name in names:
        tensor = tensors[name]
        num_bytes = tensor.numel() * tensor.element_size()
        offsets = [offset, offset + num_bytes]
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        offset += num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    # Readers map the file: padding the header to 8 bytes keeps every tensor aligned.
    text += b" " * (-len(text) % 8)
    whole, facts = hashlib.sha256(), {}
    with path.open("wb") as file:
        for part in (len(text).to_bytes(8, "little"), text):
            file.write(part)
            whole.update(part)
        for name in names:
            data = tensors[name].detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
            own = hashlib.sha256(data)
            file.write(data)
            whole.update(data)
            facts[name] = TensorFacts(header[name]["dtype"], tuple(tensors[name].shape), own.hexdigest())
        file.flush()
        os.fsync(file.fileno())
    return FileFacts(8 + len(text) + offset, whole.hexdigest(), facts)


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
