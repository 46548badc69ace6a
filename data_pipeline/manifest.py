"""manifest.json: what a folder of shards holds, with every file's sha256 and a seal over the manifest itself."""

import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from configs.errors import UserError
from data_pipeline.schema import SCHEMA_VERSION
from data_pipeline.structure.chain import AMINO_ACIDS, ATOM_NAMES, THREEDI_STATES, UNKNOWN_RESIDUE

MANIFEST_NAME = "manifest.json"
REJECTS_NAME = "rejects.jsonl"
SPLITS = ("train", "validation", "test")
SEAL = "seal_sha256"
NO_LEAKAGE = "no sequence cluster stands in two splits (checked when the manifest was written)"
AUDIT_REMEDY = (
    "run `python -m data_pipeline audit {folder}` to list all damage, delete what it names and build again "
    "(a build gives the same bytes)"
)

M = TypeVar("M", bound="Record")


class DamagedShard(UserError):
    """A file whose bytes are not those that its manifest promises; the message names the file and the remedy."""


class Record(BaseModel):
    """Base of the manifest's parts: frozen, strictly typed, an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ShardFacts(Record):
    """One tar and its index file, both named relative to the manifest's folder."""

    name: str
    samples: int
    residues: int
    bytes: int
    sha256: str
    index: str
    index_sha256: str


class SplitFacts(Record):
    """Totals of one split and its shards in order."""

    samples: int
    residues: int
    clusters: int
    high_quality: int
    """Samples of the high-quality subset."""
    shards: tuple[ShardFacts, ...]


class SourceFacts(Record):
    """Where the structures came from."""

    kind: str
    entries: int
    """Structure files (or tar members) read."""
    entries_sha256: str | None = None
    """Over the sorted names and sizes of the entries."""


class LeakageFacts(Record):
    """What keeps held-out chains apart from training chains."""

    clusters_in_two_splits: int
    statement: str
    clustering: dict[str, Any] = {}
    """Method, tool version and parameters of the clusters, their number and largest size."""
    splitting: dict[str, Any] = {}
    """The rule that placed clusters in splits."""
    against: tuple[dict[str, Any], ...] = ()
    """Per set of evaluation sequences: what was found of it among the chains, and what was done."""


class Manifest(Record):
    """Everything a reader needs to trust and to seek a folder of shards; a pure function of inputs, config, commit."""

    schema_version: str
    vocabulary_sha256: str
    config: dict[str, Any]
    """The resolved build configuration without what cannot change the shards (output folder, number of workers)."""
    commit: str | None
    """Git commit of the code that built the shards; no part of their bytes."""
    source: SourceFacts
    splits: dict[str, SplitFacts]
    chains: int
    """Chains found by the parser plus entries that gave none: the sum of kept and dropped."""
    kept: int
    dropped: dict[str, int]
    """Chains (or whole entries) left out, by reason code; rejects.jsonl lists them."""
    rejects_sha256: str | None
    leakage: LeakageFacts

    @property
    def content_sha256(self) -> str:
        """Names the data whatever the commit or place: over split, name and sha256 of every shard in order."""
        lines = [f"{split} {s.name} {s.sha256}\n" for split in sorted(self.splits) for s in self.splits[split].shards]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def split_order(split: str) -> tuple[int, str]:
    """Sorting key: train, validation, test, others by name."""
    return (SPLITS.index(split) if split in SPLITS else len(SPLITS), split)


def vocabulary_sha256() -> str:
    """Names the alphabets and the atom order that give the stored letters and coordinates their meaning."""
    content = [AMINO_ACIDS, UNKNOWN_RESIDUE, THREEDI_STATES, list(ATOM_NAMES)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def temporary_path(path: Path, scratch: Path | None = None) -> Path:
    """Where a file is written before it gets its name: in `scratch` (same filesystem) or beside it."""
    # Random, so that a lingering worker of a killed build, on whatever machine, never shares this file.
    return (scratch or path.parent) / f".{path.name}.{secrets.token_hex(6)}.part"


def write_atomically(path: Path, data: bytes, scratch: Path | None = None) -> None:
    """Write through a temporary name, so that the file is whole or absent."""
    temporary = temporary_path(path, scratch)
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_sealed(path: Path, record: Record, scratch: Path | None = None) -> str:
    """Write a record as sealed JSON, atomically; returns the sha256 of the file."""
    data = _render(record.model_dump(mode="json"))
    write_atomically(path, data, scratch)
    return hashlib.sha256(data).hexdigest()


def read_sealed(path: Path, model: type[M], remedy: str) -> tuple[M, str]:
    """The record of a sealed JSON file and the file's sha256.

    Raises:
        DamagedShard: the bytes differ from what was written in any bit.
        UserError: it was written by a version of another major number.
    """
    data = path.read_bytes()
    try:
        tree = json.loads(data)
        tree.pop(SEAL)
        intact = data == _render(tree)
    except (ValueError, KeyError, AttributeError, TypeError):
        intact = False
    if not intact:
        raise DamagedShard(f"{path}: damaged (its content does not match its own seal); {remedy}")
    version = str(tree.get("schema_version"))
    if version.partition(".")[0] != SCHEMA_VERSION.partition(".")[0]:
        raise UserError(f"{path}: schema version {version}; this code reads {SCHEMA_VERSION}; {remedy}")
    try:
        return model.model_validate_json(json.dumps(tree)), hashlib.sha256(data).hexdigest()
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path}: not a {model.__name__} at {'.'.join(map(str, first['loc']))}; {remedy}") from None


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """The manifest of a folder of shards and the sha256 of its file.

    Raises:
        UserError: no such folder, or no manifest (an unfinished build), or another schema or vocabulary.
        DamagedShard: the manifest is damaged.
    """
    build = "make it with `python -m data_pipeline build CONFIG`"
    if not folder.is_dir():
        raise UserError(f"shards {folder}: no such folder; {build}")
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise UserError(
            f"shards {folder}: no {MANIFEST_NAME}, so no finished build; {build} (it continues where it was)"
        )
    manifest, sha256 = read_sealed(path, Manifest, AUDIT_REMEDY.format(folder=folder))
    if manifest.vocabulary_sha256 != vocabulary_sha256():
        raise UserError(
            f"shards {folder}: written with other alphabets or atom order than this code's; build them again"
        )
    return manifest, sha256


def _render(tree: dict[str, Any]) -> bytes:
    seal = hashlib.sha256(_dump(tree).encode()).hexdigest()
    return f"{_dump({**tree, SEAL: seal})}\n".encode()


def _dump(tree: dict[str, Any]) -> str:
    return json.dumps(tree, sort_keys=True, indent=1, allow_nan=False)
