"""Measurements with 95 % intervals: bootstrap over sequence clusters and seeds, and paired comparison of two models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from configs.errors import UserError
from eval.metrics import Undefined
from eval.weighted_statistics import STATISTICS, Resampled

CONFIDENCE = 0.95
MIN_DEFINED = 0.5
"""Share of the resamples on which a statistic must have a value for an interval to be given."""
MAX_JACKKNIFE = 500
"""Clusters up to which the second test is made for statistics that are no means; with more, one is as good as two."""
_MAX_COUNTS = 4_000_000
"""Resampling counts held at a time (bootstrap samples x clusters): 32 MB."""


@dataclass(frozen=True)
class Measurement:
    """What one metric is computed from: columns over S examples, for one seed."""

    metric: str
    keys: tuple[str, ...]
    columns: Mapping[str, np.ndarray]
    """First axis: the examples; or, with `rows`, the rows of all examples end to end (e.g. residues)."""
    clusters: np.ndarray
    """int64 [S]: examples of one cluster are resampled together."""
    statistic: str = "mean"
    """A key of `eval.weighted_statistics.STATISTICS`, which says what columns it takes."""
    seed: int = 0
    """Of the head; examples are the same for all seeds."""
    rows: np.ndarray | None = None
    """int64 [S]: number of rows of each example; None: one."""

    def __post_init__(self) -> None:
        assert len(self.keys) > 0, self.metric
        assert len(set(self.keys)) == len(self.keys), (self.metric, "keys are unique")
        assert self.clusters.shape == (len(self.keys),), (self.metric, self.clusters.shape)
        missing = set(STATISTICS[self.statistic].columns) - set(self.columns)
        assert not missing, (self.metric, self.statistic, missing)
        total = len(self.keys) if self.rows is None else int(self.rows.sum())
        assert self.rows is None or self.rows.shape == (len(self.keys),), (self.metric, self.rows.shape)
        lengths = {name: len(column) for name, column in self.columns.items()}
        assert set(lengths.values()) == {total}, (self.metric, lengths, total)
        assert total > 0, self.metric
        if "weights" in self.columns:
            assert bool((self.columns["weights"] > 0).all()), self.metric


@dataclass(frozen=True)
class Estimate:
    value: float | None
    """Mean over seeds; None where the metric is undefined, and `reason` says why."""
    ci_low: float | None
    """None with fewer than two clusters: nothing can be resampled."""
    ci_high: float | None
    num_examples: int
    num_clusters: int
    seeds: tuple[int, ...] = (0,)
    num_undefined: int = 0
    """Resamples without a value (e.g. of one class only), left out of the interval."""
    reason: str | None = None
    """Why there is no value or no interval."""


@dataclass(frozen=True)
class PairedDifference:
    """Second model minus first, over the same examples."""

    metric: str
    first: float
    second: float
    difference: float
    ci_low: float
    ci_high: float
    p_value: float
    """Two-sided: the larger of those below."""
    p_bootstrap: float
    """By the share of bootstrap differences (of clusters and seeds) on the other side of zero."""
    p_sign_flip: float | None
    """By exchanging the two models in random sequence clusters: exactly for means, to first order (the jackknife's
    pseudo-values) for other statistics; None for those of more than MAX_JACKKNIFE clusters."""
    num_examples: int
    num_clusters: int
    num_undefined: int = 0


class NotTestable(UserError):
    """Two measurements of the same examples that leave nothing to test."""


def scored(
    metric: str,
    statistic: str,
    keys: Sequence[str],
    clusters: Sequence[int] | np.ndarray,
    columns: Mapping[str, np.ndarray],
    seed: int = 0,
    rows: Sequence[int] | np.ndarray | None = None,
) -> Measurement:
    """A measurement of any statistic; for the meaning of the parts see `Measurement`."""
    return Measurement(
        metric,
        tuple(keys),
        {name: np.asarray(column) for name, column in columns.items()},
        np.asarray(clusters, dtype=np.int64),
        statistic,
        seed,
        None if rows is None else np.asarray(rows, dtype=np.int64),
    )


def measurement_of(
    metric: str, rows: Sequence[tuple[str, int, float, float]], link: Literal["mean", "exp"] = "mean", seed: int = 0
) -> Measurement | None:
    """`link(sum(weights * values) / sum(weights))` of rows (key, cluster, value, weight).

    A ratio of counts (accuracy over residues) has the example's ratio as value and its denominator as weight; a mean
    over chains has weights 1; a perplexity has mean negative log-likelihoods as values and link `exp`. Rows of weight 0
    are left out; None when none remain.
    """
    kept = [row for row in rows if row[3] > 0]
    if not kept:
        return None
    keys, clusters, values, weights = zip(*kept, strict=True)
    columns = {"values": np.array(values, dtype=np.float64), "weights": np.array(weights, dtype=np.float64)}
    return scored(metric, "exp_mean" if link == "exp" else "mean", keys, clusters, columns, seed)


def estimate(measurements: Sequence[Measurement], num_samples: int, seed: int) -> Estimate:
    """The mean over seeds of one metric, with a percentile bootstrap interval over clusters and seeds."""
    measurements = _aligned(measurements)
    head = measurements[0]
    number, num_clusters = _numbered(head)
    found = Estimate(None, None, None, len(head.keys), num_clusters, tuple(m.seed for m in measurements))
    try:
        value = float(np.mean([_value(m) for m in measurements]))
    except Undefined as error:
        return replace(found, reason=str(error))
    if num_clusters < 2:
        return replace(found, value=value, reason="one sequence cluster")
    samplers = [_sampler(m, number, num_clusters) for m in measurements]
    samples = _bootstrap([samplers], num_clusters, num_samples, seed)[0]
    defined = samples[~np.isnan(samples)]
    found = replace(found, value=value, num_undefined=num_samples - len(defined))
    if len(defined) < MIN_DEFINED * num_samples:
        return replace(found, reason=f"undefined on {num_samples - len(defined)} of {num_samples} resamples")
    low, high = _interval(defined)
    return replace(found, ci_low=float(low), ci_high=float(high))


def paired_difference(
    first: Sequence[Measurement], second: Sequence[Measurement], num_samples: int, seed: int
) -> PairedDifference:
    """Bootstrap of `second - first` (all seeds of each), resampling the same clusters for both.

    Raises:
        UserError: the measurements are of different metrics or examples.
        NotTestable: fewer than two clusters, or the metric is undefined on them or on most resamples.
    """
    both = [*first, *second]
    metric = first[0].metric
    if {(m.metric, m.statistic) for m in both} != {(metric, first[0].statistic)}:
        names = f"{metric!r} ({first[0].statistic}) and {second[0].metric!r} ({second[0].statistic})"
        raise UserError(f"comparison: metrics differ: {names}; compare the same metric")
    both = _aligned(both)
    first, second = both[: len(first)], both[len(first) :]
    number, num_clusters = _numbered(first[0])
    if num_clusters < 2:
        raise NotTestable(f"comparison of {metric!r}: got {num_clusters} sequence cluster; at least 2 are needed")
    try:
        values = [float(np.mean([_value(m) for m in side])) for side in (first, second)]
    except Undefined as error:
        raise NotTestable(f"comparison of {metric!r}: undefined ({error}); nothing can be compared") from None
    samplers = [[_sampler(m, number, num_clusters) for m in side] for side in (first, second)]
    samples = _bootstrap(samplers, num_clusters, num_samples, seed)
    differences = samples[1] - samples[0]
    differences = differences[~np.isnan(differences)]
    num_undefined = num_samples - len(differences)
    if len(differences) < MIN_DEFINED * num_samples:
        raise NotTestable(
            f"comparison of {metric!r}: undefined on {num_undefined} of {num_samples} resamples; "
            "more examples are needed"
        )
    low, high = _interval(differences)
    # The observed data count as one resample, so that p is never 0 for a finite number of samples.
    tail = min((differences <= 0).sum(), (differences >= 0).sum()) + 1
    p_bootstrap = min(1.0, 2.0 * float(tail) / (len(differences) + 1))
    effects = _mean_effects(first, second, number)
    if effects is None and num_clusters <= MAX_JACKKNIFE:
        effects = _jackknife_effects(samplers, num_clusters, values[1] - values[0])
    p_sign_flip = None if effects is None else _sign_flip(effects, num_samples, seed)
    return PairedDifference(
        metric,
        *values,
        values[1] - values[0],
        float(low),
        float(high),
        p_bootstrap if p_sign_flip is None else max(p_bootstrap, p_sign_flip),
        p_bootstrap,
        p_sign_flip,
        len(first[0].keys),
        num_clusters,
        num_undefined,
    )


def selected(measurement: Measurement, keys: Sequence[str]) -> Measurement:
    """The same over the named examples, in the order of `keys`."""
    place = {key: i for i, key in enumerate(measurement.keys)}
    chosen = np.array([place[key] for key in keys], dtype=np.int64)
    at, rows = chosen, measurement.rows
    if rows is not None:
        starts = np.cumsum(rows) - rows
        rows = rows[chosen]
        at = np.repeat(starts[chosen], rows) + np.arange(rows.sum()) - np.repeat(np.cumsum(rows) - rows, rows)
    columns = {name: column[at] for name, column in measurement.columns.items()}
    return replace(measurement, keys=tuple(keys), columns=columns, clusters=measurement.clusters[chosen], rows=rows)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for the number of tests (Holm 1979); they keep the family-wise error under any dependence."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted so that those below q are wrong in a share of at most q (Benjamini and Hochberg 1995).

    Holds for tests that are independent or positively dependent, as metrics of one pair of models mostly are.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i], reverse=True)
    adjusted, lowest = [0.0] * len(p_values), 1.0
    for rank, i in enumerate(order):
        lowest = min(lowest, p_values[i] * len(p_values) / (len(p_values) - rank))
        adjusted[i] = lowest
    return adjusted


def _aligned(measurements: Sequence[Measurement]) -> list[Measurement]:
    """All in the order of the first one's examples.

    Raises:
        UserError: they hold different examples or clusters.
    """
    head = measurements[0]
    assert all((m.metric, m.statistic) == (head.metric, head.statistic) for m in measurements), head.metric
    aligned = [head]
    for other in measurements[1:]:
        if other.keys != head.keys:
            if set(other.keys) != set(head.keys):
                raise UserError(
                    f"comparison of {head.metric!r}: the two evaluations hold different examples; "
                    "evaluate both on one split"
                )
            other = selected(other, head.keys)
        if not np.array_equal(other.clusters, head.clusters):
            raise UserError(
                f"comparison of {head.metric!r}: the examples lie in different sequence clusters; evaluate both again"
            )
        if (other.rows is None) != (head.rows is None) or not np.array_equal(other.rows, head.rows):
            raise UserError(
                f"comparison of {head.metric!r}: the examples hold different numbers of residues; evaluate both again"
            )
        aligned.append(other)
    return aligned


def _numbered(measurement: Measurement) -> tuple[np.ndarray, int]:
    """Cluster number of each row, and how many clusters there are."""
    names, number = np.unique(measurement.clusters, return_inverse=True)
    return number if measurement.rows is None else np.repeat(number, measurement.rows), len(names)


def _value(measurement: Measurement) -> float:
    for name, column in measurement.columns.items():
        if column.dtype.kind == "f" and not np.isfinite(column).all():
            raise Undefined(f"column {name!r} (seed {measurement.seed}) holds values that are not finite")
    return STATISTICS[measurement.statistic].value(measurement.columns)


def _sampler(measurement: Measurement, number: np.ndarray, num_clusters: int) -> Resampled:
    return STATISTICS[measurement.statistic].resampled(measurement.columns, number, num_clusters)


def _bootstrap(samplers: Sequence[Sequence[Resampled]], num_clusters: int, num_samples: int, seed: int) -> np.ndarray:
    """float64 [models, num_samples]: means over drawn seeds; all models and seeds see the same resampled clusters."""
    clusters, seeds = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    probabilities = np.full(num_clusters, 1.0 / num_clusters)
    per_chunk = max(1, _MAX_COUNTS // num_clusters)
    chunks = []
    for start in range(0, num_samples, per_chunk):
        size = min(per_chunk, num_samples - start)
        counts = clusters.multinomial(num_clusters, probabilities, size=size)
        chunks.append([np.stack([sampler(counts) for sampler in of_model]) for of_model in samplers])
    found = []
    for model in range(len(samplers)):
        of_seeds = np.concatenate([chunk[model] for chunk in chunks], axis=1)
        drawn = seeds.integers(len(of_seeds), size=of_seeds.shape) if len(of_seeds) > 1 else np.zeros((1, 1), int)
        found.append(np.take_along_axis(of_seeds, np.broadcast_to(drawn, of_seeds.shape), axis=0).mean(axis=0))
    return np.stack(found)


def _sign_flip(effects: np.ndarray, num_samples: int, seed: int) -> float:
    """Two-sided p of a sum of effects of clusters when the models are exchanged in random clusters."""
    generator = np.random.default_rng([seed, 2])
    per_chunk = max(1, _MAX_COUNTS // len(effects))
    # Sums that differ by rounding are the same sum: then the observed one is not beyond them.
    observed = abs(effects.sum()) - 1e-12 * np.abs(effects).sum()
    beyond = 0
    for start in range(0, num_samples, per_chunk):
        signs = generator.integers(0, 2, size=(min(per_chunk, num_samples - start), len(effects))) * 2.0 - 1.0
        beyond += int((np.abs(signs @ effects) >= observed).sum())
    return (beyond + 1.0) / (num_samples + 1.0)


def _mean_effects(first: Sequence[Measurement], second: Sequence[Measurement], number: np.ndarray) -> np.ndarray | None:
    """What each cluster adds to the difference of two weighted means, seeds averaged; None for other statistics."""
    linear = STATISTICS[first[0].statistic].linear
    if linear is None:
        return None
    parts = [[linear(m.columns) for m in side] for side in (first, second)]
    weights = parts[0][0][1]
    if not all(np.allclose(w, weights, rtol=1e-9, atol=0.0) for side in parts for _, w in side):
        return None
    values = [np.mean([v for v, _ in side], axis=0) for side in parts]
    return np.bincount(number, weights=weights * (values[1] - values[0]))


def _jackknife_effects(
    samplers: Sequence[Sequence[Resampled]], num_clusters: int, difference: float
) -> np.ndarray | None:
    """Pseudo-values of the difference, float64 [C]; None where the statistic has no value without some cluster."""
    without = np.ones((num_clusters, num_clusters)) - np.eye(num_clusters)
    means = [np.mean([sampler(without) for sampler in side], axis=0) for side in samplers]
    effects = num_clusters * difference - (num_clusters - 1) * (means[1] - means[0])
    return None if np.isnan(effects).any() else effects


def _interval(samples: np.ndarray) -> np.ndarray:
    tail = (1.0 - CONFIDENCE) / 2.0
    return np.quantile(samples, [tail, 1.0 - tail])
