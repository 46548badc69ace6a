"""Bootstrap over clusters and seeds: what it estimates, and what it must not treat as independent."""

import numpy as np
import pytest

from configs.errors import UserError
from eval.intervals import (
    MAX_JACKKNIFE,
    Measurement,
    NotTestable,
    benjamini_hochberg,
    estimate,
    holm,
    measurement_of,
    paired_difference,
    scored,
    selected,
)


def measurement(values, weights=None, clusters=None, statistic="mean", metric="m", seed=0) -> Measurement:
    values = np.asarray(values, dtype=np.float64)
    columns = {"values": values} | ({} if weights is None else {"weights": np.asarray(weights, dtype=np.float64)})
    clusters = np.arange(len(values)) if clusters is None else np.asarray(clusters)
    return scored(metric, statistic, [f"k{i:04d}" for i in range(len(values))], clusters, columns, seed)


def ranked(prediction, label, clusters=None, seed=0) -> Measurement:
    clusters = np.arange(len(label)) if clusters is None else clusters
    columns = {"prediction": np.asarray(prediction), "label": np.asarray(label)}
    return scored("spearman", "spearman", [f"k{i:04d}" for i in range(len(label))], clusters, columns, seed)


def classed(score, label, clusters=None, seed=0) -> Measurement:
    clusters = np.arange(len(label)) if clusters is None else clusters
    columns = {"score": np.asarray(score, dtype=np.float64), "label": np.asarray(label, dtype=bool)}
    return scored("auroc", "auroc", [f"k{i:04d}" for i in range(len(label))], clusters, columns, seed)


def test_a_value_is_the_ratio_of_sums_and_not_the_mean_of_ratios() -> None:
    assert estimate([measurement([1.0, 0.0], weights=[3, 1])], 100, 0).value == 0.75


def test_a_perplexity_is_the_exponential_of_the_weighted_mean() -> None:
    found = estimate([measurement([1.0, 3.0], weights=[1, 1], statistic="exp_mean")], 100, 0)
    assert found.value == pytest.approx(np.exp(2.0), rel=1e-12)  # float64 rounding only
    assert found.ci_low < found.value < found.ci_high


def explicit_resampling(statistic, clusters: np.ndarray, num_samples: int) -> np.ndarray:
    """2.5 % and 97.5 % quantiles of `statistic(rows)` by drawing clusters one by one."""
    random, names, samples = np.random.default_rng(0), np.unique(clusters), []
    for _ in range(num_samples):
        samples.append(
            statistic(np.concatenate([np.flatnonzero(clusters == c) for c in random.choice(names, len(names))]))
        )
    return np.quantile(samples, [0.025, 0.975])


def test_the_interval_is_that_of_an_explicit_resampling_of_clusters() -> None:
    random = np.random.default_rng(0)
    values, weights, clusters = random.random(60), random.integers(1, 9, 60), random.integers(0, 12, 60)
    found = estimate([measurement(values, weights, clusters)], 4000, 1)
    low, high = explicit_resampling(
        lambda rows: (values[rows] * weights[rows]).sum() / weights[rows].sum(), clusters, 4000
    )
    # Two bootstraps of 4000 samples: their quantiles scatter by a few per cent of the interval's width.
    assert found.ci_low == pytest.approx(low, abs=0.1 * (high - low))
    assert found.ci_high == pytest.approx(high, abs=0.1 * (high - low))


def test_the_interval_of_a_rank_statistic_is_that_of_scipy_on_resampled_examples() -> None:
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(1)
    label, clusters = random.random(80), random.integers(0, 15, 80)
    prediction = label + 0.5 * random.random(80)
    found = estimate([ranked(prediction, label, clusters)], 500, 1)
    low, high = explicit_resampling(
        lambda rows: stats.spearmanr(prediction[rows], label[rows]).statistic, clusters, 500
    )
    assert found.value == pytest.approx(stats.spearmanr(prediction, label).statistic, abs=1e-12)
    # As above, with an eighth of the samples.
    assert found.ci_low == pytest.approx(low, abs=0.2 * (high - low))
    assert found.ci_high == pytest.approx(high, abs=0.2 * (high - low))


def test_copies_of_a_chain_in_its_cluster_do_not_narrow_the_interval() -> None:
    values = np.random.default_rng(0).random(20)
    once = estimate([measurement(values)], 2000, 0)
    copied = estimate([measurement(np.repeat(values, 5), clusters=np.repeat(np.arange(20), 5))], 2000, 0)
    # The same clusters are drawn by the same seed, and five copies weigh like one: equal up to rounding.
    assert (copied.ci_low, copied.ci_high) == pytest.approx((once.ci_low, once.ci_high), rel=1e-12)
    assert (copied.num_examples, copied.num_clusters) == (100, 20)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(5)
    hits = 0
    for trial in range(200):
        effects = random.normal(0.5, 0.1, size=40)
        values = np.repeat(effects, 3) + random.normal(0, 0.02, size=120)
        found = estimate([measurement(values, clusters=np.repeat(np.arange(40), 3))], 400, trial)
        hits += found.ci_low <= 0.5 <= found.ci_high
    # 95 % of 200 is 190 with a standard deviation of 3; percentile intervals of 40 clusters lose about 2 %.
    assert 176 <= hits <= 199


def test_one_cluster_gives_a_value_without_an_interval() -> None:
    found = estimate([measurement([0.2, 0.4], clusters=[7, 7])], 100, 0)
    assert (found.value, found.ci_low, found.ci_high) == (pytest.approx(0.3), None, None)
    assert found.reason == "one sequence cluster"


def test_the_same_seed_gives_the_same_interval() -> None:
    m = measurement(np.random.default_rng(0).random(30))
    assert estimate([m], 500, 3) == estimate([m], 500, 3)
    assert estimate([m], 500, 3).ci_low != estimate([m], 500, 4).ci_low


def test_the_size_of_chunks_does_not_move_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(30)
    seeds = [measurement(values + 0.1 * s, seed=s) for s in range(3)]
    whole = estimate(seeds, 500, 3)
    monkeypatch.setattr("eval.intervals._MAX_COUNTS", 100)
    part = estimate(seeds, 500, 3)
    # A matrix product's order of sums may depend on the width of the chunk.
    assert (part.ci_low, part.ci_high) == pytest.approx((whole.ci_low, whole.ci_high), rel=1e-12)


def test_the_value_is_the_mean_over_seeds_and_their_spread_widens_the_interval() -> None:
    random = np.random.default_rng(0)
    base = random.random(200)
    alike = [measurement(base + 0.3, seed=s) for s in range(3)]
    apart = [measurement(base + 0.3 * s, seed=s) for s in range(3)]
    one, three = estimate(alike, 1000, 0), estimate(apart, 1000, 0)
    assert three.value == pytest.approx(one.value, rel=1e-12)  # float64 rounding only
    assert three.seeds == (0, 1, 2)
    # Means of three draws of 0, 0.3 and 0.6 have a standard deviation of 0.14; the examples alone 0.02.
    assert one.ci_high - one.ci_low < 0.1
    assert three.ci_high - three.ci_low > 0.4


def test_seeds_whose_examples_come_in_another_order_are_put_in_one() -> None:
    random = np.random.default_rng(0)
    label, guesses = random.random(40), [random.random(40) for _ in range(2)]
    first, second = (ranked(guess, label, np.arange(40) // 4, seed=s) for s, guess in enumerate(guesses))
    assert estimate([first, selected(second, second.keys[::-1])], 300, 0) == estimate([first, second], 300, 0)


def test_rows_of_an_example_are_drawn_together_and_may_differ_in_number() -> None:
    random = np.random.default_rng(2)
    lengths, clusters = random.integers(1, 30, size=40), np.arange(40) // 2
    label = random.random(lengths.sum()) < 0.4
    score = label + random.normal(size=lengths.sum())
    columns = {"score": score, "label": label}
    by_rows = scored("auroc", "auroc", [f"k{i}" for i in range(40)], clusters, columns, rows=lengths)
    flat = classed(score, label, np.repeat(clusters, lengths))
    ours, theirs = estimate([by_rows], 300, 0), estimate([flat], 300, 0)
    assert (ours.value, ours.ci_low, ours.ci_high) == (theirs.value, theirs.ci_low, theirs.ci_high)
    assert (ours.num_examples, ours.num_clusters) == (40, 20)
    part = selected(by_rows, ["k7", "k3"])
    ends = np.cumsum(lengths)
    expected = np.concatenate([score[ends[6] : ends[7]], score[ends[2] : ends[3]]])
    assert np.array_equal(part.columns["score"], expected)
    assert part.rows.tolist() == [lengths[7], lengths[3]]


def test_resamples_of_one_class_are_left_out_and_counted() -> None:
    label = np.zeros(30, dtype=bool)
    label[:2] = True
    found = estimate([classed(np.arange(30)[::-1] % 7, label)], 1000, 0)
    # Neither positive is drawn with probability (28/30)^30 = 0.126; 1000 draws scatter by 0.011.
    assert 80 < found.num_undefined < 175
    assert found.ci_low is not None


def test_a_metric_that_is_undefined_says_why_and_is_never_nan() -> None:
    found = estimate([classed([0.1, 0.2, 0.3], [True, True, True])], 100, 0)
    assert (found.value, found.ci_low, found.reason) == (None, None, "all labels are one class")
    found = estimate([ranked([0.5, 0.5, 0.5], [1.0, 2.0, 3.0])], 100, 0)
    assert (found.value, found.reason) == (None, "all predictions are equal")
    found = estimate([ranked([0.5, np.nan, 0.5], [1.0, 2.0, 3.0], seed=4)], 100, 0)
    assert (found.value, found.reason) == (None, "column 'prediction' (seed 4) holds values that are not finite")


def test_a_statistic_that_too_many_resamples_lack_has_a_value_but_no_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    lone = classed([0.9, 0.1, 0.2], [True, False, False])
    found = estimate([lone], 1000, 0)
    # The positive is not drawn with probability (2/3)^3, only it with (1/3)^3: a third of 1000, scatter 15.
    assert 270 < found.num_undefined < 400
    assert found.ci_low is not None
    monkeypatch.setattr("eval.intervals.MIN_DEFINED", 0.9)
    refused = estimate([lone], 1000, 0)
    assert (refused.value, refused.ci_low, refused.ci_high) == (1.0, None, None)
    assert refused.reason == f"undefined on {found.num_undefined} of 1000 resamples"
    with pytest.raises(NotTestable, match="more examples are needed"):
        paired_difference([lone], [lone], 1000, 0)


def test_examples_without_weight_are_left_out() -> None:
    found = measurement_of("m", [("a", 1, 0.5, 2.0), ("b", 2, 0.0, 0.0)])
    assert found is not None
    assert found.keys == ("a",)
    assert measurement_of("m", [("b", 2, 0.0, 0.0)]) is None


def test_pairing_sees_a_small_gain_that_separate_intervals_do_not() -> None:
    base = np.random.default_rng(0).random(60)
    first, second = measurement(base), measurement(base + 0.02)
    apart = [estimate([m], 1000, 0) for m in (first, second)]
    paired = paired_difference([first], [second], 1000, 0)
    assert apart[0].ci_high > apart[1].ci_low
    assert paired.difference == pytest.approx(0.02, abs=1e-12)  # float64 rounding only
    assert (paired.first, paired.second) == (apart[0].value, apart[1].value)
    assert paired.ci_low > 0
    assert paired.p_value <= 0.01


def test_pairing_sees_a_gain_in_ranks() -> None:
    random = np.random.default_rng(0)
    label, noise = random.random(100), random.normal(size=100)
    found = paired_difference([ranked(label + 0.5 * noise, label)], [ranked(label + 0.3 * noise, label)], 1000, 0)
    assert found.ci_low > 0
    assert found.p_value <= 0.01
    assert found.p_sign_flip is not None


@pytest.mark.parametrize("statistic", ["mean", "spearman"])
def test_p_values_are_uniform_enough_when_nothing_differs(statistic: str) -> None:
    random = np.random.default_rng(1)
    p = []
    for trial in range(100):
        clusters = np.repeat(np.arange(60), random.geometric(0.3, size=60))
        n = len(clusters)
        label = random.normal(size=60)[clusters] + 0.5 * random.normal(size=n)
        guesses = [label + random.normal(size=60)[clusters] + random.normal(size=n) for _ in range(2)]
        make = ranked if statistic == "spearman" else lambda guess, label, clusters: measurement(guess, None, clusters)
        first, second = (make(guess, label, clusters) for guess in guesses)
        p.append(paired_difference([first], [second], 200, trial).p_value)
    # 5 % of 100 is 5 with a standard deviation of 2.2: no more than three of those above. (Of 1000 trials with
    # clusters of still more uneven sizes 3.2 to 6.0 % are rejected, whatever the statistic.) That p is no constant
    # shows in its lower half.
    assert sum(x < 0.05 for x in p) <= 12
    assert 35 <= sum(x < 0.5 for x in p) <= 65


def test_few_clusters_cannot_give_a_small_p_value() -> None:
    better = measurement([0.9, 0.8, 0.9, 0.8]), measurement([0.5, 0.5, 0.5, 0.5])
    found = paired_difference([better[1]], [better[0]], 4000, 0)
    # Of the 16 ways to exchange the models in 4 clusters two are as extreme: 0.125, known to 0.005 from 4000 draws.
    assert found.p_value == pytest.approx(0.125, abs=0.02)
    assert found.p_bootstrap < 0.01


def test_differences_between_seeds_are_no_difference_between_models() -> None:
    random = np.random.default_rng(0)
    base = random.random(100)
    first = [measurement(base + shift, seed=s) for s, shift in enumerate((0.0, 0.2, 0.1))]
    second = [measurement(base + shift, seed=s) for s, shift in enumerate((0.3, 0.05, 0.1))]
    found = paired_difference(first, second, 1000, 0)
    assert found.difference == pytest.approx(0.05, abs=1e-12)  # float64 rounding only
    assert found.ci_low < 0 < found.ci_high
    assert found.p_value > 0.2
    # One seed of each would have told of a difference beyond doubt.
    assert paired_difference(first[:1], second[:1], 1000, 0).p_value < 0.01


def test_with_many_clusters_statistics_that_are_no_means_are_tested_by_the_bootstrap_alone() -> None:
    random = np.random.default_rng(0)
    n = MAX_JACKKNIFE + 1
    label = random.random(n)
    found = paired_difference([ranked(random.random(n), label)], [ranked(label + random.random(n), label)], 200, 0)
    assert found.p_sign_flip is None
    assert found.p_value == found.p_bootstrap < 0.05


def test_pairing_does_not_depend_on_the_order_of_examples() -> None:
    m = measurement(np.random.default_rng(2).random(10))
    assert paired_difference([m], [selected(m, m.keys[::-1])], 200, 0).difference == 0.0
    assert paired_difference([m], [m], 200, 0).p_value == 1.0


def test_different_examples_or_metrics_are_not_paired() -> None:
    first = measurement([0.1, 0.2, 0.3])
    with pytest.raises(UserError, match="different examples"):
        paired_difference([first], [measurement([0.1, 0.2])], 100, 0)
    with pytest.raises(UserError, match="metrics differ"):
        paired_difference([first], [measurement([0.1, 0.2, 0.3], metric="other")], 100, 0)
    with pytest.raises(UserError, match="different sequence clusters"):
        paired_difference([first], [measurement([0.1, 0.2, 0.3], clusters=[0, 0, 1])], 100, 0)
    longer = scored("m", "mean", first.keys, range(3), {"values": np.ones(6)}, rows=[2, 2, 2])
    with pytest.raises(UserError, match="different numbers of residues"):
        paired_difference([first], [longer], 100, 0)


def test_what_cannot_be_tested_says_so() -> None:
    alone = measurement([0.1, 0.2], clusters=[0, 0])
    with pytest.raises(NotTestable, match="1 sequence cluster"):
        paired_difference([alone], [alone], 100, 0)
    constant = ranked([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])
    with pytest.raises(NotTestable, match="all predictions are equal"):
        paired_difference([constant], [constant], 100, 0)


def test_a_measurement_whose_parts_do_not_fit_is_refused() -> None:
    with pytest.raises(AssertionError):
        scored("m", "mean", ["a", "b"], [0, 1], {"values": np.ones(3)})
    with pytest.raises(AssertionError):
        scored("m", "auroc", ["a", "b"], [0, 1], {"values": np.ones(2)})
    with pytest.raises(AssertionError):
        scored("m", "mean", ["a", "a"], [0, 1], {"values": np.ones(2)})


def test_holm_multiplies_the_smallest_by_the_number_of_tests_and_stays_in_order() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_benjamini_and_hochberg_divide_by_the_rank_and_stay_in_order() -> None:
    stats = pytest.importorskip("scipy.stats")
    p = [0.01, 0.04, 0.03, 0.5, 0.02]
    assert benjamini_hochberg(p) == pytest.approx(stats.false_discovery_control(p))
    assert benjamini_hochberg([0.01, 0.9]) == pytest.approx([0.02, 0.9])
    assert benjamini_hochberg([]) == []
