"""Benchmark datasets by name, found in the user's folders, archives or on the hub, each read once."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from configs.benchmarks import BenchmarksConfig
from configs.errors import UserError
from eval.datasets.files import Recorded, matching, open_files
from eval.datasets.preparation import prepared
from eval.datasets.records import SPLITS, Dataset, Files, Layout
from eval.tasks.protocol import DatasetMissing


class DatasetStore:
    """Datasets as the configuration wants them; a process reads and prepares each once.

    Args:
        config: where files lie, and limits.
        seed: of the draws under those limits.
        layouts: by dataset name, in order of preference.
    """

    def __init__(self, config: BenchmarksConfig, seed: int, layouts: Mapping[str, tuple[Layout, ...]]) -> None:
        self._config, self._seed, self._layouts = config, seed, layouts
        self._datasets: dict[str, Dataset] = {}
        self._places: dict[str, Files] = {}

    def get(self, name: str) -> Dataset:
        """The dataset, with three splits, clusters and a hash.

        Raises:
            DatasetMissing: no layout of it is where the configuration says.
            UserError: its files are there, and damaged or of another form.
        """
        if name not in self._datasets:
            self._datasets[name] = self._read(name)
        return self._datasets[name]

    def _read(self, name: str) -> Dataset:
        if name not in self._layouts:
            raise UserError(f"dataset {name!r}: unknown; allowed: {', '.join(sorted(self._layouts))}")
        layout, files, prefix = self._find(name)
        recorded = Recorded(files)
        dataset = prepared(layout.read(recorded, prefix), self._config, self._seed)
        return replace(dataset, sha256=_hash(dataset, recorded.sha256()))

    def _find(self, name: str) -> tuple[Layout, Files, str]:
        source = self._config.sources.get(name)
        place = source or self._root()
        if place is None:
            raise DatasetMissing(
                f"dataset {name!r}: nowhere to look for it; set benchmarks.root or benchmarks.sources.{name} (or the "
                "environment variable SAPLM_DATA)"
            )
        if place not in self._places:
            self._places[place] = open_files(place)
        files = self._places[place]
        for layout in self._layouts[name]:
            prefix = "" if source else layout.prefix
            if all(matching(files, _joined(prefix, need)) for need in layout.needs):
                return layout, files, prefix
        wanted = "; ".join(
            f"{layout.name} ({', '.join(_joined('' if source else layout.prefix, need) for need in layout.needs)})"
            for layout in self._layouts[name]
        )
        raise DatasetMissing(
            f"dataset {name!r}: not in {place}; looked for {wanted}; add one of them, or name another place by "
            f"benchmarks.sources.{name}"
        )

    def _root(self) -> str | None:
        if self._config.root is not None:
            return str(self._config.root)
        data = os.environ.get("SAPLM_DATA")
        folder = Path(data) / "benchmarks" if data else None
        return str(folder) if folder is not None and folder.is_dir() else None


def _hash(dataset: Dataset, files: str) -> str:
    """Of the files read and of every example chosen: equal hashes mean equal splits, sequences and labels."""
    digest = hashlib.sha256(json.dumps([dataset.name, files, dataset.target, dataset.classes]).encode())
    for split in SPLITS:
        for record in dataset.splits[split]:
            label = record.label.tolist() if isinstance(record.label, np.ndarray) else record.label
            digest.update(json.dumps([split, record.key, record.sequences, label]).encode())
    return digest.hexdigest()


def _joined(prefix: str, path: str) -> str:
    return f"{prefix}/{path}" if prefix else path
