"""Files of embeddings in three formats with the same three arrays, written as a stream.

`ids`: names in the order of the FASTA file; `embeddings`: float32, one row for each sequence or for each residue, the
sequences end to end; `starts` (per residue only): int64 [n + 1], where each sequence's rows begin, and their number.
In safetensors, which holds numbers alone, `ids` is the UTF-8 text of the names joined by line feeds, uint8.
"""

import io
import json
import os
import shutil
import tempfile
import zipfile
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from configs.errors import UserError
from eval.fasta_stream import FastaFacts

FORMATS = ("safetensors", "h5", "npz")


class EmbeddingFile(Protocol):
    """Takes embeddings in the order of the sequences."""

    def write(self, names: Sequence[str], rows: Sequence[np.ndarray]) -> None:
        """Names of some sequences, and float32 [N, D] (or [1, D]: a mean) of each."""

    def finish(self) -> None: ...


def format_of(path: Path, asked: str | None) -> str:
    """The format asked for, else the one that the file's name ends with.

    Raises:
        UserError: neither.
    """
    suffix = {"hdf5": "h5"}.get(path.suffix.lstrip("."), path.suffix.lstrip("."))
    found = asked or suffix
    if found not in FORMATS:
        raise UserError(f"output {path}: format {found!r}; allowed: {', '.join(FORMATS)}; end the name so, or --format")
    return found


@contextmanager
def embedding_file(
    path: Path, kind: str, facts: FastaFacts, width: int, per_residue: bool, about: dict[str, str]
) -> Iterator[EmbeddingFile]:
    """A file that gets its name when it is complete.

    Args:
        about: strings stored in the file (safetensors metadata, HDF5 attributes, `about.json` in npz).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    shape = (facts.num_residues if per_residue else facts.num_sequences, width)
    writer = {"safetensors": _Safetensors, "h5": _Hdf5, "npz": _Npz}[kind](partial, facts, shape, per_residue, about)
    try:
        yield writer
        writer.finish()
        os.replace(partial, path)
    finally:
        writer.close()
        partial.unlink(missing_ok=True)


class _Common:
    """Counts of sequences and rows, and names, for the formats that need them at the end."""

    def __init__(self, facts: FastaFacts, shape: tuple[int, int]) -> None:
        self.facts, self.shape = facts, shape
        self.starts = array("q", [0])
        self.names = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close` of the writer

    def count(self, names: Sequence[str], rows: Sequence[np.ndarray]) -> bytes:
        """The rows' bytes."""
        for name, part in zip(names, rows, strict=True):
            self.starts.append(self.starts[-1] + len(part))
            self.names.write(name.encode() + b"\n")
        return np.ascontiguousarray(np.concatenate(rows), dtype="<f4").tobytes()

    def check(self) -> None:
        """The file must still hold what was counted at first."""
        if (len(self.starts) - 1, self.starts[-1]) != (self.facts.num_sequences, self.shape[0]):
            raise UserError("the FASTA file changed while it was read; run the command again")

    def all_names(self) -> Iterator[str]:
        self.names.seek(0)
        return (line[:-1].decode() for line in self.names)


class _Safetensors:
    def __init__(
        self, path: Path, facts: FastaFacts, shape: tuple[int, int], per_residue: bool, about: dict[str, str]
    ) -> None:
        self.common, self.per_residue = _Common(facts, shape), per_residue
        sizes = {"embeddings": ("F32", list(shape), 4 * shape[0] * shape[1])}
        if per_residue:
            sizes["starts"] = ("I64", [facts.num_sequences + 1], 8 * (facts.num_sequences + 1))
        num_bytes = facts.name_bytes + facts.num_sequences - 1
        sizes["ids"] = ("U8", [num_bytes], num_bytes)
        header: dict[str, Any] = {"__metadata__": about}
        offset = 0
        for name, (dtype, size, length) in sizes.items():
            header[name] = {"dtype": dtype, "shape": size, "data_offsets": [offset, offset + length]}
            offset += length
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self.file = path.open("wb")
        self.file.write(len(text).to_bytes(8, "little") + text)

    def write(self, names: Sequence[str], rows: Sequence[np.ndarray]) -> None:
        self.file.write(self.common.count(names, rows))

    def finish(self) -> None:
        self.common.check()
        if self.per_residue:
            self.file.write(np.array(self.common.starts, dtype="<i8").tobytes())
        # The last name's line feed is not written.
        self.common.names.seek(0)
        shutil.copyfileobj(self.common.names, self.file)
        self.file.seek(-1, os.SEEK_CUR)
        self.file.truncate()
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()
        self.common.names.close()


class _Npz:
    def __init__(
        self, path: Path, facts: FastaFacts, shape: tuple[int, int], per_residue: bool, about: dict[str, str]
    ) -> None:
        self.common, self.per_residue = _Common(facts, shape), per_residue
        self.zip = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED)
        self.zip.writestr("about.json", json.dumps(about))
        self.member: Any = self.zip.open("embeddings.npy", "w", force_zip64=True)
        self.member.write(_npy_header("<f4", shape))

    def write(self, names: Sequence[str], rows: Sequence[np.ndarray]) -> None:
        self.member.write(self.common.count(names, rows))

    def finish(self) -> None:
        self.common.check()
        self.member.close()
        if self.per_residue:
            with self.zip.open("starts.npy", "w", force_zip64=True) as member:
                member.write(_npy_header("<i8", (len(self.common.starts),)))
                member.write(np.array(self.common.starts, dtype="<i8").tobytes())
        dtype = f"<U{self.common.facts.longest_name}"
        with self.zip.open("ids.npy", "w", force_zip64=True) as member:
            member.write(_npy_header(dtype, (self.common.facts.num_sequences,)))
            for name in self.common.all_names():
                member.write(np.array([name], dtype=dtype).tobytes())
        self.zip.close()

    def close(self) -> None:
        if not self.member.closed:
            self.member.close()
        self.zip.close()
        self.common.names.close()


class _Hdf5:
    def __init__(
        self, path: Path, facts: FastaFacts, shape: tuple[int, int], per_residue: bool, about: dict[str, str]
    ) -> None:
        import h5py

        self.common, self.per_residue = _Common(facts, shape), per_residue
        self.file = h5py.File(path, "w")
        self.file.attrs.update(about)
        self.file.create_dataset("embeddings", shape, "<f4")
        self.file.create_dataset("ids", (facts.num_sequences,), h5py.string_dtype())

    def write(self, names: Sequence[str], rows: Sequence[np.ndarray]) -> None:
        first, row = len(self.common.starts) - 1, self.common.starts[-1]
        data = np.frombuffer(self.common.count(names, rows), dtype="<f4").reshape(-1, self.common.shape[1])
        self.file["embeddings"][row : row + len(data)] = data
        self.file["ids"][first : first + len(names)] = list(names)

    def finish(self) -> None:
        self.common.check()
        if self.per_residue:
            self.file["starts"] = np.array(self.common.starts, dtype="<i8")
        self.file.close()

    def close(self) -> None:
        self.file.close()
        self.common.names.close()


def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    text = io.BytesIO()
    np.lib.format.write_array_header_2_0(text, {"descr": dtype, "fortran_order": False, "shape": shape})
    return text.getvalue()
