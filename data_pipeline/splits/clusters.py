"""Clusters of homologous chains, from which splits are made: from a file, by MMseqs2, or by k-mers."""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from configs.splits import SplitConfig
from data_pipeline.splits import kmers
from data_pipeline.splits.components import merge_clusters, number_by_appearance
from data_pipeline.splits.kmers import cluster_by_kmers
from data_pipeline.splits.membership import read_membership
from data_pipeline.splits.mmseqs import cluster_by_mmseqs, mmseqs_version

log = logging.getLogger("data_pipeline")

ROWS_PER_PART = 2**16
_TOLD = ("clusters", "chains", "method", "largest_cluster")


@dataclass(frozen=True)
class Clustering:
    """The clusters of S chains."""

    labels: np.ndarray
    """int64 [S], numbered in the order in which clusters first appear."""
    facts: dict[str, Any]
    """For the manifest: method, tool version, parameters, number of clusters, the largest, chains missing."""


def assign_clusters(table: pa.Table, config: SplitConfig, scratch: Path) -> Clustering:
    """Cluster chains by `config.method`; identical sequences always share a cluster, and no linked pair is parted.

    Args:
        table: one row for each chain, with columns `key` and `entry`, and `digest` (at least 8 bytes that name the
            sequence), `sequence`, or both; `sequence` is needed, and read, unless clusters come from a file.
        scratch: folder for MMseqs2's working files.

    The clusters do not depend on the order of rows, only their numbers do. About 400 bytes a chain are needed with a
    membership file; k-mers take about 60 bytes a residue.

    Raises:
        UserError: see `read_membership` and `mmseqs.linked_pairs`.
    """
    method, version = _method(config)
    identity = sequence_identity(table)
    by_sequence = np.argsort(identity, kind="stable")
    same = identity[by_sequence][1:] == identity[by_sequence][:-1]
    facts: dict[str, Any] = {"method": method}
    if method == "membership":
        told = read_membership(table["key"], table["entry"], config)
        facts |= told.facts
        labels = merge_clusters(told.labels, by_sequence[1:][same], by_sequence[:-1][same])
    else:
        # In order of digest, so that neither program sees the order of rows.
        distinct = by_sequence[np.append(True, ~same)[: len(by_sequence)]]
        found, parameters = _by_sequence(table["sequence"], distinct, method, config, scratch)
        facts |= ({"version": version} if version else {}) | parameters
        labels = np.empty(len(identity), dtype=np.int64)
        labels[by_sequence] = np.repeat(found, np.diff(np.append(np.flatnonzero(np.append(True, ~same)), len(labels))))
    labels = number_by_appearance(labels)
    sizes = np.bincount(labels)
    facts |= {
        "chains": len(labels),
        "identical_sequences": int(same.sum()),
        "clusters": len(sizes),
        "largest_cluster": int(sizes.max(initial=0)),
    }
    log.info("%s clusters of %s chains by %s, the largest %s", *(facts[n] for n in _TOLD))
    return Clustering(labels, facts)


def sequence_identity(table: pa.Table) -> np.ndarray:
    """uint64 [S]: the first 8 bytes of each chain's digest, or of the BLAKE2b hash of its sequence.

    Of 214 million sequences some two share a number with probability 0.1 %; they would share a cluster, no more.
    """
    if "digest" in table.column_names:
        width = table["digest"].type.byte_width
        parts = [
            np.frombuffer(c.buffers()[1], np.uint8)[c.offset * width :][: len(c) * width].reshape(-1, width)[:, :8]
            for c in table["digest"].chunks
        ]
        return np.concatenate([np.empty((0, 8), np.uint8), *parts]).copy().view(np.uint64).ravel()
    hashes = [hashlib.blake2b(s.encode(), digest_size=8).digest() for s in sequences_of(table["sequence"])]
    return np.frombuffer(b"".join(hashes), dtype=np.uint64)


def sequences_of(column: pa.ChunkedArray, rows: np.ndarray | None = None) -> Iterator[str]:
    """Sequences of all rows, or of the given ones in their order, taken a part at a time."""
    for start in range(0, len(column) if rows is None else len(rows), ROWS_PER_PART):
        part = slice(start, start + ROWS_PER_PART)
        taken = column.slice(start, ROWS_PER_PART) if rows is None else column.take(pa.array(rows[part]))
        yield from taken.to_pylist()


def _method(config: SplitConfig) -> tuple[str, str | None]:
    """Method, and MMseqs2's version where that is it."""
    if config.membership is not None:
        return "membership", None
    if config.method == "kmers":
        return "kmers", None
    version = mmseqs_version()
    if version is None and config.method == "auto":
        log.warning("MMseqs2 is not installed: clusters by k-mers; set split.method to choose one")
        return "kmers", None
    return "mmseqs", version


def _by_sequence(
    column: pa.ChunkedArray, rows: np.ndarray, method: str, config: SplitConfig, scratch: Path
) -> tuple[np.ndarray, dict[str, Any]]:
    """int64 clusters of the distinct sequences at `rows`, and the parameters that made them."""
    shared = ("coverage", "coverage_of")
    if method == "mmseqs":
        names = ("mmseqs_mode", "min_identity", "sensitivity", *shared)
        labels = cluster_by_mmseqs(sequences_of(column, rows), len(rows), config, scratch)
        return labels, {name: getattr(config, name) for name in names}
    ratio = config.coverage if config.coverage_of == "both" else 0.0
    labels = cluster_by_kmers(list(sequences_of(column, rows)), config.kmer, ratio)
    parameters = {name: getattr(config, name) for name in ("kmer", *shared)}
    return labels, parameters | {"max_evalue": kmers.MAX_EVALUE}
