"""Measurements with 95 % intervals: bootstrap over sequence clusters, and paired comparison of two checkpoints."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from configs.errors import UserError

CONFIDENCE = 0.95
_MAX_COUNTS = 4_000_000
"""Resampling counts held at a time (bootstrap samples x clusters): 32 MB."""

Link = Literal["mean", "exp"]


@dataclass(frozen=True)
class Measurement:
    """One metric over S examples: `link(sum(weights * values) / sum(weights))`.

    A ratio of counts (accuracy over residues) has the example's ratio as value and its denominator as weight; a mean
    over chains has weights 1; a perplexity has mean negative log-likelihoods as values and link `exp`.
    """

    metric: str
    keys: tuple[str, ...]
    values: np.ndarray
    """float64 [S]."""
    weights: np.ndarray
    """float64 [S], positive."""
    clusters: np.ndarray
    """int64 [S]: examples of one cluster are resampled together."""
    link: Link = "mean"

    def __post_init__(self) -> None:
        shapes = {self.values.shape, self.weights.shape, self.clusters.shape, (len(self.keys),)}
        assert len(shapes) == 1, (self.metric, shapes)
        assert len(self.keys) > 0, self.metric
        assert bool((self.weights > 0).all()), self.metric


@dataclass(frozen=True)
class Estimate:
    value: float
    ci_low: float | None
    """None with fewer than two clusters: nothing can be resampled."""
    ci_high: float | None
    num_examples: int
    num_clusters: int


@dataclass(frozen=True)
class PairedDifference:
    """Second measurement minus first, over the same examples."""

    metric: str
    difference: float
    ci_low: float
    ci_high: float
    p_value: float
    """Two-sided, by the share of bootstrap differences on the other side of zero."""
    num_examples: int
    num_clusters: int


def measurement_of(
    metric: str,
    rows: list[tuple[str, int, float, float]],
    link: Link = "mean",
) -> Measurement | None:
    """A measurement of rows (key, cluster, value, weight); rows of weight 0 are left out, None when none remain."""
    kept = [row for row in rows if row[3] > 0]
    if not kept:
        return None
    keys, clusters, values, weights = zip(*kept, strict=True)
    return Measurement(
        metric,
        keys,
        np.array(values, dtype=np.float64),
        np.array(weights, dtype=np.float64),
        np.array(clusters, dtype=np.int64),
        link,
    )


def estimate(measurement: Measurement, num_samples: int, seed: int) -> Estimate:
    """The value with a percentile bootstrap interval over clusters."""
    numerator, denominator = _cluster_sums(measurement)
    value = float(_linked(numerator.sum() / denominator.sum(), measurement.link))
    num_clusters = len(numerator)
    low = high = None
    if num_clusters > 1:
        samples = _bootstrap(numerator[None], denominator[None], num_samples, seed)[0]
        low, high = (float(x) for x in _interval(_linked(samples, measurement.link)))
    return Estimate(value, low, high, len(measurement.keys), num_clusters)


def paired_difference(first: Measurement, second: Measurement, num_samples: int, seed: int) -> PairedDifference:
    """Bootstrap of `second - first`, resampling the same clusters for both.

    Raises:
        UserError: the measurements are of different metrics or examples, or of fewer than two clusters.
    """
    if (first.metric, first.link) != (second.metric, second.link):
        raise UserError(f"comparison: metrics differ ({first.metric!r} and {second.metric!r}); compare the same metric")
    first, second = _in_key_order(first), _in_key_order(second)
    if first.keys != second.keys or not np.array_equal(first.clusters, second.clusters):
        raise UserError(
            f"comparison of {first.metric!r}: the two evaluations hold different examples; evaluate both on one split"
        )
    sums = [_cluster_sums(m) for m in (first, second)]
    numerator, denominator = np.stack([s[0] for s in sums]), np.stack([s[1] for s in sums])
    num_clusters = numerator.shape[1]
    if num_clusters < 2:
        raise UserError(f"comparison of {first.metric!r}: got {num_clusters} sequence cluster; at least 2 are needed")
    samples = _linked(_bootstrap(numerator, denominator, num_samples, seed), first.link)
    differences = samples[1] - samples[0]
    whole = _linked(numerator.sum(axis=1) / denominator.sum(axis=1), first.link)
    low, high = _interval(differences)
    # The observed data count as one resample, so that p is never 0 for a finite number of samples.
    tail = min((differences <= 0).sum(), (differences >= 0).sum()) + 1
    p_value = min(1.0, 2.0 * float(tail) / (num_samples + 1))
    return PairedDifference(
        first.metric,
        float(whole[1] - whole[0]),
        float(low),
        float(high),
        p_value,
        len(first.keys),
        num_clusters,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for the number of tests (Holm 1979); they keep the family-wise error under any dependence."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def _in_key_order(measurement: Measurement) -> Measurement:
    order = np.argsort(np.array(measurement.keys), kind="stable")
    return Measurement(
        measurement.metric,
        tuple(measurement.keys[i] for i in order),
        measurement.values[order],
        measurement.weights[order],
        measurement.clusters[order],
        measurement.link,
    )


def _cluster_sums(measurement: Measurement) -> tuple[np.ndarray, np.ndarray]:
    """Sums of weights * values and of weights, float64 [C] each."""
    _, number = np.unique(measurement.clusters, return_inverse=True)
    numerator = np.bincount(number, weights=measurement.weights * measurement.values)
    return numerator, np.bincount(number, weights=measurement.weights)


def _bootstrap(numerator: np.ndarray, denominator: np.ndarray, num_samples: int, seed: int) -> np.ndarray:
    """Ratios [R, num_samples] of R statistics whose cluster sums are [R, C]; all see the same resampled clusters."""
    generator = np.random.default_rng(seed)
    num_clusters = numerator.shape[1]
    probabilities = np.full(num_clusters, 1.0 / num_clusters)
    per_chunk = max(1, _MAX_COUNTS // num_clusters)
    parts = []
    for start in range(0, num_samples, per_chunk):
        counts = generator.multinomial(num_clusters, probabilities, size=min(per_chunk, num_samples - start))
        parts.append((numerator @ counts.T) / (denominator @ counts.T))
    return np.concatenate(parts, axis=1)


def _interval(samples: np.ndarray) -> np.ndarray:
    tail = (1.0 - CONFIDENCE) / 2.0
    return np.quantile(samples, [tail, 1.0 - tail])


def _linked(ratio: np.ndarray | float, link: Link) -> np.ndarray:
    return np.exp(ratio) if link == "exp" else np.asarray(ratio)
