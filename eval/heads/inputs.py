"""Rows that heads are fitted on: one for a protein or a pair, or one for each labelled residue."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from eval.datasets.records import IGNORED, Record, Target
from eval.features import Features

RESIDUE_TARGETS: tuple[Target, ...] = ("residue_class", "residue_value")
RECORDS_AT_A_TIME = 64
"""Whose residue states are held together while a test split is scored."""


@dataclass(frozen=True)
class Rows:
    """Features and labels of examples, end to end."""

    features: Tensor
    """float32 [R, F]."""
    labels: Tensor
    """int64 [R] classes, bool [R, K] sets of labels, or float64 [R] numbers."""
    records: tuple[Record, ...]
    """Those that have a row."""
    counts: np.ndarray
    """int64 [S]: rows of each; residues without a label have none."""


def labelled_residues(record: Record) -> np.ndarray:
    """int64: numbers of the residues that have a label."""
    label = np.asarray(record.label)
    return np.flatnonzero(label != IGNORED) if label.dtype.kind == "i" else np.flatnonzero(np.isfinite(label))


def within_residues(records: Sequence[Record], most: int, seed: int) -> tuple[Record, ...]:
    """Whole proteins, drawn by seed, until they hold `most` labelled residues; in the order given.

    Whole, so that the others need not be embedded. At least one protein; the last may exceed the limit.
    """
    chosen: list[int] = []
    total = 0
    for i in np.random.default_rng(seed).permutation(len(records)).tolist():
        count = len(labelled_residues(records[i]))
        if total >= most:
            break
        if count:
            chosen.append(i)
            total += count
    return tuple(records[i] for i in sorted(chosen))


def pair_features(first: Tensor, second: Tensor) -> Tensor:
    """[|a - b|, a * b, a + b] of features [R, D] each, so that the order of two proteins does not matter: [R, 3 D]."""
    return torch.cat([(first - second).abs(), first * second, first + second], dim=-1)


@dataclass(frozen=True)
class Unit:
    """Centred by the training split's mean and scaled to length 1, as PST reports its representation."""

    mean: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """float32 [R, D] -> [R, D]."""
        return functional.normalize(features - self.mean, dim=-1)


def unit_of(features: Features, records: Sequence[Record]) -> Unit:
    """From every sequence of the training records once."""
    return Unit(features.means(distinct_sequences(records)).mean(dim=0))


def distinct_sequences(records: Sequence[Record]) -> list[str]:
    """Each once, in order of first appearance."""
    return list(dict.fromkeys(sequence for record in records for sequence in record.sequences))


def rows_of(
    features: Features, records: Sequence[Record], target: Target, num_classes: int, unit: Unit | None = None
) -> Rows:
    """Rows of all records. `unit` brings the states of proteins to length 1 first; residues are left as they are."""
    counts = np.ones(len(records), dtype=np.int64)
    if target in RESIDUE_TARGETS:
        at = [labelled_residues(record) for record in records]
        records = [record for record, found in zip(records, at, strict=True) if len(found)]
        at = [found for found in at if len(found)]
        x = features.residue_rows([record.sequences[0] for record in records], at)
        counts = np.array([len(found) for found in at], dtype=np.int64)
    elif target == "pair_class":
        sides = [features.means([record.sequences[side] for record in records]) for side in (0, 1)]
        x = pair_features(*(unit(side) if unit else side for side in sides))
    else:
        x = features.means([record.sequences[0] for record in records])
        x = unit(x) if unit else x
    return Rows(x, labels_of(records, target, num_classes), tuple(records), counts)


def labels_of(records: Sequence[Record], target: Target, num_classes: int) -> Tensor:
    """As in `Rows.labels`."""
    if target == "labels":
        hot = torch.zeros(len(records), num_classes, dtype=torch.bool)
        for row, record in zip(hot, records, strict=True):
            row[torch.from_numpy(np.asarray(record.label, dtype=np.int64))] = True
        return hot
    if target in RESIDUE_TARGETS:
        parts = [np.asarray(record.label)[labelled_residues(record)] for record in records]
        joined = np.concatenate(parts) if parts else np.empty(0)
        return torch.from_numpy(joined.astype(np.int64 if target == "residue_class" else np.float64))
    kind = torch.float64 if target == "value" else torch.int64
    return torch.tensor([record.label for record in records], dtype=kind)


def in_parts(records: Sequence[Record]) -> Iterator[Sequence[Record]]:
    """RECORDS_AT_A_TIME of them after each other."""
    for start in range(0, len(records), RECORDS_AT_A_TIME):
        yield records[start : start + RECORDS_AT_A_TIME]
