"""Which test proteins a model was trained near: similar chains in the train split of its shards."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np

from configs.benchmarks import BenchmarksConfig
from configs.errors import UserError
from data_pipeline.manifest import read_manifest, write_atomically
from data_pipeline.reader import ShardReader
from data_pipeline.splits.containment import ContainmentIndex
from data_pipeline.splits.homologs import search_by_kmers
from eval.datasets.records import Dataset

UNSEEN = "unseen"
"""Name of the group of test proteins that no training chain is similar to."""
MIN_IDENTITY, COVERAGE = 0.3, 0.8
"""As a build's own leakage check: identity of aligned residues, aligned fraction of the shorter sequence."""
METHOD = "kmers 1"
"""Changed when other overlaps would be found; kept results of another method are not used."""
TRAIN = "train"
_BLOCK = 2**13
Item = TypeVar("Item")
log = logging.getLogger("eval")


@dataclass(frozen=True)
class Overlap:
    """Of S test sequences, what the training chains hold of them."""

    similar: np.ndarray
    """bool [S]."""
    identity: np.ndarray
    """float64 [S]: of the most similar training chain; 0 where none is."""
    chains: tuple[str | None, ...]
    """Key of that chain."""
    num_training: int
    """Training chains searched."""


def find_overlap(
    test_sequences: Sequence[str],
    training_shards: Path,
    min_identity: float = MIN_IDENTITY,
    coverage: float = COVERAGE,
    cache: Path | None = None,
) -> Overlap:
    """Search the train split of shards for chains that equal, contain, lie within or resemble test sequences.

    Args:
        cache: folder in which the result is kept, by the sha256 of the shards' manifest and of the test sequences.

    Identical and contained sequences are found without exception; homologs as far as spaced k-mers and banded
    alignment find them (docs/splits.md). Memory grows with the test set, not with the training chains.

    Raises:
        UserError: no such shards, or no train split in them, or they are damaged.
    """
    manifest_sha256 = read_manifest(Path(training_shards))[1]
    distinct, number = np.unique(np.array(test_sequences, dtype=object), return_inverse=True)
    targets = distinct.tolist()
    asked = {
        "method": METHOD,
        "manifest_sha256": manifest_sha256,
        "test_sha256": hashlib.sha256("\n".join(targets).encode()).hexdigest(),
        "min_identity": min_identity,
        "coverage": coverage,
    }
    path = None
    if cache is not None:
        name = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        path = Path(cache) / f"overlap-{name[:32]}.json"
    found = _kept(path, asked)
    if found is None:
        found = _remembered(manifest_sha256, tuple(targets), Path(training_shards), min_identity, coverage)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps({**asked, "found": found}).encode())
    best = {int(target): (chain, identity) for target, chain, identity in found["hits"]}
    hits = [best.get(target) for target in number.tolist()]
    return Overlap(
        np.array([hit is not None for hit in hits], dtype=bool),
        np.array([hit[1] if hit else 0.0 for hit in hits]),
        tuple(hit[0] if hit else None for hit in hits),
        found["num_training"],
    )


@dataclass(frozen=True)
class Leaks:
    """What the check says of R test records."""

    known: np.ndarray | None
    """bool [R]: a training chain is similar to one of the record's proteins; None: not checked."""
    told: str
    """For people."""
    drop: bool
    """Whether known records are to leave the test split."""

    @property
    def remark(self) -> str:
        """The line beside the results."""
        done = "" if self.known is None else "; dropped" if self.drop else "; flagged"
        return f"leakage: {self.told}{done}"

    def kept(self, items: Sequence[Item]) -> tuple[Item, ...]:
        """Those of the R records, or what belongs to them, that stay in the test split."""
        if self.known is None or not self.drop:
            return tuple(items)
        return tuple(item for item, known in zip(items, self.known.tolist(), strict=True) if not known)


def find_leaks(
    name: str,
    records: Sequence[Sequence[str]],
    config: BenchmarksConfig,
    training_shards: Path | None,
    cache: Path | None = None,
) -> Leaks:
    """Which test records of dataset `name`, given as the sequences of each, are of known proteins.

    A pair is known where one of its two proteins is.

    Raises:
        UserError: `benchmarks.leakage=drop` where the shards cannot be read, or where nothing would remain.
    """
    drop = config.leakage == "drop"
    if config.leakage == "off":
        return Leaks(None, "not checked (benchmarks.leakage=off)", drop)
    if training_shards is None:
        return _unchecked(name, drop, "the training shards are not known; name benchmarks.training_shards")
    if not records:
        return Leaks(None, "no test record", drop)
    try:
        overlap = find_overlap([sequence for record in records for sequence in record], training_shards, cache=cache)
    except UserError as error:
        return _unchecked(name, drop, str(error))
    owner = np.repeat(np.arange(len(records)), [len(record) for record in records])
    known = np.bincount(owner, weights=overlap.similar, minlength=len(records)) > 0
    told = (
        f"{int(known.sum())} of {len(records)} test records resemble one of {overlap.num_training} training chains "
        f"(identity >= {MIN_IDENTITY}, coverage >= {COVERAGE})"
    )
    if drop and known.all():
        raise UserError(
            f"benchmarks.leakage=drop leaves no test record of {name!r}: {told}; use benchmarks.leakage=flag"
        )
    return Leaks(known, told, drop)


def apply_leakage(
    dataset: Dataset, config: BenchmarksConfig, training_shards: Path | None, cache: Path | None = None
) -> tuple[Dataset, str]:
    """The dataset with its test records of known proteins flagged or dropped, and a remark for people.

    `flag` adds the group `unseen`, so that metrics are reported on those test records too that no training chain is
    similar to; `drop` leaves only those in the test split.

    Raises:
        UserError: as `find_leaks`.
    """
    records = dataset.splits["test"]
    leaks = find_leaks(dataset.name, [record.sequences for record in records], config, training_shards, cache)
    if leaks.known is None:
        return dataset, leaks.remark
    if not leaks.drop:
        return replace(dataset, groups={**dataset.groups, UNSEEN: ~leaks.known}), leaks.remark
    dropped = "\n".join(record.key for record, known in zip(records, leaks.known.tolist(), strict=True) if known)
    remaining = replace(
        dataset.with_splits(test=leaks.kept(records)),
        sha256=hashlib.sha256(f"{dataset.sha256}\ndropped\n{dropped}".encode()).hexdigest(),
        notes=(*dataset.notes, f"{leaks.told}; dropped from the test split"),
        groups={group: members[~leaks.known] for group, members in dataset.groups.items()},
    )
    return remaining, leaks.remark


def _unchecked(name: str, drop: bool, reason: str) -> Leaks:
    if drop:
        raise UserError(f"benchmarks.leakage=drop cannot be done for {name!r}: {reason}")
    return Leaks(None, f"not checked: {reason}", drop)


@lru_cache(maxsize=32)
def _remembered(
    manifest_sha256: str, targets: tuple[str, ...], shards: Path, min_identity: float, coverage: float
) -> dict[str, object]:
    """Tasks on one dataset ask the same, and a search takes a while."""
    return _search(targets, shards, min_identity, coverage)


def _search(targets: Sequence[str], shards: Path, min_identity: float, coverage: float) -> dict[str, object]:
    """The most similar chain of each target that has one: hits are (target, key, identity)."""
    best: dict[int, tuple[float, int, str]] = {}
    seen: set[bytes] = set()
    with ShardReader(shards) as reader:
        count = len(reader.index(TRAIN))
        index = ContainmentIndex(targets)
        for start in range(0, count, _BLOCK):
            block = _unseen(reader, range(start, min(start + _BLOCK, count)), seen)
            keys, sequences = list(block.values()), list(block)
            hits = search_by_kmers(sequences, targets, min_identity, coverage)
            columns = (hits.query.tolist(), hits.target.tolist(), hits.identity.tolist())
            contained = ((row, target, 1.0) for row, target in index.pairs(sequences))
            for row, target, identity in (*zip(*columns, strict=True), *contained):
                # Of equally similar chains the first one is named: the result does not depend on blocks.
                rank = (-round(identity, 4), start + row)
                if target not in best or rank < best[target][:2]:
                    best[target] = (*rank, keys[row])
            log.info("leakage check: %d of %d training chains", min(start + _BLOCK, count), count)
    hits = [[target, chain, -negative] for target, (negative, _, chain) in sorted(best.items())]
    return {"num_training": count, "hits": hits}


def _unseen(reader: ShardReader, numbers: range, seen: set[bytes]) -> dict[str, str]:
    """Sequence -> key of the chains whose sequences did not come before: many structures hold the same protein."""
    found: dict[str, str] = {}
    for i in numbers:
        sample = reader.sample(TRAIN, i)
        digest = hashlib.blake2b(sample.sequence.encode(), digest_size=16).digest()
        if digest not in seen:
            seen.add(digest)
            found[sample.sequence] = sample.key
    return found


def _kept(path: Path | None, asked: dict[str, object]) -> dict[str, object] | None:
    """What an earlier search found, where it is whole and was asked the same."""
    if path is None or not path.is_file():
        return None
    try:
        tree = json.loads(path.read_text())
        found = tree.pop("found")
        hits = [[int(target), str(chain), float(identity)] for target, chain, identity in found["hits"]]
        return {"num_training": int(found["num_training"]), "hits": hits} if tree == asked else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s: not a kept overlap (%s); searched again", path, error)
        return None
