"""A resample's value is the statistic on the examples repeated; checked on the repeated data themselves."""

from collections.abc import Callable

import numpy as np
import pytest

from eval import metrics
from eval.weighted_statistics import STATISTICS, Columns

NUM_CLUSTERS = 9


def _numbers(random: np.random.Generator, n: int) -> Columns:
    # Few distinct numbers, so that ties are common.
    return {"prediction": random.integers(0, 12, n) / 4.0, "label": random.integers(0, 15, n) * 1e3 - 7.0}


def _classes(random: np.random.Generator, n: int) -> Columns:
    label = random.integers(0, 5, n)
    return {"prediction": np.where(random.random(n) < 0.5, label, random.integers(0, 6, n)), "label": label}


def _scores(random: np.random.Generator, n: int) -> Columns:
    label = random.random(n) < 0.3
    return {"score": np.round(random.normal(size=n) + label, 1).astype(np.float32), "label": label}


def _matrices(random: np.random.Generator, n: int) -> Columns:
    labels = random.random((n, 7)) < 0.25
    # Some proteins have no label, some score nothing above the lowest true label.
    return {"scores": np.round(random.random((n, 7)) + 0.4 * labels, 1).astype(np.float32), "labels": labels}


def _values(random: np.random.Generator, n: int) -> Columns:
    return {"values": random.random(n), "weights": random.integers(1, 9, n).astype(np.float64)}


MAKERS: dict[str, Callable[[np.random.Generator, int], Columns]] = {
    "mean": _values,
    "exp_mean": _values,
    "accuracy": _classes,
    "macro_f1": _classes,
    "mcc": _classes,
    "rmse": _numbers,
    "pearson": _numbers,
    "spearman": _numbers,
    "auroc": _scores,
    "auprc": _scores,
    "fmax": _matrices,
    "aupr": _matrices,
}


def repeated(columns: Columns, times: np.ndarray) -> Columns:
    return {name: np.repeat(column, times, axis=0) for name, column in columns.items()}


def test_every_statistic_is_checked_here() -> None:
    assert set(MAKERS) | {"grouped_mean"} == set(STATISTICS)


@pytest.mark.parametrize("name", MAKERS)
def test_a_resample_is_the_statistic_on_the_repeated_examples(name: str) -> None:
    statistic, compared = STATISTICS[name], 0
    for seed in range(8):
        random = np.random.default_rng(seed)
        columns = MAKERS[name](random, 50)
        owner = random.permutation(np.arange(50) % NUM_CLUSTERS)
        counts = random.multinomial(NUM_CLUSTERS, np.full(NUM_CLUSTERS, 1 / NUM_CLUSTERS), size=20)
        found = statistic.resampled(columns, owner, NUM_CLUSTERS)(counts)
        assert found.shape == (20,)
        for row, value in zip(counts, found, strict=True):
            try:
                expected = statistic.value(repeated(columns, row[owner]))
            except metrics.Undefined:
                assert np.isnan(value)
                continue
            compared += 1
            # Sums in another order: float64 rounding.
            assert value == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert compared > 100


@pytest.mark.parametrize("name", MAKERS)
def test_each_cluster_once_gives_the_value_itself(name: str) -> None:
    columns = MAKERS[name](np.random.default_rng(3), 80)
    statistic = STATISTICS[name]
    found = statistic.resampled(columns, np.arange(80), 80)(np.ones((1, 80)))
    assert found[0] == pytest.approx(statistic.value(columns), rel=1e-12)  # float64 rounding only


@pytest.mark.parametrize("name", MAKERS)
def test_blocks_of_resamples_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(4)
    columns, owner = MAKERS[name](random, 40), np.arange(40) // 4
    counts = random.multinomial(10, np.full(10, 0.1), size=30)
    whole = STATISTICS[name].resampled(columns, owner, 10)(counts)
    monkeypatch.setattr("eval.weighted_statistics.CELLS_PER_BLOCK", 70)
    # A matrix product's order of sums may depend on the width of the block.
    np.testing.assert_allclose(STATISTICS[name].resampled(columns, owner, 10)(counts), whole, rtol=1e-12)


@pytest.mark.parametrize("name", ["auroc", "auprc", "aupr", "fmax", "mcc", "spearman", "pearson"])
def test_a_resample_of_one_class_or_one_number_has_no_value(name: str) -> None:
    columns = dict(MAKERS[name](np.random.default_rng(0), 12))
    last = {"auroc": "label", "auprc": "label", "aupr": "labels", "fmax": "labels"}.get(name, "label")
    column = columns[last].copy()
    column[:6] = np.zeros_like(column[:1])
    column[6:] = np.ones_like(column[6:])
    columns[last] = column
    owner, counts = np.arange(12) // 6, np.array([[2.0, 0.0], [1.0, 1.0]])
    found = STATISTICS[name].resampled(columns, owner, 2)(counts)
    assert np.isnan(found[0])
    assert not np.isnan(found[1])


def test_extreme_magnitudes_leave_correlations_as_they_are() -> None:
    random = np.random.default_rng(1)
    x, y = random.normal(size=60), random.normal(size=60)
    counts = random.multinomial(60, np.full(60, 1 / 60), size=5)
    plain = STATISTICS["pearson"].resampled({"prediction": x, "label": y}, np.arange(60), 60)(counts)
    moved = {"prediction": x * 1e150, "label": y * 1e-6 + 1e3}
    # 1e3 beside 1e-6 leaves 9 of 16 digits of the labels.
    np.testing.assert_allclose(STATISTICS["pearson"].resampled(moved, np.arange(60), 60)(counts), plain, atol=1e-6)


def means_of_means(values: np.ndarray, outer: np.ndarray, inner: np.ndarray) -> float:
    found = []
    for o in np.unique(outer):
        ours = outer == o
        found.append(np.mean([values[ours & (inner == i)].mean() for i in np.unique(inner[ours])]))
    return float(np.mean(found))


def test_a_mean_of_group_means_equals_loops_over_the_groups() -> None:
    random = np.random.default_rng(0)
    values, outer, inner = random.random(70), random.integers(0, 4, 70), random.integers(0, 9, 70)
    columns = {"values": values, "group_1": outer, "group_2": inner}
    expected = means_of_means(values, outer, inner)
    assert STATISTICS["grouped_mean"].value(columns) == pytest.approx(expected, rel=1e-12)  # float64 rounding only
    found = STATISTICS["grouped_mean"].resampled(columns, inner, 9)(np.ones((1, 9)))
    assert found[0] == pytest.approx(expected, rel=1e-12)
    one_level = {"values": values, "group": inner}
    flat = np.mean([values[inner == i].mean() for i in range(9)])
    assert STATISTICS["grouped_mean"].value(one_level) == pytest.approx(flat, rel=1e-12)


def test_a_group_drawn_twice_counts_twice_and_one_not_drawn_is_left_out() -> None:
    values, group = np.array([1.0, 3.0, 10.0, 20.0, 6.0]), np.array([0, 0, 1, 1, 2])
    work = STATISTICS["grouped_mean"].resampled({"values": values, "group": group}, group, 3)
    # Means of the groups are 2, 15 and 6.
    np.testing.assert_allclose(work(np.array([[2, 1, 0], [0, 0, 3], [1, 1, 1]])), [19 / 3, 6.0, 23 / 3])


def test_a_group_of_several_clusters_stays_one_group() -> None:
    values = np.array([1.0, 3.0, 10.0])
    columns = {"values": values, "group": np.array([0, 0, 1])}
    work = STATISTICS["grouped_mean"].resampled(columns, np.arange(3), 3)
    # Group 0 has the mean of what was drawn of it, and weighs as the other; absent it is left out.
    np.testing.assert_allclose(work(np.array([[2, 0, 1], [1, 1, 1], [0, 0, 3]])), [5.5, 6.0, 10.0])


def test_the_interval_of_group_means_is_as_wide_as_their_spread() -> None:
    random = np.random.default_rng(5)
    means = random.normal(size=200)
    group = np.repeat(np.arange(200), 3)
    counts = random.multinomial(200, np.full(200, 1 / 200), size=2000)
    found = STATISTICS["grouped_mean"].resampled({"values": means[group], "group": group}, group, 200)(counts)
    # Of 2000 resamples the standard deviation is known to 1.6 %; counting each drawn group once would give 0.76.
    assert found.std() == pytest.approx(means.std() / np.sqrt(200), rel=0.08)


@pytest.mark.parametrize("seed", range(20))
def test_the_threshold_of_mcc_is_the_best_of_all(seed: int) -> None:
    random = np.random.default_rng(seed)
    label = (random.random(40) < 0.15).astype(int)
    label[:2] = 0, 1
    # Rounded: several examples share a score.
    score = np.round(label + 1.5 * random.standard_normal(40), 1)
    values = np.unique(score)
    cuts = (values[1:] + values[:-1]) / 2
    correlations = [np.corrcoef(score > cut, label)[0, 1] for cut in cuts]
    threshold = metrics.mcc_threshold(score, label)
    assert threshold in cuts
    assert metrics.mcc((score > threshold).astype(int), label) == pytest.approx(max(correlations), abs=1e-12)


@pytest.mark.parametrize(
    ("score", "label"), [([1.0, 2.0], [0, 0]), ([1.0, 2.0], [1, 1]), ([3.0, 3.0, 3.0], [0, 1, 0]), ([], [])]
)
def test_where_nothing_can_be_told_the_threshold_is_zero(score: list[float], label: list[int]) -> None:
    assert metrics.mcc_threshold(np.array(score), np.array(label)) == 0.0
