"""SCOPe fold recognition (TAPE's remote homology, 1,195 folds), and remote-homology retrieval on the same chains."""

from collections.abc import Sequence
from dataclasses import replace

from eval.datasets.assembly import Entry, assembled, recorded
from eval.datasets.files import Recorded
from eval.datasets.records import Dataset, Files, Layout
from eval.datasets.splitting import clusters_of
from eval.datasets.tables import column_of, table, tables_of_split
from eval.datasets.tabular import tables_layouts

NUM_FOLDS = 1195
LEVELS = ("fold", "superfamily", "family")
_SPLM = "duolinwang+S-PLM/SPLM_Data/Fold_data"
_SPLM_SOURCE = "S-PLM Fold_data (SCOPe 1.75)"
_DOMAINS = "phermosilla+IEConv_proteins/Datasets/data/HomologyTAPE"
"""Lists the same domains in the same order, with SCOPe's names."""
_TAPE = "TAPE remote_homology (JSON, or CSV as hf://datasets/proteinea/remote_homology)"


def _tape(level: str) -> Layout:
    """Folds of the chains whose superfamily (level fold), family or neither was held out of training."""

    def read(files: Files, prefix: str) -> Dataset:
        files = recorded(files)
        entries = {
            split: [Entry(row.key, row.sequences, row.label[0]) for row in rows]
            for split, rows in _tape_rows(files, prefix, (level,)).items()
        }
        classes = [str(i) for i in range(NUM_FOLDS)]
        return assembled(level, f"{_TAPE}, test_{level}_holdout", files, "class", entries, classes=classes)

    return Layout(_TAPE, "remote_homology", ("*train*", f"*test_{level}_holdout*"), read)


def _tape_rows(files: Recorded, prefix: str, holdouts: Sequence[str]) -> dict[str, list[Entry]]:
    """Entries whose label is (fold, superfamily, family)."""
    splits: dict[str, list[Entry]] = {}
    columns = ("id", "primary", *(f"{level}_label" for level in LEVELS))
    for split in ("train", "validation", "test"):
        splits[split] = []
        for path in tables_of_split(files, prefix, split):
            if split == "test" and not any(f"test_{level}_holdout" in path for level in holdouts):
                continue
            rows = table(files, path, columns)
            fold, superfamily, family = (column_of(rows, [f"{level}_label"], path) for level in LEVELS)
            column_of(rows, ["primary"], path)
            for i, row in enumerate(rows):
                label = (row[fold], row[superfamily], row[family])
                splits[split].append(Entry(str(row.get("id") or f"{split}-{i}"), (row["primary"] or "",), label))
    return splits


def _splm_rows(files: Recorded, prefix: str) -> tuple[dict[str, list[Entry]], list[str]]:
    """Entries whose label is the number of the fold, and the names of the folds.

    Where IEConv's lists of the same domains are there and agree, domains are the keys and folds have SCOPe's names.
    """
    parts = {"train": ("train.csv", "training.txt"), "validation": ("valid.csv", "validation.txt")}
    splits: dict[str, list[Entry]] = {}
    names: dict[str, str] = {}
    for split, (path, listed) in parts.items():
        place = f"{prefix}/{path}" if prefix else path
        rows = table(files, place)
        sequence, label = column_of(rows, ["sequence"], place), column_of(rows, ["label"], place)
        folds = [row[label] for row in rows]
        domains, found = _domains(files, f"{_DOMAINS}/{listed}", folds)
        keys = domains or [f"{split}-{i}" for i in range(len(rows))]
        names.update(found)
        splits[split] = [Entry(k, (row[sequence] or "",), f) for k, row, f in zip(keys, rows, folds, strict=True)]
    return splits, [names.get(str(i), str(i)) for i in range(NUM_FOLDS)]


def _domains(files: Recorded, path: str, folds: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Domain of each row of a table, and name of each fold, if the list is there and parts the rows alike."""
    if not files.has(path):
        return [], {}
    rows = [line.split() for line in files.read(path).decode().splitlines() if line.strip()]
    if len(rows) != len(folds) or any(len(row) < 2 for row in rows):
        return [], {}
    pairs = set(zip(folds, (row[1] for row in rows), strict=True))
    if not len(pairs) == len({fold for fold, _ in pairs}) == len({name for _, name in pairs}):
        return [], {}
    return [row[0] for row in rows], dict(pairs)


def _splm(level: str, needs: tuple[str, ...]) -> Layout:
    """As `_tape`; without the holdout of level `fold` its validation set is all that can be tested on."""

    def read(files: Files, prefix: str) -> Dataset:
        files = recorded(files)
        entries, names = _splm_rows(files, prefix)
        place = f"{prefix}/test_{level}_holdout.csv" if prefix else f"test_{level}_holdout.csv"
        if files.has(place):
            rows = table(files, place)
            sequence, label = column_of(rows, ["sequence"], place), column_of(rows, ["label"], place)
            entries["test"] = [Entry(f"test-{i}", (r[sequence] or "",), r[label]) for i, r in enumerate(rows)]
        # Labels are numbers; names of folds stand for them only in `classes`.
        entries = {split: [replace(e, label=names[int(e.label)]) for e in part] for split, part in entries.items()}
        return assembled(level, _SPLM_SOURCE, files, "class", entries, classes=names)

    return Layout("S-PLM Fold_data", _SPLM, needs, read)


def _read_splm_retrieval(files: Files, prefix: str) -> Dataset:
    files = recorded(files)
    entries, names = _splm_rows(files, prefix)
    clusters = clusters_of([entry.sequences[0] for part in entries.values() for entry in part])
    splits, start = {}, 0
    for split, part in entries.items():
        numbers = clusters[start : start + len(part)]
        start += len(part)
        splits[split] = [
            replace(entry, label=[f"fold {names[int(entry.label)]}", f"family c{cluster}"], cluster=int(cluster))
            for entry, cluster in zip(part, numbers, strict=True)
        ]
    notes = ("families are not in the files: sequence clusters stand for them",)
    return assembled("remote_homology", _SPLM_SOURCE, files, "labels", splits, notes=notes)


def _read_tape_retrieval(files: Files, prefix: str) -> Dataset:
    files = recorded(files)
    entries = {
        split: [
            replace(e, label=[f"{level} {'.'.join(map(str, e.label[: i + 1]))}" for i, level in enumerate(LEVELS)])
            for e in part
        ]
        for split, part in _tape_rows(files, prefix, ("fold", "superfamily")).items()
    }
    return assembled("remote_homology", f"{_TAPE}, fold and superfamily holdouts", files, "labels", entries)


_SPLM_NEEDS = ("train.csv", "valid.csv")
_TABLES = tables_layouts(
    "fold",
    "class",
    ("label", "fold_label"),
    "hf://datasets/proteinglm/fold_prediction and hf://datasets/biomap-research/fold_prediction",
    classes=[str(i) for i in range(NUM_FOLDS)],
)
LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "fold": (_tape("fold"), _splm("fold", _SPLM_NEEDS), *_TABLES),
    **{
        level: (_tape(level), _splm(level, (*_SPLM_NEEDS, f"test_{level}_holdout.csv")))
        for level in ("superfamily", "family")
    },
    "remote_homology": (
        Layout(_TAPE, "remote_homology", ("*train*", "*test_*_holdout*"), _read_tape_retrieval),
        Layout("S-PLM Fold_data", _SPLM, _SPLM_NEEDS, _read_splm_retrieval),
    ),
}
"""The published names: `superfamily` and `family` are the same 1,195 folds on easier holdouts."""
