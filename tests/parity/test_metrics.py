"""Metrics and probes against scikit-learn, scipy and brute force in float64."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as theirs
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score

from data_pipeline.structure.geometry import contact_map
from eval import metrics as ours
from eval.intervals import estimate
from eval.probes import fit_softmax_regression
from eval.tasks.contact_truth import DIVISORS, FIXED, precisions
from eval.tasks.threedi import lookup_table, outcome_of, state_log_odds
from tests.unit.eval.makers import make_example

LETTERS = list("ACDEFGHIKLMNPQRSTVWYX")


def random_examples(count: int, seed: int = 0) -> list:
    random = np.random.default_rng(seed)
    lengths = random.integers(20, 90, size=count)
    return [
        make_example(f"c{i:03d}_A", "".join(random.choice(LETTERS, size=n)), cluster=i // 2, seed=i)
        for i, n in enumerate(lengths)
    ]


def brute_force_precision(scores: np.ndarray, contacts: np.ndarray, low: int, high: int, divisor: int) -> float | None:
    """Precision by a plain loop: rank every pair of the range, look at the first floor(L / divisor)."""
    n = len(scores)
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n) if low <= j - i <= high]
    if not any(contacts[i, j] for i, j in pairs):
        return None
    ranked = sorted(pairs, key=lambda pair: (-float(scores[pair]), pair))
    top = ranked[: min(max(n // divisor, 1), len(ranked))]
    return sum(bool(contacts[pair]) for pair in top) / len(top)


@pytest.mark.parametrize("seed", range(6))
def test_precision_equals_the_brute_force(seed: int) -> None:
    random = np.random.default_rng(seed)
    n = int(random.integers(8, 70))
    coordinates = np.cumsum(random.normal(scale=2.0, size=(n, 1, 3)), axis=0) + random.normal(size=(n, 5, 3))
    contacts = contact_map(coordinates, 8.0)
    # Few distinct scores, so that ties are common.
    scores = random.integers(0, 12, size=(n, n)).astype(np.float64)
    scores = np.maximum(scores, scores.T)
    found = precisions(scores, contacts, np.ones(n, dtype=bool))
    expected = {
        f"{name}_{span}": value
        for span, (low, high) in FIXED.spans.items()
        for name, divisor in DIVISORS.items()
        if (value := brute_force_precision(scores, contacts, low, high, divisor)) is not None
    }
    # Both count pairs and divide once: equal.
    assert found == expected


def test_contacts_equal_a_loop_over_cb_distances() -> None:
    random = np.random.default_rng(3)
    coordinates = random.normal(scale=6.0, size=(25, 5, 3))
    expected = [[np.linalg.norm(a[4] - b[4]) < 8.0 for b in coordinates] for a in coordinates]
    assert np.array_equal(contact_map(coordinates, 8.0), np.array(expected))


def test_accuracy_and_perplexity_equal_scikit_learn_over_all_residues() -> None:
    examples, random = random_examples(20), np.random.default_rng(1)
    guesses = [np.log(random.dirichlet(np.ones(20), size=len(example))) for example in examples]
    accuracy, perplexity = outcome_of(examples, lambda i: guesses[i]).measurements
    truth, guess = np.concatenate([e.threedi for e in examples]), np.concatenate(guesses)
    valid = truth >= 0
    found = estimate([accuracy], 100, 0)
    # A weighted mean of ratios against one ratio: float64 rounding.
    assert found.value == pytest.approx(accuracy_score(truth[valid], guess[valid].argmax(axis=1)), abs=1e-12)
    assert (found.num_examples, found.num_clusters) == (20, 10)
    nll = theirs.log_loss(truth[valid], np.exp(guess[valid]), labels=range(20))
    assert estimate([perplexity], 100, 0).value == pytest.approx(np.exp(nll), rel=1e-9)


def test_the_lookup_equals_counting_by_hand() -> None:
    examples = random_examples(12)
    letters = "".join(example.sequence for example in examples)
    states = np.concatenate([example.threedi for example in examples])
    table, everywhere = lookup_table(examples), np.exp(state_log_odds(examples))
    valid = states[states >= 0].tolist()
    expected = [(valid.count(s) + 1) / (len(valid) + 20) for s in range(20)]
    np.testing.assert_allclose(everywhere, expected, rtol=1e-12)  # float64 rounding only
    for letter in LETTERS:
        own = [s for s, x in zip(states, letters, strict=True) if x == letter and s >= 0]
        expected = [(own.count(s) + everywhere[s]) / (len(own) + 1) for s in range(20)]
        np.testing.assert_allclose(np.exp(table[ord(letter)]), expected, rtol=1e-12)
    np.testing.assert_allclose(np.exp(table[ord("J")]), everywhere, rtol=1e-12)


def test_the_linear_probe_reaches_scikit_learns_optimum() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(1500, 12)) * random.uniform(0.1, 5.0, size=12) + 3.0
    logits = x @ random.normal(size=(12, 3)) * 0.4
    y = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)
    probe = fit_softmax_regression(torch.from_numpy(x).float(), torch.from_numpy(y), 3)
    standard = (x - x.mean(axis=0)) / x.std(axis=0)
    theirs = LogisticRegression(C=1.0, tol=1e-8, max_iter=2000).fit(standard, y)
    # Adding a constant to a feature's weights of all classes changes nothing but the penalty, so the optimum is unique;
    # float32 L-BFGS stops at gradients of 1e-5, which leaves 1e-3 in the weights.
    np.testing.assert_allclose(probe.weight.numpy(), theirs.coef_, atol=2e-3)
    guess = probe.predict(torch.from_numpy(x).float()).numpy()
    assert (guess == theirs.predict(standard)).mean() > 0.995


EXACT = 1e-9
"""Both count in whole numbers and divide, or sum some hundreds of products: float64 rounding is 1e-13 at most."""
SEEDS = range(25)


def scores_with_ties(random: np.random.Generator, shape: int | tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Scores (few distinct ones in every other case) that tell something of their labels."""
    labels = random.random(shape) < random.uniform(0.05, 0.6)
    labels.flat[0], labels.flat[-1] = True, False
    scores = random.normal(size=shape) + random.uniform(-1, 2) * labels
    return np.round(scores, int(random.integers(0, 3))) if random.random() < 0.5 else scores, labels


def numbers_with_ties(random: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    label = np.round(random.gamma(1.0, size=n), int(random.integers(1, 5)))
    guess = np.round(label * random.uniform(-1, 1) + random.normal(size=n), int(random.integers(0, 5)))
    return guess * 10.0 ** random.integers(-3, 4) + 7.0, label * 10.0 ** random.integers(-3, 4)


def classes(random: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    number = int(random.integers(2, 9))
    label = random.integers(0, number, n)
    return np.where(random.random(n) < 0.4, label, random.integers(0, number + 1, n)), label


def brute_force_fmax(scores: np.ndarray, labels: np.ndarray) -> float:
    """CAFA's definition, protein by protein at every distinct score; proteins without a label are no part of it."""
    kept = [i for i in range(len(scores)) if labels[i].any()]
    best = 0.0
    for threshold in sorted(set(scores.ravel().tolist())):
        precisions, recalls = [], []
        for i in kept:
            predicted = {j for j, score in enumerate(scores[i].tolist()) if score >= threshold}
            true = set(np.flatnonzero(labels[i]).tolist())
            if predicted:
                precisions.append(len(predicted & true) / len(predicted))
            recalls.append(len(predicted & true) / len(true))
        precision, recall = sum(precisions) / len(precisions) if precisions else 0.0, sum(recalls) / len(recalls)
        if precision + recall > 0:
            best = max(best, 2 * precision * recall / (precision + recall))
    return best


@pytest.mark.parametrize("seed", SEEDS)
def test_areas_under_curves_equal_scikit_learn(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores, labels = scores_with_ties(random, int(random.integers(2, 400)))
    assert ours.auroc(scores, labels) == pytest.approx(theirs.roc_auc_score(labels, scores), abs=EXACT)
    assert ours.average_precision(scores, labels) == pytest.approx(
        theirs.average_precision_score(labels, scores), abs=EXACT
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_areas_of_label_matrices_equal_scikit_learn(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores, labels = scores_with_ties(random, (int(random.integers(2, 60)), int(random.integers(1, 20))))
    for average, mine in (("micro", ours.micro_aupr), ("macro", ours.macro_aupr)):
        # scikit-learn's macro average counts labels without a positive as 0; they have no value and are left out.
        kept = labels.any(axis=0) if average == "macro" else np.ones(labels.shape[1], dtype=bool)
        expected = theirs.average_precision_score(labels[:, kept], scores[:, kept], average=average)
        assert mine(scores, labels) == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize("seed", SEEDS)
def test_fmax_equals_the_definition_by_brute_force(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores, labels = scores_with_ties(random, (int(random.integers(2, 30)), int(random.integers(1, 12))))
    assert ours.fmax(scores, labels) == pytest.approx(brute_force_fmax(scores, labels), abs=EXACT)
    single = scores.astype(np.float32)
    assert ours.fmax(single, labels) == pytest.approx(brute_force_fmax(single, labels), abs=EXACT)


@pytest.mark.parametrize("seed", SEEDS)
def test_correlations_and_errors_equal_scipy_and_scikit_learn(seed: int) -> None:
    random = np.random.default_rng(seed)
    guess, label = numbers_with_ties(random, int(random.integers(10, 300)))
    assert np.ptp(guess) > 0
    assert np.ptp(label) > 0
    assert ours.spearman(guess, label) == pytest.approx(stats.spearmanr(guess, label).statistic, abs=EXACT)
    assert ours.pearson(guess, label) == pytest.approx(stats.pearsonr(guess, label).statistic, abs=EXACT)
    assert ours.rmse(guess, label) == pytest.approx(theirs.root_mean_squared_error(label, guess), rel=EXACT)


@pytest.mark.parametrize("seed", SEEDS)
def test_scores_of_classes_equal_scikit_learn(seed: int) -> None:
    random = np.random.default_rng(seed)
    guess, label = classes(random, int(random.integers(5, 300)))
    assert ours.accuracy(guess, label) == pytest.approx(accuracy_score(label, guess), abs=EXACT)
    assert ours.f1(guess, label) == pytest.approx(theirs.f1_score(label, guess, average="macro"), abs=EXACT)
    assert ours.mcc(guess, label) == pytest.approx(theirs.matthews_corrcoef(label, guess), abs=EXACT)
    constant = np.zeros_like(label)
    assert ours.mcc(constant, label) == theirs.matthews_corrcoef(label, constant) == 0.0


@pytest.mark.parametrize("seed", SEEDS)
def test_precision_of_the_highest_pairs_equals_a_sort(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores, labels = scores_with_ties(random, int(random.integers(2, 200)))
    count = int(random.integers(1, 50))
    ranked = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count]
    assert ours.precision_at(scores, labels, count) == pytest.approx(
        sum(bool(labels[i]) for i in ranked) / len(ranked), abs=EXACT
    )


def test_ranks_equal_scipy() -> None:
    values = np.random.default_rng(0).integers(0, 30, 200) / 3.0
    assert np.array_equal(ours.mean_ranks(values), stats.rankdata(values))


@pytest.mark.parametrize(
    ("compute", "reason"),
    [
        (lambda: ours.auroc(np.arange(3.0), np.ones(3, dtype=bool)), "one class"),
        (lambda: ours.average_precision(np.arange(3.0), np.zeros(3, dtype=bool)), "no label is positive"),
        (lambda: ours.micro_aupr(np.ones((2, 2)), np.zeros((2, 2), dtype=bool)), "no label is positive"),
        (lambda: ours.macro_aupr(np.ones((2, 2)), np.zeros((2, 2), dtype=bool)), "no label is positive"),
        (lambda: ours.fmax(np.ones((2, 2)), np.zeros((2, 2), dtype=bool)), "no protein has a label"),
        (lambda: ours.spearman(np.ones(3), np.arange(3.0)), "all predictions are equal"),
        (lambda: ours.pearson(np.arange(3.0), np.ones(3)), "all labels are equal"),
        (lambda: ours.pearson(np.ones(1), np.ones(1)), "two examples"),
        (lambda: ours.mcc(np.arange(3), np.ones(3, dtype=int)), "one class"),
        (lambda: ours.precision_at(np.empty(0), np.empty(0), 3), "nothing to rank"),
    ],
)
def test_a_metric_without_a_value_says_why(compute, reason: str) -> None:
    with pytest.raises(ours.Undefined, match=reason):
        compute()
