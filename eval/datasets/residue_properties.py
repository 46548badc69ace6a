"""Disorder (CheZOD scores), conservation in nine classes, and membrane topology."""

from collections.abc import Callable

import numpy as np

from configs.errors import UserError
from eval.datasets.records import Dataset, Files, Layout
from eval.datasets.residue_readers import Entry, Source, attributes, classes_of, dataset_of, fasta, split_of
from eval.datasets.secondary import flip_entries

NINE = tuple(str(number) for number in range(1, 10))
"""ConSurf's classes, 1 the most variable, 9 the most conserved."""
TOPOLOGY = ("helix", "strand", "signal peptide", "inside", "outside")
MISSING_SCORE = 999.0
_NINE_NUMBERS = {name: i for i, name in enumerate(NINE)}
_TOPOLOGY_NUMBERS = {"H": 0, "h": 0, "B": 1, "b": 1, "S": 2, "1": 3, "i": 3, "2": 4, "o": 4}
"""TMbed's letters; U, whose side is unknown, has none."""
_FLIP = "J-SNACKKB+FLIP/splits/conservation"
_PBC = "Rostlab+pbc/supervised"
_TRAIN, _TEST = "CheZOD1174_training_set", "CheZOD117_test_set"


def _scores(words: list[str], path: str, name: str) -> np.ndarray:
    """float64 [N], NaN where the score is missing."""
    try:
        values = np.array([float(word) for word in words])
    except ValueError as error:
        raise UserError(f"file {path}: scores of {name}: {error}") from None
    return np.where(values >= MISSING_SCORE, np.nan, values)


def _disorder_fasta(file: str) -> Callable[[Files, str], Dataset]:
    def read(files: Files, prefix: str) -> Dataset:
        source = Source(files, prefix)
        entries = []
        for name, header, lines in fasta(source.text(file)):
            facts = attributes(header)
            scores = _scores([word for word in facts.get("TARGET", "").split(";") if word], file, name)
            entries.append(Entry(name, "".join(lines), scores, split_of(facts)))
        return dataset_of("disorder", "PBC disorder (CheZOD scores)", "residue_value", (), entries, source)

    return read


def _chezod(files: Files, prefix: str) -> Dataset:
    source = Source(files, prefix)
    entries = []
    for stem, split in ((_TRAIN, "train"), (_TEST, "test")):
        if not source.has(f"{stem}_sequences.fasta"):
            continue
        path = f"{stem}_CheZOD_scores.txt"
        scores = {}
        for line in source.text(path).splitlines():
            name, _, numbers = line.partition(":")
            scores[name.strip()] = _scores([word for word in numbers.split(",") if word.strip()], path, name)
        for name, _, lines in fasta(source.text(f"{stem}_sequences.fasta")):
            entries.append(Entry(name, "".join(lines), scores.get(name, np.empty(0)), split))
    return dataset_of("disorder", "SETH's CheZOD1174 and CheZOD117", "residue_value", (), entries, source)


def _flip(folder: str) -> Callable[[Files, str], Dataset]:
    def read(files: Files, prefix: str) -> Dataset:
        source = Source(files, prefix)
        entries = flip_entries(source, folder, "sampled.fasta", _NINE_NUMBERS)
        return dataset_of("conservation", "FLIP conservation, split sampled", "residue_class", NINE, entries, source)

    return read


def _conservation_fasta(files: Files, prefix: str) -> Dataset:
    source = Source(files, prefix)
    entries = []
    for name, header, lines in fasta(source.text("conservation.fasta")):
        facts = attributes(header)
        label = classes_of(facts.get("TARGET", ""), _NINE_NUMBERS)
        entries.append(Entry(name, "".join(lines), label, split_of(facts)))
    return dataset_of("conservation", "PBC conservation.fasta", "residue_class", NINE, entries, source)


def _tmbed(files: Files, prefix: str) -> Dataset:
    source = Source(files, prefix)
    entries = []
    for path in ("alpha.fasta", "beta.fasta"):
        for name, _, lines in fasta(source.text(path)):
            if len(lines) != 2:
                raise UserError(f"file {path}: {name} has {len(lines)} lines; needed are a sequence and its states")
            entries.append(Entry(name, lines[0], classes_of(lines[1], _TOPOLOGY_NUMBERS)))
    notes = ["alpha-helical and beta-barrel membrane proteins alone: the globular proteins have no states there"]
    return dataset_of("membrane_topology", "TMbed alpha and beta", "residue_class", TOPOLOGY, entries, source, notes)


PROPERTY_LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "disorder": (
        Layout("PBC disorder", _PBC + "/disorder", ("disorder.fasta",), _disorder_fasta("disorder.fasta")),
        Layout(
            "PBC disorder_chezod",
            _PBC + "/disorder_chezod",
            ("disorder_chezod.fasta",),
            _disorder_fasta("disorder_chezod.fasta"),
        ),
        Layout(
            "SETH CheZOD",
            _PBC + "/disorder/dataset_compilation",
            (f"{_TRAIN}_sequences.fasta", f"{_TRAIN}_CheZOD_scores.txt"),
            _chezod,
        ),
    ),
    "conservation": (
        Layout("FLIP conservation", _FLIP, ("splits.zip/splits/sampled.fasta",), _flip("splits.zip/splits/")),
        Layout("FLIP conservation, unpacked", _FLIP, ("splits/sampled.fasta",), _flip("splits/")),
        Layout("PBC conservation", _PBC + "/conservation", ("conservation.fasta",), _conservation_fasta),
    ),
    "membrane_topology": (Layout("TMbed", "BernhoferM+TMbed/data/datasets", ("alpha.fasta", "beta.fasta"), _tmbed),),
}
