"""From a publisher's examples to ours: letters, crops, three splits that never mix, draws, clusters."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from configs.benchmarks import BenchmarksConfig
from configs.errors import UserError
from data_pipeline.structure.chain import AMINO_ACIDS, UNKNOWN_RESIDUE
from eval.clusters import pair_clusters
from eval.datasets.records import SPLITS, Dataset, Record
from eval.datasets.splitting import clusters_of, three_ways, two_ways

_LETTERS = str.maketrans({**{a: a for a in AMINO_ACIDS}, **dict.fromkeys("BJOUXZ", UNKNOWN_RESIDUE)})
_ALLOWED = frozenset(AMINO_ACIDS + "BJOUXZ")
_OF_RESIDUES = ("residue_class", "residue_value")


def prepared(dataset: Dataset, config: BenchmarksConfig, seed: int) -> Dataset:
    """A dataset as a layout reads it, ready for tasks.

    In this order: records that cannot be used leave; sequences (and labels of residues) are cropped; where the
    publisher's test set is not in the files, the validation set takes its place; what stands in two splits stays in the
    one that is measured on; a missing validation set is taken from train by cluster; limits are drawn; test records
    get clusters.

    Raises:
        UserError: a split is empty.
    """
    for step in (_lettered, lambda d: _cropped(d, config.max_residues), _filled, _without_repeats, _validated):
        dataset = step(dataset)
        if not any(dataset.splits.values()):
            raise UserError(f"dataset {dataset.name!r} ({dataset.source}): no usable example; check its files")
    limits = {"train": config.max_train, "validation": config.max_validation, "test": config.max_test}
    for number, split in enumerate(SPLITS):
        dataset = _drawn(dataset, split, limits[split], seed + number)
        if not dataset.splits[split]:
            raise UserError(f"dataset {dataset.name!r} ({dataset.source}): no example in its {split} split")
    return _clustered(dataset)


def _lettered(dataset: Dataset) -> Dataset:
    """Upper case; X for what is no standard residue; records without a sequence or with other signs leave."""
    empty = strange = 0

    def usable(record: Record) -> Record | None:
        nonlocal empty, strange
        sequences = tuple(sequence.strip().upper() for sequence in record.sequences)
        if dataset.target not in _OF_RESIDUES:
            sequences = tuple(sequence.rstrip("*") for sequence in sequences)
        if not all(sequences):
            empty += 1
            return None
        if any(set(sequence) - _ALLOWED for sequence in sequences):
            strange += 1
            return None
        return replace(record, sequences=tuple(sequence.translate(_LETTERS) for sequence in sequences))

    dataset = _kept(dataset, usable)
    notes = [f"{empty:,} records without a sequence left out"] if empty else []
    notes += [f"{strange:,} records with signs that are no residues left out"] if strange else []
    return _noted(dataset, *notes)


def _cropped(dataset: Dataset, max_residues: int) -> Dataset:
    number = 0

    def crop(record: Record) -> Record:
        nonlocal number
        if all(len(sequence) <= max_residues for sequence in record.sequences):
            return record
        number += 1
        label = record.label[:max_residues] if dataset.target in _OF_RESIDUES else record.label
        return replace(record, sequences=tuple(s[:max_residues] for s in record.sequences), label=label)

    dataset = _kept(dataset, crop)
    return _noted(dataset, *([f"{number:,} sequences cropped to {max_residues:,} residues"] if number else []))


def _filled(dataset: Dataset) -> Dataset:
    """Test and train splits where the files lack the publisher's."""
    train, validation, test = (dataset.splits[split] for split in SPLITS)
    if not test and validation and train:
        dataset = replace(dataset.with_splits(test=validation, validation=()), groups={})
        return _noted(dataset, "the publisher's test set is not in the files: its validation set is the test set")
    if test and validation and not train:
        dataset = dataset.with_splits(train=validation, validation=())
        return _noted(dataset, "the publisher's train set is not in the files: its validation set is trained on")
    if train and test:
        return dataset
    pool = train or validation or test
    if not pool:
        return dataset
    parts = three_ways(pool)
    left = len(pool) - sum(len(part) for part in parts.values())
    how = "by protein, no test protein in train or validation" if len(pool[0].sequences) == 2 else "by sequence cluster"
    note = f"the files hold one of the publisher's sets ({len(pool):,} records), split here {how}"
    note += f"; {left:,} pairs of a test protein with another left out" if left else ""
    return _noted(replace(dataset.with_splits(**parts), groups={}), note)


def _without_repeats(dataset: Dataset) -> Dataset:
    """What stands in the test set leaves validation and train; what stands in validation leaves train."""
    seen: set[frozenset[str]] = set()
    left: list[str] = []
    splits = {}
    for split in reversed(SPLITS):
        records = dataset.splits[split]
        splits[split] = tuple(record for record in records if frozenset(record.sequences) not in seen)
        if len(splits[split]) < len(records):
            left.append(f"{len(records) - len(splits[split]):,} of {split}")
        seen.update(frozenset(record.sequences) for record in records)
    dataset = dataset.with_splits(**splits)
    return _noted(dataset, f"left out as identical to held-out sequences: {', '.join(left)}") if left else dataset


def _validated(dataset: Dataset) -> Dataset:
    train = dataset.splits["train"]
    if dataset.splits["validation"] or len(train) < 2:
        return dataset
    parts = two_ways(train, labels_stay=dataset.target == "class")
    dataset = dataset.with_splits(**parts)
    return _noted(dataset, f"{len(parts['validation']):,} validation records taken from train by sequence cluster")


def _drawn(dataset: Dataset, split: str, limit: int | None, seed: int) -> Dataset:
    records = dataset.splits[split]
    if limit is None or limit >= len(records):
        return dataset
    chosen = np.sort(np.random.default_rng(seed).permutation(len(records))[:limit])
    groups = {name: part[chosen] for name, part in dataset.groups.items()} if split == "test" else dataset.groups
    dataset = replace(dataset.with_splits(**{split: tuple(records[i] for i in chosen)}), groups=groups)
    return _noted(dataset, f"{limit:,} of {len(records):,} {split} records drawn from seed {seed}")


def _clustered(dataset: Dataset) -> Dataset:
    """Clusters of test records, unless they come with some."""
    test = dataset.splits["test"]
    if all(record.cluster >= 0 for record in test):
        return dataset
    width = len(test[0].sequences)
    clusters = clusters_of([sequence for record in test for sequence in record.sequences]).reshape(-1, width)
    clusters = clusters[:, 0] if width == 1 else pair_clusters(clusters[:, 0], clusters[:, 1])
    pairs = zip(test, clusters, strict=True)
    return dataset.with_splits(test=tuple(replace(record, cluster=int(cluster)) for record, cluster in pairs))


def _kept(dataset: Dataset, change: Callable[[Record], Record | None]) -> Dataset:
    """Records as changed, without those changed to None; groups of the test split follow."""
    changed = {split: [change(record) for record in records] for split, records in dataset.splits.items()}
    stays = np.array([record is not None for record in changed["test"]], dtype=bool)
    groups = {name: np.asarray(part)[stays] for name, part in dataset.groups.items()}
    splits = {split: _those(records) for split, records in changed.items()}
    return replace(dataset.with_splits(**splits), groups=groups)


def _those(records: Sequence[Record | None]) -> tuple[Record, ...]:
    return tuple(record for record in records if record is not None)


def _noted(dataset: Dataset, *notes: str) -> Dataset:
    return replace(dataset, notes=(*dataset.notes, *notes))
