"""Benchmark datasets as tasks see them: labelled sequences in splits that never mix."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np

Target = Literal["class", "labels", "value", "residue_class", "residue_value", "pair_class"]
"""One class, a set of labels or a number for each protein; a class or a number for each residue; a class for a pair."""
SPLITS = ("train", "validation", "test")
IGNORED = -1
"""Class of a residue without a label."""


@dataclass(frozen=True)
class Record:
    """One example."""

    key: str
    """Unique in its dataset."""
    sequences: tuple[str, ...]
    """One sequence; two for a pair. Letters of AMINO_ACIDS and X."""
    label: int | float | np.ndarray
    """By the dataset's target: class; or float64 number; or int64 [M] label numbers, ascending; or int64 [N] class
    (IGNORED where there is none) or float64 [N] number (NaN where there is none) of each residue."""
    cluster: int = -1
    """Sequence cluster, for intervals; -1 until assigned."""


@dataclass(frozen=True)
class Dataset:
    """A benchmark's examples, ready to use."""

    name: str
    source: str
    """Where it came from and in whose layout, in words."""
    sha256: str
    """Of the files read, and of how examples were chosen."""
    target: Target
    classes: tuple[str, ...]
    """Names of classes or labels; empty for numbers."""
    splits: Mapping[str, tuple[Record, ...]]
    """By `SPLITS`; every one is there, `validation` may have been taken from `train` by cluster."""
    notes: tuple[str, ...] = ()
    """How the splits differ from the publisher's, if they do; what was left out and how many."""
    groups: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Named parts of the test split, bool [number of test records], on which metrics are reported too."""

    def __post_init__(self) -> None:
        assert set(self.splits) == set(SPLITS), (self.name, sorted(self.splits))

    def with_splits(self, **splits: tuple[Record, ...]) -> "Dataset":
        """The same with some splits replaced."""
        return replace(self, splits={**self.splits, **splits})


class Files(Protocol):
    """Files of one place, be it a folder, an archive or a repository of the hub; paths are relative, with `/`."""

    def has(self, path: str) -> bool: ...

    def names(self, prefix: str = "") -> list[str]:
        """All paths that begin with `prefix`, sorted."""

    def read(self, path: str) -> bytes:
        """Content of a file; what is named `.gz` or lies in `name.zip/member` comes decompressed.

        Raises:
            UserError: no such file, or a damaged one.
        """


@dataclass(frozen=True)
class Layout:
    """One publisher's arrangement of a dataset's files."""

    name: str
    """E.g. `S-PLM Fold_data` or `hf://datasets/proteinea/fluorescence`."""
    prefix: str
    """Where its files lie under `benchmarks.root`; a source of its own is searched from its top."""
    needs: tuple[str, ...]
    """Files, relative to `prefix`, without which it is not this layout."""
    read: Callable[[Files, str], Dataset]
    """From files and prefix; clusters are not yet assigned, `sha256` covers the files read."""
