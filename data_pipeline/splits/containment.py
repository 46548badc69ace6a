"""Identical sequences and sequences that lie within one another, found without exception and without alignment."""

from collections.abc import Sequence

import numpy as np

from data_pipeline.splits.kmers import Letters, encode

ANCHOR = 8
"""Residues of the window by which a sequence is looked up; shorter ones are only compared as a whole."""
_BASE = np.uint64(22)


class ContainmentIndex:
    """Looks up which of some target sequences equal, contain or lie within others."""

    def __init__(self, targets: Sequence[str]) -> None:
        self._targets = targets
        self._equal = {sequence: number for number, sequence in enumerate(targets)}
        letters = encode(targets)
        self._windows = _sorted(*_windows(letters))
        self._anchors = _sorted(*_anchors(letters))

    def pairs(self, queries: Sequence[str]) -> list[tuple[int, int]]:
        """(query, target) where one of the two is the other or a part of it, each pair once, in order.

        A target that stands several times is named once, by its last number.
        """
        letters = encode(queries)
        found = {(q, self._equal[sequence]) for q, sequence in enumerate(queries) if sequence in self._equal}
        for q, t, into_query, into_target in _meeting(_windows(letters), self._anchors):
            start = into_query - into_target
            if start >= 0 and queries[q].startswith(self._targets[t], start):
                found.add((q, t))
        for q, t, into_query, into_target in _meeting(_anchors(letters), self._windows):
            start = into_target - into_query
            if start >= 0 and self._targets[t].startswith(queries[q], start):
                found.add((q, t))
        return sorted((q, self._equal[self._targets[t]]) for q, t in found)


def _windows(letters: Letters) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Code (uint64), sequence and place in it of every window of ANCHOR residues."""
    number = max(len(letters.codes) - ANCHOR + 1, 0)
    codes = np.zeros(number, dtype=np.uint64)
    for offset in range(ANCHOR):
        codes = codes * _BASE + letters.codes[offset : offset + number]
    places = np.arange(number)
    owners = np.maximum(letters.owner(places), 0)
    into = places - letters.starts[owners] if len(letters.starts) else places
    whole = (into >= 0) & (into <= letters.lengths[owners] - ANCHOR) if len(letters.starts) else np.zeros(number, bool)
    return codes[whole], owners[whole], into[whole]


def _anchors(letters: Letters) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every sequence the window in its middle: the ends carry tags that many unrelated chains share."""
    codes, owners, into = _windows(letters)
    middle = into == (letters.lengths[owners] - ANCHOR) // 2
    return codes[middle], owners[middle], into[middle]


def _sorted(codes: np.ndarray, owners: np.ndarray, into: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    order = np.argsort(codes, kind="stable")
    return codes[order], owners[order], into[order]


def _meeting(
    first: tuple[np.ndarray, np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> list[tuple[int, int, int, int]]:
    """Sequence of `first`, sequence of `second`, and the places of the windows of equal code; `second` is sorted."""
    left = np.searchsorted(second[0], first[0], side="left")
    number = np.searchsorted(second[0], first[0], side="right") - left
    rows = np.repeat(np.arange(len(left)), number)
    nth = np.arange(len(rows)) - np.repeat(np.cumsum(number) - number, number)
    other = left[rows] + nth
    columns = (first[1][rows], second[1][other], first[2][rows], second[2][other])
    return list(zip(*(column.tolist() for column in columns), strict=True))
