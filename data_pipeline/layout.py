"""The checked safetensors member of a sample, and where its arrays lie.

The offsets of a sample's arrays are a function of its number of residues and edges as long as names, types and order
of the arrays stay the same. A `Layout` is that function; it is made from one checked header and serves every sample
whose checked header has the same signature.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from math import prod
from struct import Struct
from struct import error as struct_error
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.structure.chain import ATOM_NAMES

Buffer = Any
"""Whatever numpy can view and slicing turns into bytes: `bytes`, or a memory map."""
DECODING_ERRORS = (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError, struct_error)
"""What decoding raises on damaged members."""
MAX_HEADER_BYTES = 1 << 24
u32 = Struct("<I").unpack_from
header_size = Struct("<Q").unpack_from
_DTYPES = {
    name: np.dtype(code)
    for name, code in {
        "BOOL": "?",
        "U8": "u1",
        "I8": "i1",
        "I16": "<i2",
        "U16": "<u2",
        "F16": "<f2",
        "BF16": "V2",
        "I32": "<i4",
        "U32": "<u4",
        "F32": "<f4",
        "I64": "<i8",
        "U64": "<u8",
        "F64": "<f8",
    }.items()
}
_REQUIRED = frozenset(("coordinates", "bfactor", "valid", "threedi_valid"))
_TO_BOOL = frozenset(("valid", "threedi_valid", "reliable"))


class Part(NamedTuple):
    """One array as its header tells: the signature of a sample is the tuple of its parts in file order."""

    name: str
    dtype: str
    row: tuple[int, ...]
    extra: int
    """Rows beyond one for each residue."""
    graph: str | None
    """The graph whose number of edges is the number of rows instead."""


_KNOWN = {
    part.name: part
    for part in (
        Part("coordinates", "I32", (len(ATOM_NAMES), 3), 0, None),
        Part("bfactor", "F32", (), 0, None),
        Part("valid", "U8", (), 0, None),
        Part("threedi_valid", "U8", (), 0, None),
        Part("reliable", "U8", (), 0, None),
        Part("dihedrals", "I16", (3,), 0, None),
        Part("frames", "I16", (4,), 0, None),
    )
}


class Entry(NamedTuple):
    """One array lies at `(end if from_end else start) + at + per_residue * residues`, plus `before`."""

    dtype: np.dtype
    row: tuple[int, ...]
    extra: int
    from_end: bool
    at: int
    per_residue: int
    before: tuple[tuple[str, int], ...]
    """Graphs whose index arrays lie in between, and their bytes per edge."""


class Layout(NamedTuple):
    """Where the arrays of samples of one signature lie."""

    signature: tuple[Part, ...]
    """Empty where the layout is that of a single sample."""
    entries: Mapping[str, Entry]
    graphs: Mapping[str, tuple[Entry, Entry]]
    """`indptr` and `index` of each graph, by name in order."""


Arrays = tuple[Buffer, int, int, int, Layout]
"""The safetensors member of one sample: buffer, first byte behind the header, end, number of residues, layout. A plain
tuple, because one is made for every sample that is read."""


def read_arrays(buffer: Buffer, at: int, length: int) -> Arrays:
    """Check a safetensors member: types, shapes, no gap or overlap, as many edges as each graph tells.

    Raises:
        one of DECODING_ERRORS: not safetensors, or not the arrays of one chain.
    """
    (size,) = header_size(buffer, at)
    if size > min(length - 8, MAX_HEADER_BYTES):
        raise ValueError(f"its header of {size} bytes does not fit into {length}")
    start = at + 8 + size
    header = json.loads(buffer[at + 8 : start])
    header.pop("__metadata__", None)
    if not header.keys() >= _REQUIRED:
        raise ValueError(f"lacks {', '.join(sorted(_REQUIRED - header.keys()))}")
    residues = header["coordinates"]["shape"][0]
    if type(residues) is not int or residues < 0:
        raise ValueError(f"coordinates of {residues} residues")
    spans = sorted([*entry["data_offsets"], name, entry] for name, entry in header.items())
    end, parts = 0, []
    for first, last, name, entry in spans:
        dtype, shape = entry["dtype"], entry["shape"]
        part = _part(name, dtype, shape, residues)
        if first != end or last - first != _DTYPES[dtype].itemsize * prod(shape):
            raise ValueError(f"{name}: bytes {first} to {last} do not hold shape {shape}")
        end = last
        parts.append(part)
    if end != length - 8 - size:
        raise ValueError(f"arrays of {end} bytes in a member of {length - 8 - size}")
    for part in parts:
        if part.graph is not None:
            (edges,) = u32(buffer, start + header[f"graph.{part.graph}.indptr"]["data_offsets"][1] - 4)
            if header[part.name]["shape"] != [edges]:
                raise ValueError(f"graph {part.graph}: {header[part.name]['shape']} neighbours, {edges} expected")
    sequel = [part.name.endswith(".index") for part in parts if part.name.startswith("graph.")]
    if sequel == sorted(sequel):
        layout = _layout(tuple(parts))
    else:
        # Neighbours lie between index pointers, as with more than 65,535 residues: no function of few numbers.
        places = {
            part.name: Entry(_dtype(part), part.row, part.extra, False, span[0], 0, ())
            for part, span in zip(parts, spans, strict=True)
        }
        layout = Layout((), places, _graphs(places))
    return buffer, start, at + length, residues, layout


def _part(name: str, dtype: str, shape: list[int], residues: int) -> Part:
    known = _KNOWN.get(name)
    if known is not None:
        part, fits = known, shape == [residues, *known.row] and dtype == known.dtype
    elif name.startswith("graph.") and name.endswith(".indptr"):
        part, fits = Part(name, "U32", (), 1, None), shape == [residues + 1] and dtype == "U32"
    elif name.startswith("graph.") and name.endswith(".index"):
        part, fits = Part(name, dtype, (), 0, name[6:-6]), len(shape) == 1 and dtype in ("U16", "U32")
    else:
        # An array of a later 1.x: nothing here reads it, and its size need not follow from the number of residues.
        rows, *row = shape or [1]
        part, fits = Part(name, dtype, tuple(row), rows - residues, None), dtype in _DTYPES
    if not fits:
        raise ValueError(f"{name}: type {dtype} and shape {shape} do not fit {residues} residues")
    return part


@lru_cache(maxsize=256)
def _layout(parts: tuple[Part, ...]) -> Layout:
    """Offsets from whichever end has fewer graphs in between."""
    entries: dict[str, Entry] = {}
    for number, part in enumerate(parts):
        before, after = _span(parts[:number]), _span(parts[number:])
        from_end = len(after[2]) < len(before[2])
        sign, (at, per_residue, graphs) = (-1, after) if from_end else (1, before)
        entries[part.name] = Entry(
            _dtype(part),
            part.row,
            part.extra,
            from_end,
            sign * at,
            sign * per_residue,
            tuple((graph, sign * size) for graph, size in graphs),
        )
    return Layout(parts, entries, _graphs(entries))


def _dtype(part: Part) -> np.dtype:
    return np.dtype(bool) if part.name in _TO_BOOL else _DTYPES[part.dtype]


def _graphs(entries: Mapping[str, Entry]) -> dict[str, tuple[Entry, Entry]]:
    names = sorted(name[6:-6] for name in entries if name.startswith("graph.") and name.endswith(".index"))
    return {name: (entries[f"graph.{name}.indptr"], entries[f"graph.{name}.index"]) for name in names}


def _span(parts: tuple[Part, ...]) -> tuple[int, int, list[tuple[str, int]]]:
    """Bytes of some arrays: a constant, per residue, and per edge of graphs."""
    constant, per_residue, graphs = 0, 0, []
    for part in parts:
        size = _DTYPES[part.dtype].itemsize * prod(part.row)
        if part.graph is not None:
            graphs.append((part.graph, size))
        else:
            constant += size * part.extra
            per_residue += size
    return constant, per_residue, graphs


def offset(arrays: Arrays, entry: Entry) -> int:
    _, start, end, residues, _ = arrays
    _, _, _, from_end, at, per_residue, before = entry
    at += (end if from_end else start) + per_residue * residues
    for graph, size in before:
        at += size * _num_edges(arrays, graph)
    return at


def _num_edges(arrays: Arrays, graph: str) -> int:
    """The last value of `graph.<name>.indptr`."""
    return u32(arrays[0], offset(arrays, arrays[4].entries[f"graph.{graph}.indptr"]) + 4 * arrays[3])[0]
