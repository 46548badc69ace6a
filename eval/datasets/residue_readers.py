"""Publishers' files of labelled residues, read into entries, and entries made into a dataset."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from configs.errors import UserError
from data_pipeline.structure.chain import AMINO_ACIDS
from eval.datasets.files import Recorded
from eval.datasets.records import IGNORED, SPLITS, Dataset, Files, Record, Target

_STANDARD = frozenset(AMINO_ACIDS)


@dataclass(frozen=True)
class Entry:
    """One sequence as a publisher gives it."""

    key: str
    sequence: str
    label: np.ndarray
    """int64 class or float64 number of each letter of the sequence."""
    split: str = "train"
    """One of SPLITS."""
    part: str = ""
    """Named part of the test split."""


class Source:
    """Files of one layout, with the hash of what was read of them."""

    def __init__(self, files: Files, prefix: str) -> None:
        self._files = Recorded(files)
        self._prefix = f"{prefix}/" if prefix else ""

    def has(self, path: str) -> bool:
        """Whether the layout has this file."""
        return self._files.has(self._prefix + path)

    def names(self, prefix: str = "") -> list[str]:
        """Paths below the layout's folder, sorted."""
        return [name[len(self._prefix) :] for name in self._files.names(self._prefix + prefix)]

    def read(self, path: str) -> bytes:
        """A file's bytes."""
        return self._files.read(self._prefix + path)

    def text(self, path: str) -> str:
        """A file's text.

        Raises:
            UserError: it is no text.
        """
        try:
            return self.read(path).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"file {self._prefix}{path}: is no UTF-8 text ({error.reason}); fetch it again") from None

    def sha256(self) -> str:
        """Of everything read so far."""
        return self._files.sha256()


def fasta(text: str) -> list[tuple[str, str, list[str]]]:
    """(first word of the header, rest of the header, lines below it) of every entry."""
    entries = []
    for block in text.replace("\r", "").split(">")[1:]:
        header, *lines = block.split("\n")
        name, _, rest = header.strip().partition(" ")
        entries.append((name, rest.strip(), [line.strip() for line in lines if line.strip()]))
    return entries


def attributes(header: str) -> dict[str, str]:
    """`NAME=value` words of a header, as FLIP and biotrainer write them."""
    return dict(re.findall(r"(\w+)=(\S+)", header))


def classes_of(letters: str, numbers: Mapping[str, int]) -> np.ndarray:
    """int64 [N]: number of each letter, IGNORED for letters without one."""
    return np.array([numbers.get(letter, IGNORED) for letter in letters], dtype=np.int64)


def masked(label: np.ndarray, mask: Sequence[bool] | np.ndarray) -> np.ndarray:
    """The labels where the mask holds, and nothing elsewhere; a mask of another length leaves no label."""
    if len(mask) != len(label):
        return label[:0]
    nothing = np.nan if label.dtype.kind == "f" else IGNORED
    return np.where(np.asarray(mask, dtype=bool), label, nothing).astype(label.dtype)


def split_of(header: Mapping[str, str]) -> str:
    """FLIP's SET and VALIDATION, or biotrainer's SET."""
    named = header.get("SET", "train").lower()
    if named in ("val", "valid", "validation") or header.get("VALIDATION", "").lower() == "true":
        return "validation"
    return "train" if named == "train" else "test"


def dataset_of(
    name: str,
    layout: str,
    target: Target,
    classes: Sequence[str],
    entries: Iterable[Entry],
    source: Source,
    notes: Sequence[str] = (),
) -> Dataset:
    """A dataset of a publisher's entries.

    What cannot be used is left out and counted in the notes: labels of another length than their sequence, and
    sequences without a label. Letters, crops and splits that are not there are the store's matter.

    Raises:
        UserError: nothing is left.
    """
    given = list(entries)
    fitting = [entry for entry in given if len(entry.label) == len(entry.sequence) > 0]
    labelled = [entry for entry in fitting if _known(entry.label).any()]
    notes = [*notes]
    if len(given) > len(fitting):
        notes.append(f"{len(given) - len(fitting)} sequences whose labels have another length were left out")
    if len(fitting) > len(labelled):
        notes.append(f"{len(fitting) - len(labelled)} sequences without a labelled residue were left out")
    if not labelled:
        raise UserError(f"dataset {name}: {layout} holds no labelled sequence; fetch the files again")
    splits = {split: tuple(_records(labelled, split)) for split in SPLITS}
    parts = [entry.part for entry in labelled if entry.split == "test"]
    named = dict.fromkeys(part for part in parts if part)
    groups = {part: np.array([p == part for p in parts]) for part in named} if len(set(parts)) > 1 else {}
    return Dataset(name, layout, source.sha256(), target, tuple(classes), splits, tuple(notes), groups)


def standard(sequence: str) -> str:
    """In our letters: upper case, X for what is no standard residue; of unchanged length."""
    return "".join(letter if letter in _STANDARD else "X" for letter in sequence.upper())


def _known(label: np.ndarray) -> np.ndarray:
    return np.isfinite(label) if label.dtype.kind == "f" else label != IGNORED


def _records(entries: Iterable[Entry], split: str) -> Iterable[Record]:
    seen: dict[str, int] = {}
    for entry in entries:
        if entry.split != split:
            continue
        seen[entry.key] = seen.get(entry.key, 0) + 1
        key = entry.key if seen[entry.key] == 1 else f"{entry.key}#{seen[entry.key]}"
        yield Record(f"{split}:{key}", (entry.sequence,), entry.label)
