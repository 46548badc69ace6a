"""The shard contract: what one sample and one manifest hold. SCHEMA.md documents the same byte by byte."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.numpy

from data_pipeline.structure.chain import ATOM_NAMES, THREEDI_STATES

SCHEMA_VERSION = "1.1"
MILLI_ANGSTROM = 1000
MISSING_COORDINATE = np.iinfo(np.int32).min
MISSING_INT16 = np.iinfo(np.int16).min
INT16_SCALE = np.iinfo(np.int16).max
INDEX_COLUMNS = (
    "offset",
    "length",
    "json_offset",
    "json_length",
    "arrays_offset",
    "arrays_length",
    "residues",
    "cluster",
    "high_quality",
)
"""Columns of a shard's index file (int64): byte ranges inside the tar, then facts that samplers need."""


@dataclass(frozen=True)
class Graph:
    """A residue graph in compressed sparse rows: neighbours of residue i are `index[indptr[i]:indptr[i + 1]]`.

    Radius graphs are symmetric and hold both directions; kNN graphs hold each residue's K nearest, nearest first.
    """

    indptr: np.ndarray
    """uint32 [N + 1]."""
    index: np.ndarray
    """uint16 or uint32 [E]."""

    def edges(self) -> np.ndarray:
        """int64 [2, E]: row 0 the neighbour (source), row 1 the residue whose neighbour it is (target)."""
        target = np.repeat(np.arange(len(self.indptr) - 1), np.diff(self.indptr.astype(np.int64)))
        return np.stack([self.index.astype(np.int64), target])


@dataclass(frozen=True)
class Sample:
    """One chain of N residues as stored in a shard."""

    key: str
    sequence: str
    threedi: str
    """N letters of THREEDI_STATES; `D` where `threedi_valid` is false."""
    coordinates: np.ndarray
    """int32 [N, 5, 3], milli-Angstrom, MISSING_COORDINATE where an atom is missing."""
    bfactor: np.ndarray
    """float32 [N]; NaN where unknown."""
    valid: np.ndarray
    """bool [N]: backbone N, CA, C complete."""
    threedi_valid: np.ndarray
    """bool [N]: the 3Di state was computed, not filled in."""
    graphs: Mapping[str, Graph]
    facts: dict[str, Any]
    """Fields of ExperimentFacts, notes and quality figures."""
    cluster: int
    """Sequence cluster, numbered over the whole build."""
    high_quality: bool
    reliable: np.ndarray | None = None
    """bool [N]: the position can be trusted (pLDDT or B-factor); None in shards of schema 1.0."""
    dihedrals: np.ndarray | None = None
    """int16 [N, 3]: phi, psi, omega in units of pi / 32767, MISSING_INT16 where undefined; None where not stored."""
    frames: np.ndarray | None = None
    """int16 [N, 4]: backbone frames as unit quaternions (w, x, y, z) times 32767, w >= 0; MISSING_INT16 where the
    backbone is incomplete; None where not stored."""

    def __len__(self) -> int:
        return len(self.sequence)

    def angstrom(self) -> np.ndarray:
        """float64 [N, 5, 3], NaN where missing."""
        missing = self.coordinates == MISSING_COORDINATE
        return np.where(missing, np.nan, self.coordinates / MILLI_ANGSTROM)

    def threedi_codes(self) -> np.ndarray:
        """int8 [N]: state index, -1 where not valid."""
        return threedi_codes(self.threedi, self.threedi_valid)

    def threedi_states(self) -> np.ndarray:
        """int64 [N]: state index, -1 where not valid."""
        return self.threedi_codes().astype(np.int64)


def threedi_codes(letters: str, valid: np.ndarray) -> np.ndarray:
    """int8 [N]: state index of each 3Di letter, -1 where not valid (bool [N])."""
    codes = np.frombuffer(letters.encode("ascii").translate(_CODE_OF_BYTE), dtype=np.int8)
    # 0 - 1 sets every bit, which is -1; 1 - 1 changes none.
    return codes | (valid.view(np.int8) - np.int8(1))


_NO_CODE = 0xFF
_CODE_OF_BYTE = bytes(i if (i := THREEDI_STATES.find(chr(byte))) >= 0 else _NO_CODE for byte in range(256))
"""3Di letter to state number; any other byte becomes -1 as int8."""


def to_milli_angstrom(coordinates: np.ndarray) -> np.ndarray:
    """int32 milli-Angstrom of float Angstrom; NaN becomes MISSING_COORDINATE."""
    missing = ~np.isfinite(coordinates)
    rounded = np.rint(np.where(missing, 0.0, coordinates) * MILLI_ANGSTROM)
    return np.where(missing, MISSING_COORDINATE, rounded).astype(np.int32)


def encode_arrays(sample: Sample) -> bytes:
    """The `<key>.safetensors` member."""
    arrays = {
        "coordinates": sample.coordinates,
        "bfactor": sample.bfactor.astype(np.float32),
        "valid": sample.valid.astype(np.uint8),
        "threedi_valid": sample.threedi_valid.astype(np.uint8),
    }
    if sample.reliable is not None:
        arrays["reliable"] = sample.reliable.astype(np.uint8)
    for name in ("dihedrals", "frames"):
        if (array := getattr(sample, name)) is not None:
            arrays[name] = array.astype(np.int16)
    for name, graph in sample.graphs.items():
        arrays[f"graph.{name}.indptr"] = graph.indptr.astype(np.uint32)
        arrays[f"graph.{name}.index"] = graph.index.astype(np.uint16 if len(sample) <= 0xFFFF else np.uint32)
    return safetensors.numpy.save(arrays)


def encode_facts(sample: Sample) -> bytes:
    """The `<key>.json` member: one line of JSON with sorted keys."""
    content = {
        "key": sample.key,
        "sequence": sample.sequence,
        "threedi": sample.threedi,
        "cluster": sample.cluster,
        "high_quality": sample.high_quality,
        "facts": sample.facts,
    }
    return _dump_facts(content)


def place_facts(facts: bytes, cluster: int, high_quality: bool) -> bytes:
    """The `<key>.json` member with its cluster and quality flag set, which are known only after all chains are."""
    return _dump_facts({**json.loads(facts), "cluster": cluster, "high_quality": high_quality})


def _dump_facts(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def decode_sample(facts: bytes, arrays: bytes) -> Sample:
    """The sample of its two members.

    Raises:
        ValueError: the members do not fit together (lengths differ), which only damage can cause.
    """
    content = json.loads(facts)
    tensors = safetensors.numpy.load(arrays)
    names = [name.split(".")[1] for name in tensors if name.startswith("graph.") and name.endswith(".indptr")]
    sample = Sample(
        key=content["key"],
        sequence=content["sequence"],
        threedi=content["threedi"],
        coordinates=tensors["coordinates"],
        bfactor=tensors["bfactor"],
        valid=tensors["valid"].astype(bool),
        threedi_valid=tensors["threedi_valid"].astype(bool),
        graphs={name: Graph(tensors[f"graph.{name}.indptr"], tensors[f"graph.{name}.index"]) for name in sorted(names)},
        facts=content["facts"],
        cluster=content["cluster"],
        high_quality=content["high_quality"],
        reliable=tensors["reliable"].astype(bool) if "reliable" in tensors else None,
        dihedrals=tensors.get("dihedrals"),
        frames=tensors.get("frames"),
    )
    n = len(sample.sequence)
    optional = ((sample.reliable, (n,)), (sample.dihedrals, (n, 3)), (sample.frames, (n, 4)))
    fits = (
        len(sample.threedi) == n
        and sample.coordinates.shape == (n, len(ATOM_NAMES), 3)
        and sample.bfactor.shape == sample.valid.shape == sample.threedi_valid.shape == (n,)
        and all(array is None or array.shape == shape for array, shape in optional)
    )
    if not fits:
        raise ValueError(f"sample {sample.key}: sequence, 3Di and arrays differ in length")
    return sample
