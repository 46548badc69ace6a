"""Sequence clusters of benchmark proteins: what is resampled together, and what validation is taken by."""

from collections.abc import Sequence

import numpy as np

from data_pipeline.splits.components import number_by_appearance
from data_pipeline.splits.kmers import cluster_by_kmers
from data_pipeline.structure.chain import UNKNOWN_RESIDUE

SEED_LETTERS = 5
MIN_LENGTH_RATIO = 0.8
"""As in a build: an alignment that covers 0.8 of both sequences needs lengths of that ratio."""

LONG, FIRST, LAST = 100, 25, 15
"""Of sequences longer than LONG the first and last residues are not looked at: purification tags and linkers stand
there in chains of the PDB, and link what is not related. On the 3,416 chains of DeepFRI's GO test set they joined 917
into one cluster; without the ends the largest has 102, WD repeats and the like."""


def sequence_clusters(sequences: Sequence[str]) -> np.ndarray:
    """int64 [S]: clusters of sequences whose cores are similar beyond chance, identical ones always together.

    Numbered in the order of appearance; which sequences share a cluster does not depend on the order.
    """
    distinct, number = np.unique(np.array([_core(s) for s in sequences], dtype=object), return_inverse=True)
    if not len(distinct):
        return np.empty(0, dtype=np.int64)
    return number_by_appearance(cluster_by_kmers(distinct.tolist(), SEED_LETTERS, MIN_LENGTH_RATIO)[number])


def pair_clusters(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """int64 [S]: clusters of pairs of proteins whose own clusters (int64 [S] each) are the same two, in any order."""
    both = np.stack([np.minimum(first, second), np.maximum(first, second)])
    _, number = np.unique(both, axis=1, return_inverse=True)
    return number_by_appearance(np.ravel(number)) if number.size else np.empty(0, dtype=np.int64)


def record_clusters(sequences: Sequence[tuple[str, ...]]) -> np.ndarray:
    """int64 [S]: clusters of examples of one sequence each, or of two."""
    width = len(sequences[0]) if len(sequences) else 1
    assert all(len(of_example) == width for of_example in sequences), "all examples have as many sequences"
    assert width in (1, 2), width
    labels = sequence_clusters([sequence for of_example in sequences for sequence in of_example]).reshape(-1, width)
    return labels[:, 0] if width == 1 else pair_clusters(labels[:, 0], labels[:, 1])


def _core(sequence: str) -> str:
    """Of the same length, with residues masked at the ends of a long sequence."""
    if len(sequence) <= LONG:
        return sequence
    return UNKNOWN_RESIDUE * FIRST + sequence[FIRST:-LAST] + UNKNOWN_RESIDUE * LAST
