"""Metrics and probes against scikit-learn, and precision of contacts against a brute force in float64."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score

from data_pipeline.structure.geometry import contact_map
from eval.intervals import estimate
from eval.probes import fit_softmax_regression
from eval.tasks.contact import DIVISORS, RANGES, precisions
from eval.tasks.threedi import accuracy_of, lookup_table, majority_state
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
        for span, (low, high) in RANGES.items()
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


def test_accuracy_equals_scikit_learn_over_all_residues() -> None:
    examples, random = random_examples(20), np.random.default_rng(1)
    predictions = [random.integers(0, 20, size=len(example)) for example in examples]
    outcome = accuracy_of(examples, lambda i: predictions[i])
    truth, guess = np.concatenate([e.threedi for e in examples]), np.concatenate(predictions)
    expected = accuracy_score(truth[truth >= 0], guess[truth >= 0])
    found = estimate(outcome.measurements[0], 100, 0)
    # A weighted mean of ratios against one ratio: float64 rounding.
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert found.num_examples == 20
    assert found.num_clusters == 10


def test_lookup_and_majority_equal_counting_by_hand() -> None:
    examples = random_examples(12)
    letters = "".join(example.sequence for example in examples)
    states = np.concatenate([example.threedi for example in examples])
    table = lookup_table(examples)
    for letter in LETTERS:
        own = [s for s, x in zip(states, letters, strict=True) if x == letter and s >= 0]
        counts = [own.count(s) for s in range(20)]
        assert table[ord(letter)] == int(np.argmax(counts))
    valid = states[states >= 0].tolist()
    assert majority_state(examples) == max(range(20), key=lambda s: (valid.count(s), -s))
    assert table[ord("J")] == majority_state(examples)


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
