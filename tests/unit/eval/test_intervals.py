"""Bootstrap over clusters: what it estimates, and what it must not treat as independent."""

import numpy as np
import pytest

from configs.errors import UserError
from eval.intervals import Measurement, estimate, holm, measurement_of, paired_difference


def measurement(values, weights=None, clusters=None, link="mean", metric="m") -> Measurement:
    values = np.asarray(values, dtype=np.float64)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    clusters = np.arange(len(values)) if clusters is None else np.asarray(clusters)
    return Measurement(metric, tuple(f"k{i:04d}" for i in range(len(values))), values, weights, clusters, link)


def test_a_value_is_the_ratio_of_sums_and_not_the_mean_of_ratios() -> None:
    assert estimate(measurement([1.0, 0.0], weights=[3, 1]), 100, 0).value == 0.75


def test_a_perplexity_is_the_exponential_of_the_weighted_mean() -> None:
    found = estimate(measurement([1.0, 3.0], weights=[1, 1], link="exp"), 100, 0)
    assert found.value == pytest.approx(np.exp(2.0), rel=1e-12)  # float64 rounding only
    assert found.ci_low < found.value < found.ci_high


def test_the_interval_is_that_of_an_explicit_resampling_of_clusters() -> None:
    random = np.random.default_rng(0)
    values, weights, clusters = random.random(60), random.integers(1, 9, 60), random.integers(0, 12, 60)
    m = measurement(values, weights, clusters)
    found = estimate(m, 4000, 1)
    names, samples = np.unique(clusters), []
    for _ in range(4000):
        rows = np.concatenate([np.flatnonzero(clusters == c) for c in random.choice(names, len(names))])
        samples.append((values[rows] * weights[rows]).sum() / weights[rows].sum())
    low, high = np.quantile(samples, [0.025, 0.975])
    # Two bootstraps of 4000 samples: their quantiles scatter by a few per cent of the interval's width.
    assert found.ci_low == pytest.approx(low, abs=0.1 * (high - low))
    assert found.ci_high == pytest.approx(high, abs=0.1 * (high - low))


def test_copies_of_a_chain_in_its_cluster_do_not_narrow_the_interval() -> None:
    values = np.random.default_rng(0).random(20)
    once = estimate(measurement(values), 2000, 0)
    copied = estimate(measurement(np.repeat(values, 5), clusters=np.repeat(np.arange(20), 5)), 2000, 0)
    # The same clusters are drawn by the same seed, and five copies weigh like one: equal up to rounding.
    assert (copied.ci_low, copied.ci_high) == pytest.approx((once.ci_low, once.ci_high), rel=1e-12)
    assert (copied.num_examples, copied.num_clusters) == (100, 20)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(5)
    hits = 0
    for trial in range(200):
        effects = random.normal(0.5, 0.1, size=40)
        values = np.repeat(effects, 3) + random.normal(0, 0.02, size=120)
        found = estimate(measurement(values, clusters=np.repeat(np.arange(40), 3)), 400, trial)
        hits += found.ci_low <= 0.5 <= found.ci_high
    # 95 % of 200 is 190 with a standard deviation of 3; percentile intervals of 40 clusters lose about 2 %.
    assert 176 <= hits <= 199


def test_one_cluster_gives_a_value_without_an_interval() -> None:
    found = estimate(measurement([0.2, 0.4], clusters=[7, 7]), 100, 0)
    assert (found.value, found.ci_low, found.ci_high) == (pytest.approx(0.3), None, None)


def test_the_same_seed_gives_the_same_interval() -> None:
    m = measurement(np.random.default_rng(0).random(30))
    assert estimate(m, 500, 3) == estimate(m, 500, 3)
    assert estimate(m, 500, 3).ci_low != estimate(m, 500, 4).ci_low


def test_examples_without_weight_are_left_out() -> None:
    found = measurement_of("m", [("a", 1, 0.5, 2.0), ("b", 2, 0.0, 0.0)])
    assert found is not None
    assert found.keys == ("a",)
    assert measurement_of("m", [("b", 2, 0.0, 0.0)]) is None


def test_pairing_sees_a_small_gain_that_separate_intervals_do_not() -> None:
    base = np.random.default_rng(0).random(60)
    first, second = measurement(base), measurement(base + 0.02)
    apart = [estimate(m, 1000, 0) for m in (first, second)]
    paired = paired_difference(first, second, 1000, 0)
    assert apart[0].ci_high > apart[1].ci_low
    assert paired.difference == pytest.approx(0.02, abs=1e-12)  # float64 rounding only
    assert paired.ci_low > 0
    assert paired.p_value <= 0.01


def test_p_values_are_uniform_enough_when_nothing_differs() -> None:
    random = np.random.default_rng(1)
    p = []
    for _ in range(200):
        first, second = random.normal(size=40), random.normal(size=40)
        p.append(paired_difference(measurement(first), measurement(second), 300, 0).p_value)
    # 5 % of 200 is 10, standard deviation 3; the bootstrap of 40 clusters rejects a little more often than it says.
    assert sum(x < 0.05 for x in p) <= 24


def test_pairing_does_not_depend_on_the_order_of_examples() -> None:
    values = np.random.default_rng(2).random(10)
    m = measurement(values)
    back = Measurement(m.metric, m.keys[::-1], m.values[::-1], m.weights[::-1], m.clusters[::-1])
    assert paired_difference(m, back, 200, 0).difference == 0.0


def test_different_examples_or_metrics_are_not_paired() -> None:
    first = measurement([0.1, 0.2, 0.3])
    with pytest.raises(UserError, match="different examples"):
        paired_difference(first, measurement([0.1, 0.2]), 100, 0)
    with pytest.raises(UserError, match="metrics differ"):
        paired_difference(first, measurement([0.1, 0.2, 0.3], metric="other"), 100, 0)


def test_holm_multiplies_the_smallest_by_the_number_of_tests_and_stays_in_order() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
