"""Tasks on labelled datasets: a head fitted on the train split, settings chosen on validation, measured on test."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from configs.evaluate import EvalConfig
from eval.datasets.records import SPLITS, Dataset, Record
from eval.finetune import tuned_predictions
from eval.heads.describe import described
from eval.heads.frozen import Prediction, frozen_predictions
from eval.heads.inputs import RESIDUE_TARGETS, distinct_sequences, labelled_residues, labels_of, within_residues
from eval.intervals import Measurement, scored
from eval.leakage import UNSEEN, apply_leakage
from eval.metrics import Undefined
from eval.models.open import device_of
from eval.tasks.probe_scores import LOWER_IS_BETTER, best_threshold, columns_of, judge_of, of_each
from eval.tasks.protocol import Context, Outcome, TaskFacts, Wants

Scope = Literal["all", "protein"]
"""A statistic over all examples (or all residues of all examples) together; or of each protein, then averaged."""


@dataclass(frozen=True)
class Metric:
    """A number that a task reports.

    `Metric("accuracy", "accuracy")`, `Metric("auroc", "auroc")`, `Metric("fmax", "fmax")`,
    `Metric("spearman", "spearman")`; the first of a task is the one that settings are chosen by on validation.
    """

    name: str
    """In results.json."""
    statistic: str
    """Of `STATISTICS`: accuracy, macro_f1, mcc (predicted classes; mcc of two by the threshold that is best on
    validation); auroc, auprc (score of class 1 of two); fmax, aupr (label sets); spearman, pearson, rmse (numbers)."""
    scope: Scope = "all"
    """`protein` only for targets that belong to residues."""


@dataclass(frozen=True)
class ProbeTask:
    """A head on the trunk, frozen or tuned as `config.probe_of(name)` says, for any of the six targets."""

    name: str
    dataset: str
    """In the registry of layouts."""
    measures: tuple[Metric, ...]
    method: str
    """How the labels and the metric are defined, exactly, for people; one sentence without a full stop."""
    label: str
    """For people, e.g. `fold, 1,195 classes`."""
    groups: tuple[str, ...] = ()
    """Names of `Dataset.groups` that it measures apart too, as `<metric>_<group>`."""
    version: str = "1"
    needs_shards: bool = False

    @property
    def metrics(self) -> tuple[str, ...]:
        """Of the whole test split, of its groups, and of the proteins that training did not see."""
        names = [measure.name for measure in self.measures]
        parts = (*self.groups, *({UNSEEN} - set(self.groups)))
        return (*names, *(f"{name}_{part}" for part in parts for name in names))

    def facts(self, context: Context) -> TaskFacts:
        """Protocol, head and data as the configuration says.

        Raises:
            DatasetMissing: the dataset is not there.
        """
        dataset = context.datasets.get(self.dataset)
        frozen, head = described(context.config.probe_of(self.name), context.config, dataset.target)
        head += f"; settings by {self.measures[0].name} on validation"
        data = "; ".join((dataset.source, *dataset.notes))
        return TaskFacts(self.version, frozen, head, self.method, data, dataset.sha256)

    def wants(self, context: Context) -> Wants:
        """Sequences of the records that are used; nothing where the trunk is tuned."""
        if context.config.probe_of(self.name).protocol != "frozen":
            return Wants()
        dataset = context.datasets.get(self.dataset)
        if context.config.benchmarks.leakage == "drop":
            dataset, _ = _without_leaks(dataset, context.config)
        dataset = used_part(dataset, context.config)
        sequences = tuple(distinct_sequences([record for split in SPLITS for record in dataset.splits[split]]))
        return Wants(residues=sequences) if dataset.target in RESIDUE_TARGETS else Wants(means=sequences)

    def run(self, context: Context) -> Outcome:
        """Measurements of every metric, part of the test split and seed; skipped where nothing can be learned."""
        config, probe = context.config, context.config.probe_of(self.name)
        dataset, leaks = _without_leaks(context.datasets.get(self.dataset), config)
        dataset = used_part(dataset, config)
        reason, remarks = look_at(dataset)
        if reason is not None:
            return Outcome(skipped=reason, remarks=(leaks,))
        measurements: list[Measurement] = []
        found = [leaks, *remarks]
        for prediction in self._predictions(context, dataset):
            measurements += self._measured(dataset, prediction)
            seed = "" if (probe.protocol, probe.head) == ("frozen", "linear") else f"seed {prediction.seed}: "
            sign = -1.0 if self.measures[0].statistic in LOWER_IS_BETTER else 1.0
            on = f"{self.measures[0].name} {sign * prediction.quality:.4f} on validation"
            found.append(f"{seed}{prediction.chosen}, {on if np.isfinite(prediction.quality) else 'by loss'}")
        if not measurements:
            return Outcome(skipped="no metric is defined on the test split", remarks=tuple(found))
        return Outcome(tuple(measurements), remarks=tuple(found))

    def _predictions(self, context: Context, dataset: Dataset) -> Iterator[Prediction]:
        config, probe = context.config, context.config.probe_of(self.name)
        labels = labels_of(dataset.splits["validation"], dataset.target, len(dataset.classes))
        judge = judge_of(self.measures[0].statistic, dataset.target, labels)
        about = (dataset.splits, dataset.target, len(dataset.classes), probe, judge)
        if probe.protocol == "frozen":
            return frozen_predictions(context.features, *about, device_of(config))
        half = config.features.precision == "bfloat16"
        return tuned_predictions(context.features.model.trunk, *about, config.batch_tokens, half)

    def _measured(self, dataset: Dataset, prediction: Prediction) -> list[Measurement]:
        records = dataset.splits["test"]
        labels = labels_of(records, dataset.target, len(dataset.classes))
        counts = None
        if dataset.target in RESIDUE_TARGETS:
            counts = np.array([len(labelled_residues(record)) for record in records], dtype=np.int64)
        everything = np.ones(len(records), dtype=bool)
        parts = {"": everything, **{f"_{name}": np.asarray(mask) for name, mask in dataset.groups.items()}}
        found = []
        for suffix, mask in parts.items():
            for measure in self.measures:
                if f"{measure.name}{suffix}" not in self.metrics or not mask.any():
                    continue
                rows = torch.from_numpy(mask if counts is None else np.repeat(mask, counts))
                part = [record for record, kept in zip(records, mask.tolist(), strict=True) if kept]
                count = None if counts is None else counts[mask]
                one = _measurement(measure, dataset, prediction, (part, rows, labels, count), suffix)
                found += [one] if one is not None else []
        return found


def _measurement(
    measure: Metric,
    dataset: Dataset,
    prediction: Prediction,
    part: tuple[list[Record], torch.Tensor, torch.Tensor, np.ndarray | None],
    suffix: str,
) -> Measurement | None:
    """Of one part of the test split; None where the statistic cannot be had of such labels."""
    records, rows, labels, counts = part
    scores, labels = prediction.scores[rows], labels[rows]
    name, keys, clusters = f"{measure.name}{suffix}", [r.key for r in records], np.array([r.cluster for r in records])
    if measure.scope == "protein":
        assert counts is not None, (measure.name, "of each protein needs labels of residues")
        defined, values = of_each(measure.statistic, dataset.target, scores, labels, counts)
        if not len(defined):
            return None
        return scored(name, "mean", [keys[i] for i in defined], clusters[defined], {"values": values}, prediction.seed)
    threshold = None
    if measure.statistic == "mcc" and dataset.target in ("class", "residue_class") and len(dataset.classes) == 2:
        held_out = labels_of(dataset.splits["validation"], dataset.target, 2)
        threshold = best_threshold(prediction.validation, held_out)
    try:
        columns = columns_of(measure.statistic, dataset.target, scores, labels, threshold)
    except Undefined:
        return None
    return scored(name, measure.statistic, keys, clusters, columns, prediction.seed, counts)


def used_part(dataset: Dataset, config: EvalConfig) -> Dataset:
    """The records that are looked at: for residues, proteins with labels, and of train and validation only as many as
    `benchmarks.max_train_residues` asks for."""
    if dataset.target not in RESIDUE_TARGETS:
        return dataset
    most = config.benchmarks.max_train_residues
    fit = {name: within_residues(dataset.splits[name], most, config.seed) for name in ("train", "validation")}
    labelled = np.array([len(labelled_residues(record)) > 0 for record in dataset.splits["test"]], dtype=bool)
    test = tuple(record for record, kept in zip(dataset.splits["test"], labelled.tolist(), strict=True) if kept)
    groups = {name: np.asarray(mask)[labelled] for name, mask in dataset.groups.items()}
    return replace(dataset.with_splits(test=test, **fit), groups=groups)


def look_at(dataset: Dataset) -> tuple[str | None, list[str]]:
    """Why nothing can be learned or measured, or None; and what people should know of the labels."""
    empty = [name for name in ("train", "test") if not dataset.splits[name]]
    if empty:
        return f"no labelled example in {' and '.join(empty)}", []
    labels = labels_of(dataset.splits["train"], dataset.target, len(dataset.classes))
    if not dataset.classes:
        return ("all training numbers are equal" if bool((labels == labels[0]).all()) else None), []
    test = labels_of(dataset.splits["test"], dataset.target, len(dataset.classes))
    if dataset.target == "labels":
        counts, tested = labels.sum(dim=0), test.sum(dim=0)
        learnable = int(((counts > 0) & (counts < len(labels))).sum())
        reason = None if learnable else "no label has both positive and negative training examples"
    else:
        counts = torch.bincount(labels, minlength=len(dataset.classes))
        tested = torch.bincount(test, minlength=len(dataset.classes))
        reason = None if int((counts > 0).sum()) > 1 else "all training labels are one class"
    unseen = int((counts == 0).sum())
    if not unseen:
        return reason, []
    what = "labels" if dataset.target == "labels" else "classes"
    in_test = int(((counts == 0) & (tested > 0)).sum())
    return reason, [f"{unseen} of {len(counts)} {what} have no training example, {in_test} of them occur in test"]


def _without_leaks(dataset: Dataset, config: EvalConfig) -> tuple[Dataset, str]:
    return apply_leakage(dataset, config.benchmarks, config.benchmarks.training_shards, config.features.cache)
