"""Splits by sequence cluster, so that no relative of a held-out protein is learned from."""

import hashlib
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_pipeline.splits.components import number_by_appearance
from eval.clusters import MIN_LENGTH_RATIO, SEED_LETTERS, sequence_clusters
from eval.datasets.records import Record
from eval.datasets.unpacked import cache_folder

SEED = 0
"""Splits of ours are drawn once for everyone: results of two configurations stay comparable."""
VALIDATION_FRACTION = 0.1
TEST_FRACTION = 0.2
PAIR_TEST_FRACTION = 0.3
"""Of proteins; pairs of two of them are the test set, pairs with one of them are used nowhere."""


def clusters_of(sequences: Sequence[str]) -> np.ndarray:
    """int64 [S]: `sequence_clusters`, kept in the user's cache by the sequences' hash, since they take a while."""
    distinct = sorted(set(sequences))
    text = "\n".join([f"{SEED_LETTERS} {MIN_LENGTH_RATIO}", *distinct])
    kept = cache_folder() / "clusters" / f"{hashlib.sha256(text.encode()).hexdigest()}.npy"
    labels = _kept(kept, len(distinct))
    if labels is None:
        labels = sequence_clusters(distinct)
        _keep(kept, labels)
    place = {sequence: i for i, sequence in enumerate(distinct)}
    return number_by_appearance(labels[[place[sequence] for sequence in sequences]])


def held_out(records: Sequence[Record], fraction: float, labels_stay: bool = False) -> np.ndarray:
    """bool [S]: whole clusters of about this fraction of the records, drawn from `SEED`.

    Args:
        labels_stay: a cluster with the last examples of a class is not taken.

    Records are clustered by their (first) sequence unless they come with clusters. Where one cluster holds so much
    that none can be taken, single records are drawn.
    """
    clusters = np.array([record.cluster for record in records], dtype=np.int64)
    if (clusters < 0).any():
        clusters = clusters_of([record.sequences[0] for record in records])
    taken = np.zeros(len(records), dtype=bool)
    wanted = round(fraction * len(records))
    left = Counter(int(record.label) for record in records) if labels_stay else Counter()
    members = np.split(np.argsort(clusters, kind="stable"), np.cumsum(np.bincount(clusters))[:-1])
    order = np.random.default_rng(SEED).permutation(len(members))
    # A large family stays in train, where it does not stand for the whole held-out set, unless there is no other way.
    for largest in (max(wanted // 10, 1), wanted):
        for number in order:
            rows = members[number]
            room = wanted - int(taken.sum())
            if not 0 < len(rows) <= min(largest, room) or taken[rows[0]]:
                continue
            lost = Counter(int(records[i].label) for i in rows) if labels_stay else Counter()
            if any(left[label] <= count for label, count in lost.items()):
                continue
            left -= lost
            taken[rows] = True
        if int(taken.sum()) >= wanted // 2:
            break
    if not taken.any() and wanted:
        taken[np.random.default_rng(SEED).permutation(len(records))[:wanted]] = True
    return taken


def unseen_proteins(records: Sequence[Record], fraction: float) -> set[str]:
    """Sequences of about this fraction of the proteins of pairs, whole clusters of them, drawn from `SEED`."""
    proteins = sorted({sequence for record in records for sequence in record.sequences})
    singles = [Record(sequence, (sequence,), 0) for sequence in proteins]
    return {protein for protein, out in zip(proteins, held_out(singles, fraction), strict=True) if out}


def three_ways(records: Sequence[Record]) -> dict[str, tuple[Record, ...]]:
    """Train, validation and test by cluster; pairs by protein.

    Both proteins of a test pair are unseen in training and validation (pairs that straddle are left out), and at
    least one protein of a validation pair is unseen in training.
    """
    if len(records[0].sequences) == 1:
        if any(record.cluster < 0 for record in records):
            clusters = clusters_of([record.sequences[0] for record in records])
            records = [replace(record, cluster=int(c)) for record, c in zip(records, clusters, strict=True)]
        test = held_out(records, TEST_FRACTION)
        rest = [record for record, out in zip(records, test, strict=True) if not out]
        return {"test": tuple(r for r, out in zip(records, test, strict=True) if out), **two_ways(rest)}
    unseen = unseen_proteins(records, PAIR_TEST_FRACTION)
    number = [sum(sequence in unseen for sequence in record.sequences) for record in records]
    rest = [record for record, n in zip(records, number, strict=True) if n == 0]
    return {"test": tuple(r for r, n in zip(records, number, strict=True) if n == 2), **two_ways(rest)}


def two_ways(records: Sequence[Record], labels_stay: bool = False) -> dict[str, tuple[Record, ...]]:
    """Train and validation by cluster; at least one protein of a validation pair is unseen in training."""
    if len(records[0].sequences) == 2:
        unseen = unseen_proteins(records, VALIDATION_FRACTION)
        out = np.array([any(sequence in unseen for sequence in record.sequences) for record in records])
    else:
        out = held_out(records, VALIDATION_FRACTION, labels_stay)
    return {
        "train": tuple(r for r, o in zip(records, out, strict=True) if not o),
        "validation": tuple(r for r, o in zip(records, out, strict=True) if o),
    }


def degree_matched_negatives(
    positives: Sequence[tuple[str, str]], forbidden: set[frozenset[str]]
) -> list[tuple[str, str]]:
    """Pairs of the same proteins that are not known to interact, in which each occurs as often as in `positives`.

    So a head learns nothing from how often a protein interacts. Drawn from `SEED` by shuffling partners; the few pairs
    that cannot be completed (a hub that interacts with nearly everything) are left out.
    """
    generator = np.random.default_rng(SEED)
    first = [a for a, _ in positives]
    second = np.array([b for _, b in positives], dtype=object)
    generator.shuffle(second)

    def clashes(a: str, b: str, seen: Mapping[frozenset[str], int]) -> bool:
        pair = frozenset((a, b))
        return a == b or pair in forbidden or seen.get(pair, 0) > 1

    for _ in range(200):
        seen = Counter(frozenset(pair) for pair in zip(first, second, strict=True))
        wrong = [i for i in range(len(first)) if clashes(first[i], second[i], seen)]
        if not wrong:
            break
        for i in wrong:
            other = int(generator.integers(len(first)))
            second[i], second[other] = second[other], second[i]
    drawn = {frozenset(pair): pair for pair in zip(first, second, strict=True) if not clashes(*pair, {})}
    return sorted(drawn.values())


def _kept(path: Path, size: int) -> np.ndarray | None:
    try:
        labels = np.load(path, allow_pickle=False)
    except (OSError, ValueError):
        return None
    return labels if labels.shape == (size,) else None


def _keep(path: Path, labels: np.ndarray) -> None:
    """Best effort: without a cache the clusters are computed again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            np.save(file, labels, allow_pickle=False)
        os.replace(file.name, path)
    except OSError:
        return
