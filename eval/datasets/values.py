"""Numbers measured for proteins: thermostability, fluorescence, stability, GB1 fitness, catalytic efficiency."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from eval.datasets.assembly import Entry, assembled, recorded
from eval.datasets.records import Dataset, Files, Layout
from eval.datasets.tables import Row, column_of, table
from eval.datasets.tabular import lmdb_layout, tables_layouts

_FLIP = "J-SNACKKB+FLIP"
_ONE_PROTEIN = "all sequences are variants of one protein: intervals resample variants, not clusters"


def _flip(name: str, prefix: str, path: str, title: str, *, variants: bool = False) -> Layout:
    """FLIP's table of one split: columns sequence, target, set (train, test), and validation (True) where it has it."""

    def read(files: Files, folder: str) -> Dataset:
        files = recorded(files)
        place = f"{folder}/{path}" if folder else path
        rows = table(files, place)
        sequence, target, split = (column_of(rows, [column], place) for column in ("sequence", "target", "set"))
        entries = _parted(rows, sequence, target, split, "validation")
        return _made(name, f"FLIP {title}", files, entries, variants)

    return Layout(f"FLIP {title}", prefix, (path,), read)


def _gb1_whole(files: Files, folder: str) -> Dataset:
    """The full table, whose columns name every split; variants that FLIP does not keep are left out."""
    files = recorded(files)
    path = "four_mutations_full_data.csv.zip/four_mutations_full_data.csv"
    place = f"{folder}/{path}" if folder else path
    rows = table(files, place)
    sequence, target, split, keep = (
        column_of(rows, [column], place) for column in ("sequence", "Fitness", "three_vs_rest", "keep")
    )
    rows = [row for row in rows if row[keep] == "True"]
    entries = _parted(rows, sequence, target, split, "three_vs_rest_validation")
    return _made("gb1", "FLIP gb1, three_vs_rest", files, entries, variants=True)


def _parted(rows: Sequence[Row], sequence: str, target: str, split: str, validation: str) -> dict[str, list[Entry]]:
    entries: dict[str, list[Entry]] = {"train": [], "validation": [], "test": []}
    for i, row in enumerate(rows):
        name = "validation" if row[split] == "train" and row.get(validation) == "True" else row[split]
        if name in entries:
            entries[name].append(Entry(f"{name}-{i}", (row[sequence] or "",), row[target]))
    return entries


def _made(name: str, source: str, files: Files, entries: dict[str, list[Entry]], variants: bool) -> Dataset:
    if variants:
        entries = {s: [replace(entry, cluster=i) for i, entry in enumerate(part)] for s, part in entries.items()}
    notes = (_ONE_PROTEIN,) if variants else ()
    return assembled(name, source, recorded(files), "value", entries, notes=notes)


def _variants(layouts: Sequence[Layout]) -> tuple[Layout, ...]:
    """The same, each record a cluster of its own."""

    def singled(read: Callable[[Files, str], Dataset], files: Files, prefix: str) -> Dataset:
        dataset = read(files, prefix)
        splits = {
            split: tuple(replace(record, cluster=i) for i, record in enumerate(records))
            for split, records in dataset.splits.items()
        }
        return replace(dataset, splits=splits, notes=(*dataset.notes, _ONE_PROTEIN))

    return tuple(replace(layout, read=partial(singled, layout.read)) for layout in layouts)


_BIOMAP = "hf://datasets/proteinglm/{0} and hf://datasets/biomap-research/{0}"
LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "thermostability": (
        lmdb_layout("thermostability", "value", "Thermostability/normal", ("fitness",)),
        *(
            _flip("thermostability", f"{_FLIP}/splits/meltome", f"splits.zip/splits/{split}.csv", f"meltome, {split}")
            for split in ("human_cell", "human", "mixed")
        ),
        _flip(
            "thermostability",
            _FLIP,
            "meltome_tasks_c64c205.zip/tasks/clustered_task.csv",
            "meltome, clusters' representatives of all species (clustered_task)",
        ),
        *tables_layouts(
            "thermostability",
            "value",
            ("label", "target", "fitness"),
            "hf://datasets/AI4Protein/Thermostability and hf://datasets/SaProtHub/Dataset-Thermostability-FLIP",
        ),
    ),
    "fluorescence": (
        *_variants(
            tables_layouts(
                "fluorescence",
                "value",
                ("log_fluorescence", "label", "target"),
                f"hf://datasets/proteinea/fluorescence, {_BIOMAP.format('fluorescence_prediction')}, or TAPE's JSON",
            )
        ),
    ),
    "stability": (
        *tables_layouts(
            "stability",
            "value",
            ("stability_score", "label", "target"),
            f"{_BIOMAP.format('stability_prediction')}, or TAPE's JSON",
        ),
    ),
    "gb1": (
        _flip("gb1", f"{_FLIP}/splits/gb1", "splits.zip/splits/three_vs_rest.csv", "gb1, three_vs_rest", variants=True),
        Layout(
            "FLIP gb1, whole table",
            f"{_FLIP}/splits/gb1",
            ("four_mutations_full_data.csv.zip/four_mutations_full_data.csv",),
            _gb1_whole,
        ),
        *_variants(tables_layouts("gb1", "value", ("target", "label"), _BIOMAP.format("fitness_prediction"))),
    ),
    "catalytic_efficiency": (
        *tables_layouts(
            "catalytic_efficiency", "value", ("label", "target"), _BIOMAP.format("enzyme_catalytic_efficiency")
        ),
    ),
}
