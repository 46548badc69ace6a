"""FLIP's single amino acid variants: whole mutated sequences, from which the wild types are recovered."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from data_pipeline.splits.components import merge_clusters
from eval.datasets.residue_readers import Source
from eval.datasets.variants import Assays, Collected, rows_of

MEANING = {"effect": 0.0, "neutral": 1.0}
"""Higher is fitter."""
MIN_SEQUENCES = 3
"""Fewer sequences of one protein do not tell which of two residues is the wild type's."""
_PARTS = 3
"""Two variants of one wild type differ in at most two residues, so that one of three parts is the same in both."""


def flip_savs(path: str) -> Callable[[Source], Assays]:
    """Reader of FLIP's columns `sequence`, `target` (effect, neutral), `set`; the test variants are scored."""

    def read(source: Source) -> Assays:
        rows = [
            (row["sequence"].strip().upper(), MEANING.get(row["target"].strip().lower(), np.nan), row["set"] == "test")
            for row in rows_of(source, path, ("sequence", "target", "set"))
        ]
        families = _families([sequence for sequence, _, _ in rows])
        collected, lost = Collected(), 0
        for members in families:
            tested = [i for i in members if rows[i][2]]
            wild = _consensus([rows[i][0] for i in members])
            named = [(_difference(wild, rows[i][0]), rows[i][1]) for i in tested] if wild else []
            found = {name: score for name, score in named if name}
            lost += len(tested) - len(found)
            if found:
                # The protein's name is not in the table; its first variant's place in it is.
                key = f"wild_type_{members[0]}"
                collected.add(key, key, "", wild, found, found.values())
        notes = ["wild types are the consensus of the variants that differ from each other in at most two residues"]
        if lost:
            notes.append(f"{lost} test sequences that are no single substitution of such a consensus were left out")
        return collected.result("FLIP sav, split mixed", source, notes)

    return read


def _families(sequences: Sequence[str]) -> list[list[int]]:
    """Numbers of sequences of one length that share a part, directly or through others, in order of appearance."""
    seen: dict[tuple[int, int, str], int] = {}
    first, second = [], []
    for i, sequence in enumerate(sequences):
        n = len(sequence)
        for part in range(_PARTS):
            piece = sequence[n * part // _PARTS : n * (part + 1) // _PARTS]
            first.append(seen.setdefault((n, part, piece), i))
            second.append(i)
    labels = merge_clusters(np.arange(len(sequences)), np.array(first), np.array(second))
    families: dict[int, list[int]] = {}
    for i, label in enumerate(labels.tolist()):
        families.setdefault(label, []).append(i)
    return list(families.values())


def _consensus(sequences: Sequence[str]) -> str:
    """The most frequent residue at each position; empty where there are too few sequences."""
    distinct = list(dict.fromkeys(sequences))
    if len(distinct) < MIN_SEQUENCES:
        return ""
    return "".join(Counter(column).most_common(1)[0][0] for column in zip(*distinct, strict=True))


def _difference(wild: str, sequence: str) -> str:
    """The substitution that makes one of the other, e.g. `A12C`; empty where it takes none or several."""
    found = [f"{a}{i}{b}" for i, (a, b) in enumerate(zip(wild, sequence, strict=True), start=1) if a != b]
    return found[0] if len(found) == 1 else ""
