"""Which chains are, contain or resemble sequences that are kept for evaluation."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from configs.splits import LeakageConfig
from data_pipeline.manifest import SPLITS
from data_pipeline.splits.clusters import sequences_of
from data_pipeline.splits.containment import ContainmentIndex
from data_pipeline.splits.fasta import FastaSet, read_fasta
from data_pipeline.splits.homologs import Hits, search_by_kmers
from data_pipeline.splits.mmseqs import mmseqs_version, search_by_mmseqs

log = logging.getLogger("data_pipeline")

CHAINS_PER_BLOCK = 2**13
NUM_EXAMPLES = 5
RELATIONS = ("is identical to", "contains", "lies within", "is a homolog of")
"""What a chain is or does to an evaluation sequence, the closest first."""
_TOLD = ("path", "sequences_hit", "sequences", "chains_hit")
_HOMOLOG = RELATIONS.index("is a homolog of")


@dataclass(frozen=True)
class LeakageResult:
    """What was found, and which chains have to go."""

    facts: list[dict[str, Any]]
    """For the manifest, one for each FASTA file."""
    drop: np.ndarray
    """int64, rows to leave out, ascending; empty unless the action is `exclude`."""
    details: list[str]
    """Why, for each of `drop`: the evaluation sequence, and how near it is."""


@dataclass(frozen=True, order=True, slots=True)
class _Leak:
    """One pair of a chain and a distinct evaluation sequence; of two, the lesser is the closer relation."""

    relation: int
    distance: float
    """1 - identity."""
    target: int
    row: int
    coverage: float


def find_leaks(
    table: pa.Table, labels: np.ndarray, splits: np.ndarray, config: LeakageConfig, scratch: Path
) -> LeakageResult:
    """Search chains against the FASTA files of `config.against`.

    Args:
        table: one row for each chain, with columns `key` and `sequence`.
        labels: int64 [S], clusters.
        splits: int8 [S], numbers in `manifest.SPLITS`.
        scratch: folder for MMseqs2's working files.

    Identical sequences, and chains that contain an evaluation sequence or lie within one (of at least 8 residues), are
    always found; homologs as far as the method finds them (docs/splits.md has figures). All files are searched at
    once, and the chains are read a part at a time: memory grows with the evaluation sets and the pairs found.

    Raises:
        UserError: a FASTA file is missing or damaged, or MMseqs2 is missing or fails.
    """
    nothing = np.empty(0, dtype=np.int64)
    if not config.against:
        return LeakageResult([], nothing, [])
    sets = [read_fasta(path) for path in config.against]
    targets = sorted({sequence for fasta in sets for sequence in fasta.sequences})
    rows = np.flatnonzero(np.isin(splits, [SPLITS.index(name) for name in config.splits]))
    version = None if config.method == "kmers" else mmseqs_version()
    # Where MMseqs2 is asked for by name and missing, the search itself says so.
    method = "mmseqs" if version or config.method == "mmseqs" else "kmers"
    leaks = _search(table["sequence"], rows, targets, method, config, scratch)
    searched = {"method": method} | ({"version": version, "sensitivity": config.sensitivity} if version else {})
    searched |= {name: getattr(config, name) for name in ("min_identity", "coverage", "action")}
    searched |= {"splits": list(config.splits), "chains_searched": len(rows)}
    facts = [_facts(fasta, leaks, targets, table["key"]) | searched for fasta in sets]
    for fact in facts:
        log.info("%s: %s of its %s sequences leak into %s chains", *(fact[name] for name in _TOLD))
    if config.action == "report":
        return LeakageResult(facts, nothing, [])
    why = _reasons(leaks, _names(sets), targets)
    if config.exclude_clusters:
        mates = _mates(table["key"], labels, rows, why)
        facts = [fact | {"cluster_mates_excluded": len(mates)} for fact in facts]
        why |= mates
    drop = np.array(sorted(why), dtype=np.int64)
    return LeakageResult(facts, drop, [why[row] for row in drop.tolist()])


def _search(
    column: pa.ChunkedArray, rows: np.ndarray, targets: list[str], method: str, config: LeakageConfig, scratch: Path
) -> list[_Leak]:
    """The closest relation of every pair found, the closest first."""
    limits = (config.min_identity, config.coverage)
    if method == "mmseqs":
        hits = search_by_mmseqs(sequences_of(column, rows), targets, *limits, config.sensitivity, scratch)
    else:
        hits = search_by_kmers(sequences_of(column, rows), targets, *limits)
    leaks = {(leak.row, leak.target): leak for leak in _homologs(hits, rows)}
    leaks |= {(leak.row, leak.target): leak for leak in _contained(column, rows, targets)}
    return sorted(leaks.values())


def _homologs(hits: Hits, rows: np.ndarray) -> list[_Leak]:
    columns = (rows[hits.query], hits.target, hits.identity, hits.coverage)
    return [
        _Leak(_HOMOLOG, round(1 - identity, 4), target, row, round(coverage, 4))
        for row, target, identity, coverage in zip(*(column.tolist() for column in columns), strict=True)
    ]


def _contained(column: pa.ChunkedArray, rows: np.ndarray, targets: list[str]) -> list[_Leak]:
    index, sequences, leaks = ContainmentIndex(targets), sequences_of(column, rows), []
    for start in range(0, len(rows), CHAINS_PER_BLOCK):
        block = list(islice(sequences, CHAINS_PER_BLOCK))
        for number, target in index.pairs(block):
            ours, theirs = len(block[number]), len(targets[target])
            relation = 0 if ours == theirs else 1 if ours > theirs else 2
            leaks.append(_Leak(relation, 0.0, target, int(rows[start + number]), 1.0))
    return leaks


def _names(sets: Sequence[FastaSet]) -> dict[str, str]:
    """How each distinct sequence is called: file and name of its first appearance."""
    names: dict[str, str] = {}
    for fasta in sets:
        for name, sequence in zip(fasta.names, fasta.sequences, strict=True):
            names.setdefault(sequence, f"{name} of {Path(fasta.path).name}")
    return names


def _facts(fasta: FastaSet, leaks: list[_Leak], targets: list[str], keys: pa.ChunkedArray) -> dict[str, Any]:
    """What was found of one file."""
    names: dict[str, list[str]] = {}
    for name, sequence in zip(fasta.names, fasta.sequences, strict=True):
        names.setdefault(sequence, []).append(name)
    here = [leak for leak in leaks if targets[leak.target] in names]
    closest: dict[int, int] = {}
    for leak in here:
        closest.setdefault(leak.row, leak.relation)
    relations = np.bincount(np.array(list(closest.values()), dtype=np.int64), minlength=len(RELATIONS)).tolist()
    return {
        "path": fasta.path,
        "sha256": fasta.sha256,
        "sequences": len(fasta.sequences),
        "sequences_hit": sum(len(names[targets[number]]) for number in {leak.target for leak in here}),
        "chains_hit": len(closest),
        "chains_by_relation": dict(zip(RELATIONS, relations, strict=True)),
        "examples": [
            {
                "chain": keys[leak.row].as_py(),
                "relation": RELATIONS[leak.relation],
                "sequence": names[targets[leak.target]][0],
                "identity": round(1 - leak.distance, 4),
                "coverage": leak.coverage,
            }
            for leak in here[:NUM_EXAMPLES]
        ],
    }


def _reasons(leaks: list[_Leak], names: dict[str, str], targets: list[str]) -> dict[int, str]:
    """Row of every chain found, and its closest relation in words."""
    why: dict[int, str] = {}
    for leak in leaks:
        words = f"{RELATIONS[leak.relation]} {names[targets[leak.target]]}"
        if leak.relation == _HOMOLOG:
            words += f" (identity {1 - leak.distance:.2f} over {leak.coverage:.2f} of the shorter)"
        why.setdefault(leak.row, words)
    return why


def _mates(keys: pa.ChunkedArray, labels: np.ndarray, rows: np.ndarray, why: dict[int, str]) -> dict[int, str]:
    """Chains of the searched splits, not found themselves, that share a cluster with one that was."""
    found = np.array(sorted(why), dtype=np.int64)
    clusters, first = np.unique(labels[found], return_index=True)
    mates = rows[np.isin(labels[rows], clusters) & ~np.isin(rows, found)]
    through = found[first[np.searchsorted(clusters, labels[mates])]] if len(mates) else mates
    return {
        mate: f"in one cluster with {keys[row].as_py()}, which {why[row]}"
        for mate, row in zip(mates.tolist(), through.tolist(), strict=True)
    }
