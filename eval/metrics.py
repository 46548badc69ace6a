"""Metrics as plain functions of predictions and labels, in float64; each raises `Undefined` where it has no value."""

import numpy as np


class Undefined(ValueError):
    """The metric has no value on these data; the message says why."""


def accuracy(prediction: np.ndarray, label: np.ndarray) -> float:
    """Share of equal entries of two int arrays [S]."""
    return float(np.mean(prediction == label))


def f1(prediction: np.ndarray, label: np.ndarray) -> float:
    """Macro F1: the mean over classes that are predicted or true somewhere of 2 TP / (predicted + true)."""
    true, predicted, correct = _class_counts(prediction, label)
    return float(np.mean(2.0 * correct / (true + predicted)))


def mcc(prediction: np.ndarray, label: np.ndarray) -> float:
    """Matthews correlation of any number of classes (Gorodkin 2004); 0 where all predictions are one class.

    Raises:
        Undefined: all labels are one class.
    """
    true, predicted, correct = _class_counts(prediction, label)
    total = float(len(label))
    spread_true, spread_predicted = total**2 - (true**2).sum(), total**2 - (predicted**2).sum()
    if spread_true == 0:
        raise Undefined("all labels are one class")
    if spread_predicted == 0:
        return 0.0
    return float((correct.sum() * total - (true * predicted).sum()) / np.sqrt(spread_true * spread_predicted))


def mcc_threshold(score: np.ndarray, label: np.ndarray) -> float:
    """Score [S] above which examples are called positive for the highest Matthews correlation with label (0 or 1) [S].

    In the middle of two neighbouring scores; of equally good thresholds the highest. 0 where nothing can be told: one
    of the classes is missing, or all scores are equal.
    """
    positive = np.asarray(label) > 0
    total, num_positive = len(positive), float(positive.sum())
    num_negative = total - num_positive
    order = np.argsort(-np.asarray(score, dtype=np.float64), kind="stable")
    ranked = np.asarray(score, dtype=np.float64)[order]
    cuts = np.flatnonzero(ranked[1:] < ranked[:-1])
    if num_positive == 0 or num_negative == 0 or not len(cuts):
        return 0.0
    called = cuts + 1.0
    hits = np.cumsum(positive[order])[cuts]
    covariance = hits * num_negative - (called - hits) * num_positive
    best = cuts[np.argmax(covariance / np.sqrt(called * (total - called)))]
    return float((ranked[best] + ranked[best + 1]) / 2)


def pearson(prediction: np.ndarray, label: np.ndarray) -> float:
    """Pearson's r of two arrays [S].

    Raises:
        Undefined: fewer than two examples, or one of the two does not vary.
    """
    x, y = np.asarray(prediction, dtype=np.float64), np.asarray(label, dtype=np.float64)
    if len(x) < 2:
        raise Undefined("a correlation needs two examples")
    for values, name in ((x, "predictions"), (y, "labels")):
        if values.min() == values.max():
            raise Undefined(f"all {name} are equal")
    # Scaled first: squares of values near the ends of float64's range would leave it.
    x, y = ((values - values.mean()) / np.ptp(values) for values in (x, y))
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1.0, 1.0))


def spearman(prediction: np.ndarray, label: np.ndarray) -> float:
    """Pearson's r of ranks, ties at their mean rank.

    Raises:
        Undefined: see `pearson`.
    """
    return pearson(mean_ranks(prediction), mean_ranks(label))


def rmse(prediction: np.ndarray, label: np.ndarray) -> float:
    """Root of the mean squared difference of two arrays [S]."""
    return float(np.sqrt(np.mean((np.asarray(prediction, dtype=np.float64) - label) ** 2)))


def auroc(score: np.ndarray, label: np.ndarray) -> float:
    """Chance that a positive scores above a negative, ties counting half; `label` is bool or 0/1.

    Raises:
        Undefined: one class only.
    """
    label = _binary(label)
    positives, negatives = int(label.sum()), int((~label).sum())
    if positives == 0 or negatives == 0:
        raise Undefined("all labels are one class")
    ranks = mean_ranks(score)
    return float((ranks[label].sum() - positives * (positives + 1) / 2.0) / (positives * negatives))


def average_precision(score: np.ndarray, label: np.ndarray) -> float:
    """Area under precision and recall as a sum of steps: sum over distinct scores of (R_k - R_(k-1)) P_k.

    Raises:
        Undefined: no positive.
    """
    label = _binary(label)
    positives = int(label.sum())
    if positives == 0:
        raise Undefined("no label is positive")
    order = np.argsort(score, kind="stable")[::-1]
    ranked = np.asarray(score)[order]
    ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    hits = np.cumsum(label[order])[ends]
    return float((np.diff(hits, prepend=0) * (hits / (ends + 1.0))).sum() / positives)


def micro_aupr(scores: np.ndarray, labels: np.ndarray) -> float:
    """Average precision over all cells of two matrices [S, C].

    Raises:
        Undefined: no label is positive.
    """
    return average_precision(np.ravel(scores), np.ravel(labels))


def macro_aupr(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean average precision over the columns of [S, C] that have a positive.

    Raises:
        Undefined: no label is positive.
    """
    scored = np.flatnonzero(np.asarray(labels, dtype=bool).any(axis=0))
    if not len(scored):
        raise Undefined("no label is positive")
    return float(np.mean([average_precision(scores[:, c], labels[:, c]) for c in scored]))


def fmax(scores: np.ndarray, labels: np.ndarray) -> float:
    """Protein-centric maximum F measure (CAFA, Radivojac et al. 2013) of matrices [S, C].

    At a threshold, labels that score at least that much are predicted; precision is averaged over the proteins with a
    prediction, recall over all. Thresholds are all distinct scores, no grid. Proteins without a true label are left
    out, as in CAFA's benchmarks.

    Raises:
        Undefined: no protein has a label.
    """
    annotated = np.asarray(labels, dtype=bool).any(axis=1)
    if not annotated.any():
        raise Undefined("no protein has a label")
    steps = FmaxSteps(scores[annotated], np.asarray(labels, dtype=bool)[annotated])
    count = steps.num_thresholds
    precision, covered, recall = (
        np.cumsum(np.bincount(at, weights=change, minlength=count)) for at, _, change in steps.changes()
    )
    return float(best_f(precision, covered, recall, float(annotated.sum())))


class FmaxSteps:
    """Where precision and recall of each protein change on the way from the highest threshold down.

    Only scores of true labels are thresholds: between two of them precision falls and recall stays, so that no F is
    larger there. Every protein has a label.
    """

    def __init__(self, scores: np.ndarray, labels: np.ndarray) -> None:
        self._labels = labels
        thresholds = np.unique(scores[labels])
        self.num_thresholds = len(thresholds)
        # Number of thresholds above each cell: the place, from the highest down, at which it becomes a prediction.
        self._place = self.num_thresholds - np.searchsorted(thresholds, scores, side="right")

    def changes(self) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], ...]:
        """(threshold, protein, change), each [E], of precision, of having a prediction, and of recall."""
        protein, column = np.nonzero(self._place < self.num_thresholds)
        key = protein * self.num_thresholds + self._place[protein, column]
        key, inverse = np.unique(key, return_inverse=True)
        positive = np.bincount(inverse, weights=self._labels[protein, column], minlength=len(key))
        number = np.bincount(inverse, minlength=len(key))
        protein, place = key // self.num_thresholds, key % self.num_thresholds
        first = np.diff(protein, prepend=-1) > 0
        hits, predicted = _within(positive, first), _within(number, first)
        precision = hits / predicted
        change = precision - np.where(first, 0.0, np.append(0.0, precision[:-1]))
        true = self._labels.sum(axis=1)[protein]
        gains = positive > 0
        return (
            (place, protein, change),
            (place[first], protein[first], np.ones(int(first.sum()))),
            (place[gains], protein[gains], positive[gains] / true[gains]),
        )


def best_f(precision: np.ndarray, covered: np.ndarray, recall: np.ndarray, total: np.ndarray | float) -> np.ndarray:
    """Largest F along the first axis, of sums over proteins: of precision, with a prediction, of recall, and of all."""
    with np.errstate(divide="ignore", invalid="ignore"):
        p, r = precision / covered, recall / total
        return np.nan_to_num(2.0 * p * r / (p + r)).max(axis=0, initial=0.0)


def precision_at(score: np.ndarray, label: np.ndarray, count: int) -> float:
    """Share of positives among the `count` highest scores; of equal scores the earlier ones count.

    Raises:
        Undefined: there is nothing to rank.
    """
    if not len(score) or count < 1:
        raise Undefined("nothing to rank")
    order = np.argsort(-np.asarray(score, dtype=np.float64), kind="stable")[:count]
    return float(np.mean(_binary(label)[order]))


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """float64 [S] ranks from 1, ties at the mean of theirs."""
    _, inverse, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2.0)[inverse]


def _class_counts(prediction: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How often each class that occurs is true, predicted, and both."""
    _, number = np.unique(np.concatenate([label, prediction]), return_inverse=True)
    true, predicted = number[: len(label)], number[len(label) :]
    size = int(number.max(initial=-1)) + 1
    counts = [np.bincount(of, minlength=size) for of in (true, predicted, true[true == predicted])]
    return counts[0].astype(np.float64), counts[1].astype(np.float64), counts[2].astype(np.float64)


def _within(values: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Cumulative sums that begin anew where `first` is true."""
    sums = np.cumsum(values)
    starts = np.flatnonzero(first)
    before = sums[starts] - values[starts]
    return sums - np.repeat(before, np.diff(np.append(starts, len(values))))


def _binary(label: np.ndarray) -> np.ndarray:
    label = np.asarray(label)
    assert label.dtype == bool or bool(np.isin(label, (0, 1)).all()), "labels are bool or 0 and 1"
    return label.astype(bool)
