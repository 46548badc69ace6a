"""Statistics of examples, and their values on any number of resamples of sequence clusters at once.

A resample is given by how often each cluster was drawn, and its value is exactly that of the statistic on the examples
repeated so many times: sums over clusters where the statistic is made of sums, counts along sorted scores where it is
made of ranks. Both are products of a sparse table [rows, clusters] with the counts.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import scipy.sparse

from eval import metrics

Columns = Mapping[str, np.ndarray]
Resampled = Callable[[np.ndarray], np.ndarray]
"""Counts float64 [B, C] of B resamples of C clusters -> float64 [B], NaN where the statistic is undefined."""
CELLS_PER_BLOCK = 2_000_000
"""Entries of one intermediate array: 16 MB."""
_NO_SPREAD = 1e-13
"""Variance of numbers scaled to a range of 1 that is rounding only."""


@dataclass(frozen=True)
class Statistic:
    """A function of columns [R, ...], one row for each example or for each of its residues."""

    columns: tuple[str, ...]
    value: Callable[[Columns], float]
    """Raises `metrics.Undefined`."""
    resampled: Callable[[Columns, np.ndarray, int], Resampled]
    """Of columns, the cluster of each row (int64 [R], below C) and C."""
    linear: Callable[[Columns], tuple[np.ndarray, np.ndarray]] | None = None
    """Values and weights [R] of the weighted mean that this is, or rises with; None where it is no mean."""


def _sums(values: np.ndarray, owner: np.ndarray, clusters: int) -> np.ndarray:
    return np.bincount(owner, weights=values, minlength=clusters)


def _table(
    rows: np.ndarray, owner: np.ndarray, weights: np.ndarray | None, shape: tuple[int, int]
) -> scipy.sparse.csr_array:
    """Sums of weights (or numbers) of what falls in each row and cluster."""
    data = np.ones(len(rows)) if weights is None else np.asarray(weights, dtype=np.float64)
    return scipy.sparse.csr_array((data, (rows, owner)), shape=shape)


def _by_block(work: Callable[[np.ndarray], np.ndarray], height: int) -> Resampled:
    """Calls `work` on counts transposed to [C, b], so few resamples at a time that `height` x b entries fit."""

    def resampled(counts: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            parts = [work(block) for block in _blocks(counts, height)]
        return np.concatenate(parts) if parts else np.empty(0)

    return resampled


def _blocks(counts: np.ndarray, height: int) -> Iterator[np.ndarray]:
    step = max(1, CELLS_PER_BLOCK // max(height, counts.shape[1], 1))
    for start in range(0, len(counts), step):
        yield np.ascontiguousarray(counts[start : start + step].T, dtype=np.float64)


def _weights(columns: Columns) -> np.ndarray:
    return columns["weights"] if "weights" in columns else np.ones(len(columns["values"]))


def _mean_parts(columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(columns["values"], dtype=np.float64), _weights(columns)


def _correct_parts(columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    correct = (columns["prediction"] == columns["label"]).astype(np.float64)
    return correct, np.ones(len(correct))


def _square_parts(columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    squares = (np.asarray(columns["prediction"], dtype=np.float64) - columns["label"]) ** 2
    return squares, np.ones(len(squares))


def _mean_like(
    names: tuple[str, ...],
    parts: Callable[[Columns], tuple[np.ndarray, np.ndarray]],
    link: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> Statistic:
    """`link` of a weighted mean."""

    def value(columns: Columns) -> float:
        values, weights = parts(columns)
        return float(link((weights * values).sum() / weights.sum()))

    def resampled(columns: Columns, owner: np.ndarray, clusters: int) -> Resampled:
        values, weights = parts(columns)
        numerator, denominator = _sums(weights * values, owner, clusters), _sums(weights, owner, clusters)
        return _by_block(lambda w: link((numerator @ w) / (denominator @ w)), 1)

    return Statistic(names, value, resampled, parts)


def _grouped(columns: Columns, owner: np.ndarray, clusters: int) -> Resampled:
    """Mean over outermost groups of means over the groups within them, ..., of means of values.

    A group that lies within one cluster counts as often as the cluster was drawn; one that spans several is the same
    group in every resample, and is left out where none of its rows was drawn.
    """
    levels = _levels(columns)
    leaf = levels[0][0]
    shape = (int(leaf.max()) + 1, clusters)
    value_sums, numbers = _table(leaf, owner, columns["values"], shape), _table(leaf, owner, None, shape)
    parents, presence = [parent for _, parent in levels], []
    for label, _ in levels:
        spread = _table(label, owner, None, (int(label.max()) + 1, clusters))
        single = np.diff(spread.indptr) == 1
        presence.append((spread, single, spread.indices[spread.indptr[:-1]]))

    def work(w: np.ndarray) -> np.ndarray:
        means = (value_sums @ w) / (numbers @ w)
        for (spread, single, cluster), parent in zip(presence, parents, strict=True):
            times = np.where(single[:, None], w[cluster], spread @ w > 0)
            up = _table(parent, np.arange(len(parent)), None, (int(parent.max()) + 1, len(parent)))
            means = (up @ (times * np.nan_to_num(means))) / (up @ times)
        return means[0]

    return _by_block(work, shape[0])


def _levels(columns: Columns) -> list[tuple[np.ndarray, np.ndarray]]:
    """From the innermost groups out: the group of each row [R], and the parent of each group; the last parent is 0."""
    names = sorted(name for name in columns if name.startswith("group"))
    assert names, "grouped_mean needs a column `group`, or `group_1` (outermost), `group_2`, ..."
    labels = [np.zeros(len(columns["values"]), dtype=np.int64)]
    for name in names:
        _, label = np.unique(np.stack([labels[-1], columns[name]]), axis=1, return_inverse=True)
        labels.append(np.ravel(label))
    found = []
    for inner, outer in zip(labels[:0:-1], labels[-2::-1], strict=True):
        parent = np.zeros(int(inner.max()) + 1, dtype=np.int64)
        parent[inner] = outer
        found.append((inner, parent))
    return found


def _grouped_parts(columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    """Each row weighs one over the rows of its group, over the groups of the group around it, and so on."""
    levels = _levels(columns)
    leaf = levels[0][0]
    weights = 1.0 / np.bincount(leaf)[leaf]
    for label, parent in levels:
        weights = weights / np.bincount(parent)[parent[label]]
    return np.asarray(columns["values"], dtype=np.float64), weights


def _grouped_value(columns: Columns) -> float:
    values, weights = _grouped_parts(columns)
    return float((values * weights).sum() / weights.sum())


def _class_tables(
    columns: Columns, owner: np.ndarray, clusters: int
) -> tuple[scipy.sparse.csr_array, scipy.sparse.csr_array, scipy.sparse.csr_array]:
    """How often each class is true, predicted, and both, in every cluster: [K, C]."""
    names, number = np.unique(np.concatenate([columns["label"], columns["prediction"]]), return_inverse=True)
    true, predicted = np.split(number, 2)
    shape, same = (len(names), clusters), true == predicted
    return (
        _table(true, owner, None, shape),
        _table(predicted, owner, None, shape),
        _table(true[same], owner[same], None, shape),
    )


def _macro_f1(columns: Columns, owner: np.ndarray, clusters: int) -> Resampled:
    true, predicted, correct = _class_tables(columns, owner, clusters)

    def work(w: np.ndarray) -> np.ndarray:
        either = true @ w + predicted @ w
        return np.nan_to_num(2.0 * (correct @ w) / either).sum(axis=0) / (either > 0).sum(axis=0)

    return _by_block(work, true.shape[0])


def _mcc(columns: Columns, owner: np.ndarray, clusters: int) -> Resampled:
    true, predicted, correct = _class_tables(columns, owner, clusters)

    def work(w: np.ndarray) -> np.ndarray:
        t, p, hits = true @ w, predicted @ w, (correct @ w).sum(axis=0)
        total = t.sum(axis=0)
        spread_true, spread_predicted = total**2 - (t**2).sum(axis=0), total**2 - (p**2).sum(axis=0)
        found = (hits * total - (t * p).sum(axis=0)) / np.sqrt(spread_true * spread_predicted)
        return np.where(spread_true == 0, np.nan, np.where(spread_predicted == 0, 0.0, found))

    return _by_block(work, true.shape[0])


def _pearson(columns: Columns, owner: np.ndarray, clusters: int) -> Resampled:
    x, y = (_scaled(columns[name]) for name in ("prediction", "label"))
    products = (np.ones(len(x)), x, y, x * x, y * y, x * y)
    sums = np.stack([_sums(product, owner, clusters) for product in products])

    def work(w: np.ndarray) -> np.ndarray:
        count, *rest = sums @ w
        mean_x, mean_y, xx, yy, xy = (part / count for part in rest)
        var_x, var_y = xx - mean_x**2, yy - mean_y**2
        varies = (var_x > _NO_SPREAD) & (var_y > _NO_SPREAD)
        return np.where(varies, (xy - mean_x * mean_y) / np.sqrt(np.where(varies, var_x * var_y, 1.0)), np.nan)

    return _by_block(work, len(sums))


def _scaled(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    return (values - values.mean()) / (np.ptp(values) or 1.0)


def _spearman(columns: Columns, owner: np.ndarray, clusters: int) -> Resampled:
    sides = []
    for name in ("prediction", "label"):
        distinct, number = np.unique(columns[name], return_inverse=True)
        sides.append((_table(number, owner, None, (len(distinct), clusters)), number))

    def work(w: np.ndarray) -> np.ndarray:
        total, ranks, spreads = None, [], []
        for table, number in sides:
            count = table @ w
            upto = np.cumsum(count, axis=0)
            total = upto[-1]
            # Ranks about their mean, (total + 1) / 2; ties stand at the mean of theirs.
            centred = upto - (count + total) / 2.0
            spreads.append((count * centred**2).sum(axis=0))
            ranks.append(centred[number])
        together = np.einsum("rb,rb,rb->b", w[owner], *ranks)
        spread = spreads[0] * spreads[1]
        return np.where(spread > 0, together / np.sqrt(np.where(spread > 0, spread, 1.0)), np.nan)

    return _by_block(work, len(owner))


def _auroc(columns: Columns, owner: np.ndarray, clusters: int) -> Resampled:
    distinct, number = np.unique(columns["score"], return_inverse=True)
    positive, shape = np.asarray(columns["label"], dtype=bool), (len(distinct), clusters)
    positives = _table(number[positive], owner[positive], None, shape)
    negatives = _table(number[~positive], owner[~positive], None, shape)

    def work(w: np.ndarray) -> np.ndarray:
        up, down = positives @ w, negatives @ w
        below = np.cumsum(down, axis=0)
        return (up * (below - down / 2.0)).sum(axis=0) / (up.sum(axis=0) * below[-1])

    return _by_block(work, len(distinct))


def _average_precision(score: np.ndarray, label: np.ndarray, owner: np.ndarray, clusters: int) -> Resampled:
    """Only scores of positives are steps; other cells count at the next step below them."""
    positive = np.asarray(label, dtype=bool)
    steps = np.unique(score[positive])
    place = len(steps) - np.searchsorted(steps, score, side="right")
    counted, shape = place < len(steps), (len(steps), clusters)
    cells = _table(place[counted], owner[counted], None, shape)
    positives = _table(place[positive], owner[positive], None, shape)

    def work(w: np.ndarray) -> np.ndarray:
        new = positives @ w
        hits, number = np.cumsum(new, axis=0), np.cumsum(cells @ w, axis=0)
        return np.nan_to_num(new * hits / number).sum(axis=0) / hits[-1]

    return _by_block(work, len(steps))


def _auprc(columns: Columns, owner: np.ndarray, clusters: int) -> Resampled:
    return _average_precision(columns["score"], columns["label"], owner, clusters)


def _micro_aupr(columns: Columns, owner: np.ndarray, clusters: int) -> Resampled:
    scores, labels = columns["scores"], columns["labels"]
    return _average_precision(np.ravel(scores), np.ravel(labels), np.repeat(owner, scores.shape[1]), clusters)


def _fmax(columns: Columns, owner: np.ndarray, clusters: int) -> Resampled:
    annotated = np.asarray(columns["labels"], dtype=bool).any(axis=1)
    owner = owner[annotated]
    steps = metrics.FmaxSteps(columns["scores"][annotated], np.asarray(columns["labels"], dtype=bool)[annotated])
    shape = (steps.num_thresholds, clusters)
    tables = [_table(at, owner[protein], change, shape) for at, protein, change in steps.changes()]
    proteins = np.bincount(owner, minlength=clusters).astype(np.float64)

    def work(w: np.ndarray) -> np.ndarray:
        total = proteins @ w
        found = metrics.best_f(*(np.cumsum(table @ w, axis=0) for table in tables), total)
        return np.where(total > 0, found, np.nan)

    return _by_block(work, shape[0])


STATISTICS: dict[str, Statistic] = {
    "mean": _mean_like(("values",), _mean_parts),
    "exp_mean": _mean_like(("values",), _mean_parts, np.exp),
    "grouped_mean": Statistic(("values",), _grouped_value, _grouped, _grouped_parts),
    "accuracy": _mean_like(("prediction", "label"), _correct_parts),
    "rmse": _mean_like(("prediction", "label"), _square_parts, np.sqrt),
    "macro_f1": Statistic(("prediction", "label"), lambda c: metrics.f1(c["prediction"], c["label"]), _macro_f1),
    "mcc": Statistic(("prediction", "label"), lambda c: metrics.mcc(c["prediction"], c["label"]), _mcc),
    "spearman": Statistic(("prediction", "label"), lambda c: metrics.spearman(c["prediction"], c["label"]), _spearman),
    "pearson": Statistic(("prediction", "label"), lambda c: metrics.pearson(c["prediction"], c["label"]), _pearson),
    "auroc": Statistic(("score", "label"), lambda c: metrics.auroc(c["score"], c["label"]), _auroc),
    "auprc": Statistic(("score", "label"), lambda c: metrics.average_precision(c["score"], c["label"]), _auprc),
    "fmax": Statistic(("scores", "labels"), lambda c: metrics.fmax(c["scores"], c["labels"]), _fmax),
    "aupr": Statistic(("scores", "labels"), lambda c: metrics.micro_aupr(c["scores"], c["labels"]), _micro_aupr),
}
"""By the name that measurements carry. `mean` and `exp_mean` also take a column `weights`; `grouped_mean` takes
`group`, or `group_1` (outermost), `group_2`, ...; `fmax` and `aupr` take matrices [R, number of labels]."""
