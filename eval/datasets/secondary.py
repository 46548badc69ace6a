"""Secondary structure in three and eight states, as FLIP, PBC, proteinea, proteinglm and S-PLM publish it."""

import csv
import io
import re
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow.parquet

from configs.errors import UserError
from eval.datasets.records import IGNORED, Dataset, Files, Layout
from eval.datasets.residue_readers import Entry, Source, attributes, classes_of, dataset_of, fasta, masked, split_of

THREE = ("helix", "strand", "coil")
EIGHT = ("G", "H", "I", "B", "E", "S", "T", "C")
"""DSSP's letters; loops, blank in DSSP, are C."""
_LOOPS = "C-~ PL"
_THREE_NUMBERS = {**dict.fromkeys("HGI", 0), **dict.fromkeys("EB", 1), **dict.fromkeys("CST-~ PL", 2)}
_EIGHT_NUMBERS = {letter: i for i, letter in enumerate(EIGHT)} | dict.fromkeys(_LOOPS, EIGHT.index("C"))
_TESTS = ("CB513", "TS115", "CASP12", "CASP13", "CASP14")
_PBC = "Rostlab+pbc/supervised/secondary_structure"
_FLIP = "J-SNACKKB+FLIP/splits/secondary_structure"
_PARQUET = ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet")


def flip_entries(source: Source, folder: str, labels: str, numbers: dict[str, int]) -> Iterator[Entry]:
    """FLIP's per-residue splits: `sequences.fasta`, labels with SET and VALIDATION, `mask.fasta` where there is one."""
    sequences = {name: "".join(lines) for name, _, lines in fasta(source.text(folder + "sequences.fasta"))}
    masks = {}
    if source.has(folder + "mask.fasta"):
        masks = {name: "".join(lines) for name, _, lines in fasta(source.text(folder + "mask.fasta"))}
    for name, header, lines in fasta(source.text(folder + labels)):
        label = classes_of("".join(lines), numbers)
        if name in masks:
            label = masked(label, [digit == "1" for digit in masks[name]])
        yield Entry(name, sequences.get(name, ""), label, split_of(attributes(header)))


def csv_entries(source: Source, path: str, split: str, states: int) -> Iterator[Entry]:
    """proteinea's columns `input`, `dssp3`, `dssp8`, `disorder` (1 is ordered) and `cb513_mask` (1 counts)."""
    csv.field_size_limit(1 << 30)
    rows = csv.DictReader(io.StringIO(source.text(path)))
    column = f"dssp{states}"
    if not rows.fieldnames or not {"input", column} <= set(rows.fieldnames):
        raise UserError(f"file {path}: columns {rows.fieldnames}; needed are 'input' and {column!r}")
    part = path.rpartition("/")[2].partition(".")[0]
    for i, row in enumerate(rows):
        label = classes_of(row[column], _THREE_NUMBERS if states == 3 else _EIGHT_NUMBERS)
        for name in ("disorder", "cb513_mask"):
            if row.get(name):
                label = masked(label, np.array(re.findall(r"[\d.]+", row[name]), dtype=float) > 0.5)
        yield Entry(f"{part}_{i}", row["input"], label, split, part if split == "test" else "")


def _flip(folder: str) -> Callable[[Files, str], Dataset]:
    def read(files: Files, prefix: str) -> Dataset:
        source = Source(files, prefix)
        entries = flip_entries(source, folder, "sampled.fasta", _THREE_NUMBERS)
        return dataset_of("ss3", "FLIP secondary_structure, split sampled", "residue_class", THREE, entries, source)

    return read


def _flip_and_casp(files: Files, prefix: str) -> Dataset:
    source = Source(files, prefix)
    entries = []
    for entry in flip_entries(source, _FLIP + "/splits.zip/splits/", "sampled.fasta", _THREE_NUMBERS):
        part = "newPISCES364" if entry.split == "test" else ""
        entries.append(Entry(entry.key, entry.sequence, entry.label, entry.split, part))
    for name in ("CASP12", "CASP13", "CASP14"):
        path = f"{_PBC}/dataset_compilation/{name}.csv"
        if source.has(path):
            entries += csv_entries(source, path, "test", 3)
    words = "PBC secondary_structure: FLIP's split sampled, and CASP12, CASP13, CASP14 where they are there"
    return dataset_of("ss3", words, "residue_class", THREE, entries, source)


def _biotrainer(files: Files, prefix: str) -> Dataset:
    source = Source(files, prefix)
    entries = []
    for name, header, lines in fasta(source.text("secondary_structure.fasta")):
        facts = attributes(header)
        label = classes_of(facts.get("TARGET", ""), _THREE_NUMBERS)
        if "MASK" in facts:
            label = masked(label, [digit == "1" for digit in facts["MASK"]])
        split = split_of(facts)
        part = facts.get("SET", "") if split == "test" else ""
        entries.append(Entry(name, "".join(lines), label, split, part))
    return dataset_of("ss3", "PBC secondary_structure.fasta", "residue_class", THREE, entries, source)


def _proteinea(states: int) -> Callable[[Files, str], Dataset]:
    def read(files: Files, prefix: str) -> Dataset:
        source = Source(files, prefix)
        entries = list(csv_entries(source, "training_hhblits.csv", "train", states))
        for name in _TESTS:
            if source.has(f"{name}.csv"):
                entries += csv_entries(source, f"{name}.csv", "test", states)
        words = "proteinea/secondary_structure_prediction (NetSurfP-2.0)"
        return dataset_of(f"ss{states}", words, "residue_class", THREE if states == 3 else EIGHT, entries, source)

    return read


def _casp_only(files: Files, prefix: str) -> Dataset:
    source = Source(files, prefix)
    entries = [*csv_entries(source, "CASP12.csv", "train", 8), *csv_entries(source, "CASP13.csv", "test", 8)]
    note = "fitted on CASP12's chains alone, tested on CASP13's: too few for a number that compares with published ones"
    return dataset_of("ss8", "PBC's CASP12 and CASP13", "residue_class", EIGHT, entries, source, (note,))


def _proteinglm(states: int) -> Callable[[Files, str], Dataset]:
    def read(files: Files, prefix: str) -> Dataset:
        source = Source(files, prefix)
        entries = []
        for path, split in zip(_PARQUET, ("train", "test"), strict=True):
            table = pyarrow.parquet.read_table(io.BytesIO(source.read(path)), columns=["seq", "label"])
            for i, (sequence, label) in enumerate(zip(table["seq"], table["label"], strict=True)):
                numbers = np.array(label.as_py(), dtype=np.int64)
                inside = (numbers >= 0) & (numbers < states)
                label_of = np.where(inside, numbers, IGNORED)
                entries.append(Entry(f"{split}_{i}", sequence.as_py(), label_of, split))
        # The card of the eight-state set does not say which number is which state.
        classes = THREE if states == 3 else tuple(str(number) for number in range(states))
        return dataset_of(f"ss{states}", f"proteinglm/ssp_q{states}", "residue_class", classes, entries, source)

    return read


def _splm(files: Files, prefix: str) -> Dataset:
    source = Source(files, prefix)
    entries = []
    for name, split in (("train", "train"), ("valid", "validation"), ("test", "test")):
        if not source.has(f"{name}.csv"):
            continue
        for i, line in enumerate(source.text(f"{name}.csv").splitlines()[1:]):
            sequence, _, label = line.strip().partition(" ")
            entries.append(Entry(f"{name}_{i}", sequence, classes_of(label, {"0": 0, "1": 1, "2": 2}), split))
    return dataset_of("ss3", "S-PLM SS_data", "residue_class", THREE, entries, source)


SECONDARY_LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "ss3": (
        Layout(
            "PBC compilation of FLIP and CASP",
            "",
            (_FLIP + "/splits.zip/splits/sampled.fasta", _PBC + "/dataset_compilation/CASP12.csv"),
            _flip_and_casp,
        ),
        Layout("FLIP secondary_structure", _FLIP, ("splits.zip/splits/sampled.fasta",), _flip("splits.zip/splits/")),
        Layout("FLIP secondary_structure, unpacked", _FLIP, ("splits/sampled.fasta",), _flip("splits/")),
        Layout("PBC secondary_structure", _PBC, ("secondary_structure.fasta",), _biotrainer),
        Layout(
            "hf://datasets/proteinea/secondary_structure_prediction",
            "proteinea+secondary_structure_prediction",
            ("training_hhblits.csv", "CB513.csv"),
            _proteinea(3),
        ),
        Layout("hf://datasets/proteinglm/ssp_q3", "proteinglm+ssp_q3", _PARQUET, _proteinglm(3)),
        Layout("S-PLM SS_data", "duolinwang+S-PLM/SPLM_Data/SS_data", ("valid.csv",), _splm),
    ),
    "ss8": (
        Layout(
            "hf://datasets/proteinea/secondary_structure_prediction",
            "proteinea+secondary_structure_prediction",
            ("training_hhblits.csv", "CB513.csv"),
            _proteinea(8),
        ),
        Layout("hf://datasets/proteinglm/ssp_q8", "proteinglm+ssp_q8", _PARQUET, _proteinglm(8)),
        Layout("PBC CASP12 and CASP13", _PBC + "/dataset_compilation", ("CASP12.csv", "CASP13.csv"), _casp_only),
    ),
}
