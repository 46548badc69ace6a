"""Small datasets in published layouts: files written, and what is read from them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from configs.benchmarks import BenchmarksConfig
from eval.datasets.proteins import LAYOUTS
from eval.datasets.records import Dataset
from eval.datasets.store import DatasetStore

LETTERS = list("ACDEFGHIKLMNPQRSTVWY")


def protein(number: int, length: int = 50) -> str:
    return "".join(np.random.default_rng(number).choice(LETTERS, length))


def write(path: Path, rows: list[dict]) -> None:
    """A table in the form that its suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        sign = "\t" if path.suffix in (".tsv", ".txt") else ","
        cells = [[*rows[0]], *([str(value) for value in row.values()] for row in rows)]
        path.write_text("\n".join(sign.join(f'"{c}"' if sign in c else c for c in line) for line in cells) + "\n")


def write_splits(folder: Path, names: tuple[str, str, str], row: Callable[[int], dict], number: int = 4) -> None:
    """Files of train, validation and test with `number` rows each, numbered through."""
    for i, name in enumerate(names):
        if name:
            write(folder / name, [row(i * number + j) for j in range(number)])


def got(name: str, folder: Path) -> Dataset:
    return DatasetStore(BenchmarksConfig(sources={name: str(folder)}), 0, LAYOUTS).get(name)


def labels(dataset: Dataset, split: str = "test") -> list:
    return [r.label.tolist() if isinstance(r.label, np.ndarray) else r.label for r in dataset.splits[split]]
