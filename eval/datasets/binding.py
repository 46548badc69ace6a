"""Residues that bind metal ions, nucleic acids, small molecules, and the ligands of GPSite."""

from collections.abc import Callable, Iterator

import numpy as np

from configs.errors import UserError
from eval.datasets.records import Dataset, Files, Layout
from eval.datasets.residue_readers import Entry, Source, dataset_of, fasta
from eval.datasets.secondary import flip_entries

CLASSES = ("other", "binding")
KINDS = ("metal", "nuclear", "small")
LIGANDS = ("ATP", "CA", "DNA", "HEM", "MG", "MN", "PEP", "PRO", "RNA", "ZN")
_BITS = {"small": 4, "nuclear": 2, "metal": 1}
"""FLIP numbers a residue's ligands by the bits small, nuclear, metal."""
_DEVELOPMENT = "Rostlab+bindPredict/data/development_set"
_FLIP = "J-SNACKKB+FLIP/splits/bind"


def _bind_predict(kind: str) -> Callable[[Files, str], Dataset]:
    def read(files: Files, prefix: str) -> Dataset:
        source = Source(files, prefix)
        sites = dict(_sites(source, f"binding_residues_2.5_{kind}.txt"))
        tested = set(source.text("uniprot_test.txt").split())
        validated = set(source.text("ids_split5.txt").split()) if source.has("ids_split5.txt") else set()
        entries, outside = [], 0
        for name, _, lines in fasta(source.text("all.fasta")):
            sequence = "".join(lines)
            at = sites.get(name, np.empty(0, dtype=np.int64))
            outside += int((at > len(sequence)).sum())
            label = np.zeros(len(sequence), dtype=np.int64)
            label[at[at <= len(sequence)] - 1] = 1
            split = "test" if name in tested else "validation" if name in validated else "train"
            entries.append(Entry(name, sequence, label, split))
        notes = ["validation is the publisher's fifth part for cross-validation"] if validated else []
        if outside:
            notes.append(f"{outside} binding residues beyond the end of their sequence were left out")
        words = "bindPredict development set, tested on its TestSet300"
        return dataset_of(f"binding_{kind}", words, "residue_class", CLASSES, entries, source, notes)

    return read


def _sites(source: Source, path: str) -> Iterator[tuple[str, np.ndarray]]:
    """Name and int64 residue numbers, counted from 1, of `NAME<tab>n,n,...` lines."""
    for line in source.text(path).splitlines():
        name, _, numbers = line.partition("\t")
        words = [word for word in numbers.split(",") if word.strip()]
        try:
            at = np.array([int(word) for word in words], dtype=np.int64)
        except ValueError:
            raise UserError(f"file {path}: line {line[:60]!r} is not NAME<tab>number,number,...") from None
        if (at < 1).any():
            raise UserError(f"file {path}: residues of {name} are counted from 1; got {int(at.min())}")
        yield name, at


def _flip(kind: str, folder: str) -> Callable[[Files, str], Dataset]:
    numbers = {str(code): int(bool(code & _BITS[kind])) for code in range(8)}

    def read(files: Files, prefix: str) -> Dataset:
        source = Source(files, prefix)
        entries = flip_entries(source, folder, "from_publication.fasta", numbers)
        words = "FLIP bind, split from_publication"
        return dataset_of(f"binding_{kind}", words, "residue_class", CLASSES, entries, source)

    return read


def _gpsite(ligand: str) -> Callable[[Files, str], Dataset]:
    def read(files: Files, prefix: str) -> Dataset:
        source = Source(files, prefix)
        entries = []
        for split in ("train", "test"):
            path = f"{ligand}_{split}.txt"
            if not source.has(path):
                continue
            for name, _, lines in fasta(source.text(path)):
                if len(lines) < 2:
                    raise UserError(
                        f"file {path}: {name} has {len(lines)} lines; needed are a sequence and its 0s and 1s"
                    )
                label = np.array([int(digit == "1") for digit in lines[1]], dtype=np.int64)
                entries.append(Entry(name, lines[0], label, split))
        words = f"GPSite {ligand}"
        return dataset_of(f"binding_{ligand.lower()}", words, "residue_class", CLASSES, entries, source)

    return read


BINDING_LAYOUTS: dict[str, tuple[Layout, ...]] = {
    f"binding_{kind}": (
        Layout(
            "bindPredict development set",
            _DEVELOPMENT,
            ("all.fasta", "uniprot_test.txt", f"binding_residues_2.5_{kind}.txt"),
            _bind_predict(kind),
        ),
        Layout("FLIP bind", _FLIP, ("splits.zip/splits/from_publication.fasta",), _flip(kind, "splits.zip/splits/")),
        Layout("FLIP bind, unpacked", _FLIP, ("splits/from_publication.fasta",), _flip(kind, "splits/")),
    )
    for kind in KINDS
} | {
    f"binding_{ligand.lower()}": (
        Layout("GPSite", "biomed-AI+GPSite/datasets", (f"{ligand}_train.txt",), _gpsite(ligand)),
    )
    for ligand in LIGANDS
}
