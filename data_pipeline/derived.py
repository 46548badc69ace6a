"""Derived columns: arrays for every sample of base shards, in sibling tars with the same keys and order."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import safetensors.numpy

from configs.errors import UserError
from data_pipeline.manifest import (
    MANIFEST_NAME,
    Manifest,
    Record,
    ShardFacts,
    read_sealed,
    write_atomically,
    write_sealed,
)
from data_pipeline.reader import DECODING_ERRORS, ShardFile, ShardReader
from data_pipeline.schema import SCHEMA_VERSION
from data_pipeline.shards import TarWriter, index_bytes, index_name

DERIVED_FOLDER = "derived"
DERIVED_COLUMNS = ("offset", "length", "arrays_offset", "arrays_length")
"""Columns of a derived shard's index file (int64)."""
EMBEDDING, EMBEDDING_INT8, EMBEDDING_SCALE = "embedding", "embedding_int8", "embedding_scale"
"""Arrays of an embedding's forms; a sample has the first, or the other two."""
INT8_LARGEST = 127
COMPONENTS_NAME = "pca.safetensors"
"""Beside the shards of a column of principal components: `mean` [W] and `components` [k, W]."""
DERIVE_REMEDY = "make it with `python -m pretrain derive teacher|reference CONFIG {folder}`"


class DerivedManifest(Record):
    """What a derived column holds and of which shards it was made."""

    schema_version: str
    name: str
    base_sha256: str
    """`content_sha256` of the base shards' manifest: a rebuild of the same bytes keeps the column usable."""
    facts: dict[str, Any]
    """How the arrays were made (teacher, weights, width, type)."""
    splits: dict[str, tuple[ShardFacts, ...]]


def encode_embedding(embedding: np.ndarray, dtype: Literal["float16", "int8"]) -> dict[str, np.ndarray]:
    """The stored arrays of a float32 [N, width] embedding.

    float16 is `embedding`. int8 is `embedding_int8` [N, width] and its `embedding_scale` float32 [N]: a residue's
    largest feature becomes 127. On MPNN embeddings a scale per feature gives half as much error again.
    """
    if dtype == "float16":
        return {EMBEDDING: embedding.astype(np.float16)}
    scale = (np.abs(embedding).max(axis=1, initial=0.0) / INT8_LARGEST).astype(np.float32)
    steps = embedding / np.where(scale == 0, np.float32(1), scale)[:, None]
    return {EMBEDDING_INT8: np.rint(steps).astype(np.int8), EMBEDDING_SCALE: scale}


def decode_embedding(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """float32 [N, width] of a sample's stored arrays; rows that were zero are exactly zero."""
    if EMBEDDING in arrays:
        return arrays[EMBEDDING].astype(np.float32)
    return arrays[EMBEDDING_INT8] * arrays[EMBEDDING_SCALE].astype(np.float32)[:, None]


class DerivedShard:
    """Writes one derived tar and its index; both appear whole or not at all, under `scratch` until then."""

    def __init__(self, path: Path, scratch: Path | None = None) -> None:
        self._tar = TarWriter(path, scratch)
        self._scratch = scratch
        self._rows: list[tuple[int, ...]] = []
        self._residues = 0

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, key: str, arrays: Mapping[str, np.ndarray], residues: int) -> None:
        """Append the arrays of the next sample of the base shard."""
        start = self._tar.offset
        data = safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        offset = self._tar.add(f"{key}.safetensors", data)
        self._rows.append((start, self._tar.offset - start, offset, len(data)))
        self._residues += residues

    def commit(self) -> ShardFacts:
        """Give tar and index their names."""
        size, sha256 = self._tar.commit()
        index = index_bytes(np.array(self._rows, dtype=np.int64).reshape(-1, len(DERIVED_COLUMNS)))
        name = self._tar.path.name
        write_atomically(self._tar.path.with_name(index_name(name)), index, self._scratch)
        return ShardFacts(
            name=name,
            samples=len(self._rows),
            residues=self._residues,
            bytes=size,
            sha256=sha256,
            index=index_name(name),
            index_sha256=hashlib.sha256(index).hexdigest(),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tar.__exit__(kind, error, trace)


def write_derived_manifest(
    base: Manifest, folder: Path, facts: Mapping[str, Any], splits: Mapping[str, Sequence[ShardFacts]]
) -> None:
    """Declare the column `folder` finished: the last file written."""
    manifest = DerivedManifest(
        schema_version=SCHEMA_VERSION,
        name=folder.name,
        base_sha256=base.content_sha256,
        facts=dict(facts),
        splits={split: tuple(shards) for split, shards in splits.items()},
    )
    write_sealed(folder / MANIFEST_NAME, manifest)


class DerivedWriter:
    """Writes `<shards>/derived/<name>/`: the same split, shard and sample order as the base.

    Samples of a split are written in order from 0; a split is written wholly or not at all. The manifest comes last,
    when the `with` block ends without an exception, so an interrupted column is never mistaken for a finished one.
    """

    def __init__(self, base: ShardReader, name: str, facts: Mapping[str, Any]) -> None:
        self._base = base
        self._name = name
        self._facts = dict(facts)
        self.folder = base.folder / DERIVED_FOLDER / name
        self._shards: dict[str, list[ShardFacts]] = {}
        self._next: dict[str, int] = {}
        self._current: DerivedShard | None = None
        self._folder_ready = False

    def write(self, split: str, i: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Append the arrays of sample i of a split."""
        index = self._base.index(split)
        assert i == self._next.get(split, 0), f"{split}: sample {i} is out of order"
        file = self._base.files(split)[index.shard[i]]
        if index.row[i] == 0:
            assert self._current is None, f"{split}: the shard of another split is still open"
            self._prepare_folder()
            self._current = DerivedShard(self.folder / file.facts.name)
        shard = self._current
        assert shard is not None
        shard.add(self._base.key(split, i), arrays, int(index.residues[i]))
        self._next[split] = i + 1
        if len(shard) == file.facts.samples:
            self._shards.setdefault(split, []).append(shard.commit())
            self._current = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._current is not None:
            self._current.__exit__(kind, error, trace)
        if kind is not None:
            return
        for split, written in self._next.items():
            assert written == len(self._base.index(split)), f"{split}: {written} samples written, more expected"
        self._prepare_folder()
        write_derived_manifest(self._base.manifest, self.folder, self._facts, self._shards)

    def _prepare_folder(self) -> None:
        """Drop what an earlier or interrupted run left: its manifest first, so that it no longer counts as finished."""
        if self._folder_ready:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / MANIFEST_NAME).unlink(missing_ok=True)
        for path in self.folder.iterdir():
            if path.name.endswith((".tar", ".index.npy", ".part")):
                path.unlink()
        self._folder_ready = True


class DerivedReader:
    """Arrays of a derived column by split and sample number; verified on first touch like the base shards.

    Raises:
        UserError: the column does not exist, is unfinished, or was made from other shards.
        DamagedShard: a file is damaged.
    """

    def __init__(self, base: ShardReader, name: str, verify: bool = True) -> None:
        self._base = base
        self._verify = verify
        self.folder = base.folder / DERIVED_FOLDER / name
        self._remedy = DERIVE_REMEDY.format(folder=base.folder)
        path = self.folder / MANIFEST_NAME
        if not path.is_file():
            have = ", ".join(derived_names(base.folder)) or "none"
            raise UserError(f"derived column {name!r} of {base.folder}: not there (finished: {have}); {self._remedy}")
        self.manifest, self.manifest_sha256 = read_sealed(path, DerivedManifest, self._remedy)
        if self.manifest.base_sha256 != base.manifest.content_sha256:
            raise UserError(
                f"derived column {self.folder}: made from other shards than those beside it; {self._remedy}"
            )
        self._files: dict[str, list[ShardFile]] = {}

    @property
    def facts(self) -> dict[str, Any]:
        return self.manifest.facts

    def arrays(self, split: str, i: int) -> dict[str, np.ndarray]:
        """The arrays written for sample i of a split."""
        index = self._base.index(split)
        file = self.files(split)[index.shard[i]]
        _, _, offset, length = file.table[index.row[i]].tolist()
        try:
            return safetensors.numpy.load(file.bytes_at(offset, length))
        except DECODING_ERRORS as error:
            raise file.damaged(f"sample {i} of {split} does not decode: {error}") from None

    def embedding(self, split: str, i: int) -> np.ndarray:
        """float32 [N, width]: the embedding of sample i, whatever form it is stored in; 0 where there is none.

        Raises:
            UserError: the column holds no embeddings.
            DamagedShard: its bytes are not those that were written.
        """
        arrays = self.arrays(split, i)
        if not {EMBEDDING, EMBEDDING_INT8} & set(arrays):
            raise UserError(f"derived column {self.folder}: holds {', '.join(arrays)}, no embedding; name another")
        return decode_embedding(arrays)

    def files(self, split: str) -> list[ShardFile]:
        """The split's derived shards in order."""
        if split not in self._files:
            if split not in self.manifest.splits:
                have = ", ".join(self.manifest.splits)
                raise UserError(
                    f"derived column {self.folder}: split {split!r} is not in it (has: {have}); {self._remedy}"
                )
            shards = self.manifest.splits[split]
            width = len(DERIVED_COLUMNS)
            self._files[split] = [ShardFile(self.folder, s, width, self._verify, self._remedy) for s in shards]
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


def derived_names(folder: Path) -> list[str]:
    """Names of the finished derived columns of a folder of shards."""
    return sorted(path.parent.name for path in (folder / DERIVED_FOLDER).glob(f"*/{MANIFEST_NAME}"))
