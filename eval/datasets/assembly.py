"""Datasets from what publishers' files say: keys, labels and class names brought to our form."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from configs.errors import UserError
from eval.datasets.files import Recorded
from eval.datasets.records import SPLITS, Dataset, Files, Record, Target

PAIR_CLASSES = ("no interaction", "interaction")


@dataclass(frozen=True)
class Entry:
    """An example as its file has it."""

    key: str
    sequences: tuple[str, ...]
    label: Any
    """A class (name or number), a number, or label names or numbers; text or JSON values; None: there is none."""
    cluster: int = -1


def recorded(files: Files) -> Recorded:
    """Files that remember what was read, for the hash; those of a store do already."""
    return files if isinstance(files, Recorded) else Recorded(files)


def assembled(
    name: str,
    source: str,
    files: Recorded,
    target: Target,
    entries: Mapping[str, Sequence[Entry]],
    *,
    classes: Sequence[str] | None = None,
    notes: Sequence[str] = (),
    groups: Mapping[str, np.ndarray] | None = None,
) -> Dataset:
    """A dataset of entries by split; splits that are not named stay empty.

    Args:
        classes: names of the classes or labels; without them they come from the entries: numbers 0 to the largest
            that occurs, or the texts that occur, sorted.
        groups: parts of the test entries.

    Entries without a label, or with one that is not among `classes`, are left out and counted in a note. Keys that
    occur again get a number.

    Raises:
        UserError: a label is not of the target's kind.
    """
    labels = {split: [_plain(entry.label, target, source) for entry in part] for split, part in entries.items()}
    names = _names([label for part in labels.values() for label in part], target) if classes is None else classes
    number = {text: i for i, text in enumerate(names)}
    number.update({str(i): i for i in range(len(names))} if classes is None or not _numeric(names) else {})
    used: Counter[str] = Counter()
    splits: dict[str, tuple[Record, ...]] = dict.fromkeys(SPLITS, ())
    lacking, stays = 0, np.zeros(0, dtype=bool)
    for split in SPLITS:
        records, kept = [], []
        for entry, label in zip(entries.get(split, ()), labels.get(split, ()), strict=True):
            coded = _coded(label, target, number)
            kept.append(coded is not None)
            if coded is None:
                lacking += 1
                continue
            used[entry.key] += 1
            key = entry.key if used[entry.key] == 1 else f"{entry.key} ({used[entry.key]})"
            records.append(Record(key, entry.sequences, coded, entry.cluster))
        splits[split] = tuple(records)
        stays = np.array(kept, dtype=bool) if split == "test" else stays
    if lacking:
        notes = (*notes, f"{lacking:,} records without a label of this task left out")
    return Dataset(
        name,
        source,
        files.sha256(),
        target,
        () if target == "value" else tuple(PAIR_CLASSES if target == "pair_class" else names),
        splits,
        tuple(notes),
        {group: np.asarray(part, dtype=bool)[stays] for group, part in (groups or {}).items()},
    )


def _plain(label: Any, target: Target, source: str) -> Any:
    """A finite number; a class or label as text; a list of texts; None where there is none."""
    if label is None or (isinstance(label, str) and not label.strip()):
        return None
    try:
        if target == "value":
            value = float(_first(label))
            return value if math.isfinite(value) else None
        if target == "labels":
            return tuple(dict.fromkeys(_text(part) for part in _parts(label)))
        return _text(_first(label))
    except (TypeError, ValueError):
        raise UserError(f"{source}: {label!r} is no label of a {target} task; fetch the files again") from None


def _first(label: Any) -> Any:
    """TAPE writes numbers as lists of one."""
    if isinstance(label, str) and label.startswith("["):
        label = json.loads(label)
    if isinstance(label, list | tuple):
        if len(label) != 1:
            raise ValueError
        return label[0]
    return label


def _parts(label: Any) -> list[Any]:
    """Members of a set of labels: a list, JSON, or text parted by commas, semicolons or blanks; or a row of 0 and 1."""
    if isinstance(label, str):
        label = json.loads(label) if label.startswith("[") else label.replace(",", " ").replace(";", " ").split()
    parts = list(label) if isinstance(label, list | tuple) else [label]
    if len(parts) > 2 and set(parts) <= {0, 1}:
        return [i for i, on in enumerate(parts) if on]
    return parts


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _names(labels: Sequence[Any], target: Target) -> list[str]:
    if target in ("value", "pair_class"):
        return ["0", "1"] if target == "pair_class" else []
    present = {text for label in labels if label is not None for text in ([label] if target == "class" else label)}
    if _numeric(present):
        return [str(i) for i in range(max((int(text) for text in present), default=-1) + 1)]
    return sorted(present)


def _numeric(names: Sequence[str] | set[str]) -> bool:
    return all(text.isdecimal() for text in names)


def _coded(label: Any, target: Target, number: Mapping[str, int]) -> int | float | np.ndarray | None:
    if label is None or target == "value":
        return label
    if target == "labels":
        known = sorted({number[text] for text in label if text in number})
        return np.array(known, dtype=np.int64) if known else None
    return number.get(label)
