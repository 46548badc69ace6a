"""The commonest layouts: a table for each split, or one for all, on the hub or in a folder, and SaProt's LMDB files."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eval.datasets.assembly import Entry, assembled, recorded
from eval.datasets.files import matching
from eval.datasets.records import SPLITS, Dataset, Files, Layout, Target
from eval.datasets.tables import Row, column_of, lmdb_rows, table, tables_of_split

SEQUENCE = ("seq", "sequence", "aa_seq", "primary", "protein", "input", "mutated_sequence", "sequences", "prot_seq")
"""Columns that hold the sequence, by publisher: biomap and proteinglm, FLIP, AI4Protein, TAPE and proteinea, SaProtHub,
proteinea's DeepLoc, and, last, ProtST."""
PAIR = (
    ("seq_1", "seq_2"),
    ("seq1", "seq2"),
    ("protein_1", "protein_2"),
    ("primary_1", "primary_2"),
    ("SeqA", "SeqB"),
    ("aa_seq_1", "aa_seq_2"),
)
PARTS = ("stage", "set", "split")
KEYS = ("id", "name", "Protein ID", "entry", "uniprot_id")
_STRUCTURE_AWARE = re.compile(r"(?:[A-Z#][a-z#])+")


def tables_layouts(
    name: str,
    target: Target,
    labels: Sequence[str],
    known: str,
    *,
    classes: Sequence[str] | None = None,
    mapped: Callable[[Any], Any] = lambda label: label,
) -> tuple[Layout, Layout]:
    """Tables of splits named so (`train.csv`, `data/valid-*.parquet`, ...), or one that says the split of each row.

    Args:
        labels: names of the column that holds the label, the first that exists counts.
        known: repositories of the hub that are so, for people.
        mapped: of a cell to a label.

    A validation or test table may lack. One table has its splits in a column `stage` (SaProtHub) or `set` (FLIP, with
    `validation` for the rows of train that serve so).
    """

    def entries_of(rows: Sequence[Row], path: str, split: str) -> list[Entry]:
        return _entries(rows, path, split, target, labels, mapped)

    def read_many(files: Files, prefix: str) -> Dataset:
        files = recorded(files)
        columns = (*SEQUENCE, *labels, *KEYS, *(column for pair in PAIR for column in pair))
        entries = {
            split: [
                entry
                for path in tables_of_split(files, prefix, split)
                for entry in entries_of(table(files, path, columns), path, split)
            ]
            for split in SPLITS
        }
        return assembled(name, f"tables by split, as {known}", files, target, entries, classes=classes)

    def read_one(files: Files, prefix: str) -> Dataset:
        files = recorded(files)
        path = matching(files, f"{prefix}/*.csv" if prefix else "*.csv")[0]
        rows = table(files, path)
        column = column_of(rows, PARTS, path)
        parts = [split_of(row, column) for row in rows]
        entries = {}
        for split in SPLITS:
            chosen = [row for row, part in zip(rows, parts, strict=True) if part == split]
            entries[split] = entries_of(chosen, path, split) if chosen else []
        return assembled(name, "one table with the split of each row", files, target, entries, classes=classes)

    many = Layout(f"tables by split, as {known}", name, ("*train*",), read_many)
    return many, Layout("one table with the split of each row", name, ("*.csv",), read_one)


def split_of(row: Row, column: str) -> str | None:
    """Split that a row of one table names: train, valid or test, or train with `validation` set (FLIP)."""
    named = str(row[column]).strip().lower()
    if named == "train" and str(row.get("validation")) == "True":
        return "validation"
    return {"train": "train", "valid": "validation", "validation": "validation", "test": "test"}.get(named)


def lmdb_layout(
    name: str,
    target: Target,
    folder: str,
    labels: Sequence[str],
    *,
    classes: Sequence[str] | None = None,
    mapped: Callable[[Any], Any] = lambda label: label,
) -> Layout:
    """SaProt's `LMDB/<folder>/{train,valid,test}/data.mdb`; of structure-aware sequences the residues are taken."""
    source = f"SaProt LMDB/{folder}"
    paths = {"train": "train/data.mdb", "validation": "valid/data.mdb", "test": "test/data.mdb"}

    def read(files: Files, prefix: str) -> Dataset:
        files = recorded(files)
        entries: dict[str, list[Entry]] = {}
        for split, path in paths.items():
            place = f"{prefix}/{path}" if prefix else path
            rows = lmdb_rows(files, place)
            entries[split] = _entries(rows, place, split, target, labels, mapped)
        return assembled(name, source, files, target, entries, classes=classes)

    return Layout(source, f"LMDB/{folder}", tuple(paths.values()), read)


def _entries(
    rows: Sequence[Row],
    path: str,
    split: str,
    target: Target,
    labels: Sequence[str],
    mapped: Callable[[Any], Any],
) -> list[Entry]:
    label = column_of(rows, labels, path)
    columns = _sequence_columns(rows, target, path)
    key = next((name for name in KEYS if name in rows[0]), None)
    entries = []
    for i, row in enumerate(rows):
        sequences = tuple(residues_of(str(row[column] or "")) for column in columns)
        named = str(row[key]) if key is not None and row[key] is not None else f"{split}-{i}"
        entries.append(Entry(named, sequences, mapped(row[label])))
    return entries


def _sequence_columns(rows: Sequence[Row], target: Target, path: str) -> tuple[str, ...]:
    if target != "pair_class":
        return (column_of(rows, SEQUENCE, path),)
    for pair in PAIR:
        if rows and all(name in rows[0] for name in pair):
            return pair
    return column_of(rows, [first for first, _ in PAIR], path), column_of(rows, [second for _, second in PAIR], path)


def residues_of(sequence: str) -> str:
    """Residue letters of a sequence: SaProt's structure-aware form has a lower-case 3Di letter or # after each,
    ProtST's a space."""
    letters = "".join(sequence.split())
    return letters[::2] if _STRUCTURE_AWARE.fullmatch(letters) else letters


def mapped_by(names: Mapping[str, str]) -> Callable[[Any], Any]:
    """Replaces labels that stand in a mapping."""
    return lambda label: names.get(str(label), label)
