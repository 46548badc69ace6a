"""Sequence clusters by shared k-mers, and splits that no cluster crosses."""

import hashlib
from collections.abc import Sequence

import numpy as np
import scipy.sparse
from scipy.sparse.csgraph import connected_components

from configs.build import SplitConfig
from data_pipeline.structure.chain import AMINO_ACIDS

MAX_PARTNERS = 256
"""A k-mer found in more chains links every chain only with the longest so many: cost stays linear in the chains."""
ROWS_PER_BLOCK = 1024
MIN_CLUSTERS_TO_SPLIT = 3

_CODE_OF_BYTE = np.full(256, -1, dtype=np.int64)
_CODE_OF_BYTE[np.frombuffer(AMINO_ACIDS.encode(), dtype=np.uint8)] = np.arange(len(AMINO_ACIDS))


def kmer_codes(sequence: str, kmer: int) -> np.ndarray:
    """int64, sorted distinct codes of the k-mers made of standard residues only."""
    letters = _CODE_OF_BYTE[np.frombuffer(sequence.encode(), dtype=np.uint8)]
    if len(letters) < kmer:
        return np.empty(0, dtype=np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(letters, kmer)
    weights = len(AMINO_ACIDS) ** np.arange(kmer, dtype=np.int64)
    return np.unique((windows @ weights)[(windows >= 0).all(axis=1)])


def cluster_sequences(sequences: Sequence[str], kmer: int, min_shared: float) -> np.ndarray:
    """int64 [S]: cluster of each sequence, numbered by first appearance.

    Two chains are linked when they share at least `min_shared` of the distinct k-mers of the one that has fewer;
    clusters are the connected components, so that no linked pair is ever parted. Identical sequences always share one.
    """
    if not sequences:
        return np.empty(0, dtype=np.int64)
    distinct, member = np.unique(np.array(sequences, dtype=object), return_inverse=True)
    codes = [kmer_codes(sequence, kmer) for sequence in distinct]
    sizes = np.array([len(c) for c in codes], dtype=np.int64)
    rows = np.repeat(np.arange(len(codes)), sizes)
    _, columns = np.unique(np.concatenate([*codes, np.empty(0, np.int64)]), return_inverse=True)
    links = _links(rows, columns, sizes, min_shared)
    _, labels = connected_components(links, directed=False)
    return _renumber(labels[member])


def _links(rows: np.ndarray, columns: np.ndarray, sizes: np.ndarray, min_shared: float) -> scipy.sparse.csr_matrix:
    """Sparse [S, S] of linked pairs, from (chain, k-mer) pairs and the number of k-mers of each chain."""
    shape = (len(sizes), int(columns.max()) + 1 if len(columns) else 1)
    chains = _incidence(rows, columns, shape)
    centres = _centres(rows, columns, sizes)
    partners = _incidence(rows[centres], columns[centres], shape).T.tocsr()
    blocks = []
    for start in range(0, shape[0], ROWS_PER_BLOCK):
        shared = (chains[start : start + ROWS_PER_BLOCK] @ partners).tocoo()
        # Rounded before the comparison: 0.1 * 30 must ask for 3 shared k-mers, not for 4.
        needed = np.ceil(np.round(min_shared * np.minimum(sizes[shared.row + start], sizes[shared.col]), 9))
        keep = shared.data >= np.maximum(needed, 1)
        block = np.stack([shared.row[keep] + start, shared.col[keep]])
        blocks.append(block)
    first, second = np.concatenate(blocks, axis=1)
    return scipy.sparse.csr_matrix((np.ones(len(first), dtype=np.int8), (first, second)), shape=(shape[0], shape[0]))


def _incidence(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> scipy.sparse.csr_matrix:
    return scipy.sparse.csr_matrix((np.ones(len(rows), dtype=np.int32), (rows, columns)), shape=shape)


def _centres(rows: np.ndarray, columns: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """bool per (chain, k-mer): the chain is one of the MAX_PARTNERS with most k-mers among those with this k-mer."""
    order = np.lexsort((rows, -sizes[rows], columns))
    ordered = columns[order]
    rank = np.arange(len(order)) - np.searchsorted(ordered, ordered, side="left")
    centres = np.empty(len(order), dtype=bool)
    centres[order] = rank < MAX_PARTNERS
    return centres


def _renumber(labels: np.ndarray) -> np.ndarray:
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    number = np.empty(len(first), dtype=np.int64)
    number[np.argsort(first, kind="stable")] = np.arange(len(first))
    return number[inverse]


def split_of_clusters(names: Sequence[str], sizes: np.ndarray, config: SplitConfig) -> list[str]:
    """Split (`train`, `validation` or `test`) of each cluster.

    Args:
        names: a lasting name of each cluster (the key of its first chain); with the seed it decides the order.
        sizes: int [C], chains of each cluster.
        config: fractions of all chains that the held-out splits receive.

    Clusters in hash order fill test, then validation, whenever they still fit; the rest trains. A held-out split with
    a fraction above 0 is never empty when there are three clusters or more; with fewer, everything trains.
    """
    splits = ["train"] * len(names)
    if len(names) < MIN_CLUSTERS_TO_SPLIT:
        return splits
    ranks = [hashlib.sha256(f"{config.seed}:{name}".encode()).digest() for name in names]
    order = sorted(range(len(names)), key=lambda c: ranks[c])
    total = int(np.sum(sizes))
    wanted = {"test": config.test_fraction, "validation": config.validation_fraction}
    held_out = [split for split, fraction in wanted.items() if fraction > 0]
    for number, split in enumerate(held_out):
        room = round(wanted[split] * total)
        # Every split after this one needs a cluster too.
        to_leave = len(held_out) - number
        taken = []
        for cluster in order:
            if sizes[cluster] <= room and len(order) - len(taken) > to_leave:
                taken.append(cluster)
                room -= int(sizes[cluster])
        if not taken:
            taken = [min(order, key=lambda c: sizes[c])]
        order = [cluster for cluster in order if cluster not in set(taken)]
        for cluster in taken:
            splits[cluster] = split
    return splits
