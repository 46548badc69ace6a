"""Real files of proteins have the counts of their description, and splits that never mix."""

from pathlib import Path

import pytest

from configs.benchmarks import BenchmarksConfig
from eval.datasets.files import open_files
from eval.datasets.functions import experimental_terms
from eval.datasets.proteins import LAYOUTS
from eval.datasets.records import SPLITS, Dataset, Record
from eval.datasets.store import DatasetStore
from eval.datasets.tables import fasta
from eval.tasks.protocol import DatasetMissing


def raw(name: str, layout: str, root: Path) -> Dataset:
    """As the layout reads the real files, before preparation."""
    found = next(entry for entry in LAYOUTS[name] if entry.name.startswith(layout))
    return found.read(open_files(root / "benchmarks"), found.prefix)


@pytest.mark.parametrize(
    ("name", "layout", "counts", "classes"),
    [
        ("fold", "S-PLM", (12_312, 736, 0), 1195),
        ("thermostability", "FLIP meltome, clusters", (2_940, 0, 1_504), 0),
        ("ec", "S-PLM", (0, 1_729, 0), 538),
        ("localisation_10", "DeepLoc", (0, 1_678 - 23, 2_768), 10),
        ("localisation_2", "DeepLoc", (0, 1_021, 1_746), 2),
        ("gb1", "FLIP gb1, three_vs_rest", (2_691, 299, 5_743), 0),
    ],
)
def test_real_files_have_the_counts_of_their_description(
    name: str, layout: str, counts: tuple, classes: int, real_data: Path
) -> None:
    dataset = raw(name, layout, real_data)
    assert tuple(len(dataset.splits[split]) for split in SPLITS) == counts
    assert len(dataset.classes) == classes


def test_real_folds_carry_scopes_names(real_data: Path) -> None:
    dataset = raw("fold", "S-PLM", real_data)
    assert dataset.classes[0] == "a.1"
    assert len(set(dataset.classes)) == 1195
    assert dataset.splits["train"][0] == Record("d1v4wb_", dataset.splits["train"][0].sequences, 0)


def test_real_yeast_proteins_have_the_experimental_terms_of_their_description(real_data: Path) -> None:
    files = open_files(real_data / "benchmarks")
    yeast = {header.split()[0].split("|")[2] for header, _ in fasta(files, "yeast_swissprot.fasta.gz")}
    terms = [(entry, term) for entry, term in experimental_terms(files) if entry in yeast]
    assert (len({entry for entry, _ in terms}), len(terms)) == (4_858, 26_057)


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_real_datasets_are_ready_and_their_splits_never_mix(name: str, real_data: Path) -> None:
    store = DatasetStore(BenchmarksConfig(root=real_data / "benchmarks"), 0, LAYOUTS)
    try:
        dataset = store.get(name)
    except DatasetMissing as missing:
        pytest.skip(str(missing))
    parts = [{frozenset(r.sequences) for r in dataset.splits[split]} for split in SPLITS]
    assert all(parts)
    assert len(parts[0] | parts[1] | parts[2]) == sum(map(len, parts))
    assert all(record.cluster >= 0 for record in dataset.splits["test"])
    assert len({record.cluster for record in dataset.splits["test"]}) > 100
