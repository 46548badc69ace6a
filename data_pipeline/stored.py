"""Samples decoded on first use: arrays are read-only views of the bytes, JSON is parsed when it is asked for."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from data_pipeline.layout import DECODING_ERRORS, Arrays, Buffer, offset, read_arrays, u32
from data_pipeline.schema import Graph, Sample

Damaged = Callable[[str], Exception]
Place = tuple[Arrays, Buffer, int, int, bool, Damaged]
"""Where a sample lies: its arrays; buffer, first byte and end of its JSON; whether that `ends_plainly`; what makes the
error when it does not decode."""
_ndarray = np.ndarray
_FACTS = ("key", "cluster", "high_quality", "facts")
_BETWEEN, _BEFORE, _END = b'","threedi":"', b'"sequence":"', b'"}'
_QUOTES = 8
"""In the last two key-value pairs of the JSON."""
_BEHIND_SEQUENCE = len(_BETWEEN) + len(_END)
"""Bytes behind the sequence, beside the 3Di letters."""


class _Lazy:
    """An attribute computed of a sample's place on first use and kept."""

    def __init__(self, make: Callable[[Place], Any]) -> None:
        self._make = make

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, sample: "StoredSample", owner: type | None = None) -> Any:
        try:
            value = self._make(sample._place)
        except DECODING_ERRORS as error:
            raise sample._place[5](f"does not decode: {error}") from None
        sample.__dict__[self._name] = value
        return value


class _Array:
    """An array of one row for each residue, viewed on first use; None where the sample has none of the name."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, sample: "StoredSample", owner: type | None = None) -> np.ndarray | None:
        arrays = sample._place[0]
        buffer, start, end, residues, layout = arrays
        entry = layout.entries.get(self._name)
        if entry is None:
            return None
        dtype, row, _, from_end, at, per_residue, before = entry
        if before:
            at = offset(arrays, entry)
        else:
            at += (end if from_end else start) + per_residue * residues
        value = _ndarray((residues, *row) if row else residues, dtype, buffer, at)
        sample.__dict__[self._name] = value
        return value


class _Fact:
    """A value of the JSON member, which is parsed once for all of them."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, sample: "StoredSample", owner: type | None = None) -> Any:
        try:
            content = _parse_facts(sample._place)
            values = {name: content[name] for name in _FACTS}
        except DECODING_ERRORS as error:
            raise sample._place[5](f"does not decode: {error}") from None
        sample.__dict__.update(values)
        return values[self._name]


class StoredSample(Sample):
    """A sample that reads its members when its fields are used; what it gives out is read-only.

    A field whose bytes do not decode raises what its place makes of the reason. Pickled, or copied by
    `dataclasses.replace`, it becomes a plain `Sample`.
    """

    _place: Place

    def __new__(cls, *args: Any, **kwargs: Any) -> Sample:  # type: ignore[misc]
        return Sample(*args, **kwargs)

    key = _Fact()
    cluster = _Fact()
    high_quality = _Fact()
    facts = _Fact()
    sequence = _Lazy(lambda place: _letters(place, "sequence", _BEHIND_SEQUENCE + place[0][3]))
    threedi = _Lazy(lambda place: _letters(place, "threedi", len(_END)))
    graphs = _Lazy(lambda place: StoredGraphs(place[0]))
    coordinates = _Array()
    bfactor = _Array()
    valid = _Array()
    threedi_valid = _Array()
    reliable = _Array()
    dihedrals = _Array()
    frames = _Array()

    def __reduce__(self) -> tuple[Any, ...]:
        return Sample, tuple(getattr(self, field.name) for field in fields(Sample))


class StoredGraphs(Mapping[str, Graph]):
    """The graphs of a stored sample by name, viewed when asked for."""

    __slots__ = ("_arrays",)

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays

    def __getitem__(self, name: str) -> Graph:
        arrays = self._arrays
        indptr, index = arrays[4].graphs[name]
        first = offset(arrays, indptr)
        ends = _ndarray(arrays[3] + 1, indptr.dtype, arrays[0], first)
        (edges,) = u32(arrays[0], first + 4 * arrays[3])
        return Graph(ends, _ndarray(edges, index.dtype, arrays[0], offset(arrays, index)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays[4].graphs)

    def __len__(self) -> int:
        return len(self._arrays[4].graphs)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self.items()),)


def own_copy(place: Place) -> Place:
    """The same place in a copy of the sample's bytes, which keeps no map of its shard open."""
    (buffer, first, end, residues, layout), _, facts, facts_end, plain, damaged = place
    # Whole blocks of the tar, so that arrays stay as aligned as they were.
    begin = min(first, facts) // 512 * 512
    copy = bytes(buffer[begin : max(end, facts_end)])
    arrays = (copy, first - begin, end - begin, residues, layout)
    return arrays, copy, facts - begin, facts_end - begin, plain, damaged


def stored_sample(place: Place) -> Sample:
    """The sample at a place that was checked; nothing is read yet."""
    sample = object.__new__(StoredSample)
    sample.__dict__["_place"] = place
    return sample


def sample_of_members(facts: bytes, arrays: bytes, damaged: Damaged = ValueError) -> Sample:
    """The sample of the two members that a tar reader hands out; headers are checked, fields are decoded on use.

    Raises:
        one of DECODING_ERRORS: the arrays are not those of one chain.
    """
    found = read_arrays(arrays, 0, len(arrays))
    plain = ends_plainly(facts, 0, len(facts), found[3])
    return stored_sample((found, facts, 0, len(facts), plain, damaged))


def ends_plainly(buffer: Buffer, at: int, end: int, residues: int) -> bool:
    """Whether a JSON member ends `"sequence":"<N letters>","threedi":"<N letters>"}`, as sorted keys make it.

    With no other quote and no backslash in this text, these are, in any valid JSON, the values of the outermost object:
    only one brace closes behind them. So both strings can be cut out without parsing the rest.
    """
    first = end - len(_END) - len(_BETWEEN) - len(_BEFORE) - 2 * residues
    if first <= at:
        return False
    text = buffer[first:end]
    between = len(_BEFORE) + residues
    return (
        text.startswith(_BEFORE)
        and text.startswith(_BETWEEN, between)
        and text.endswith(_END)
        and text.count(b'"') == _QUOTES
        and b"\\" not in text
    )


def _letters(place: Place, name: str, behind: int) -> str:
    """The sequence or the 3Di letters, cut `behind` bytes before the end of the JSON."""
    arrays, buffer, _, end, plain, _ = place
    if not plain:
        return _parse_facts(place)[name]
    end -= behind
    return str(buffer[end - arrays[3] : end], "ascii")


def _parse_facts(place: Place) -> dict[str, Any]:
    arrays, buffer, at, end, _, _ = place
    content = json.loads(buffer[at:end])
    for name in ("sequence", "threedi"):
        if len(content[name]) != arrays[3]:
            raise ValueError(f"{name} of {len(content[name])} letters, coordinates of {arrays[3]} residues")
    return content
