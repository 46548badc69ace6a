"""3Di tasks: accuracy and perplexity, counted by hand and against closed forms."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from configs.evaluate import EvalConfig
from eval.data import EvalData, Example
from eval.intervals import estimate
from eval.tasks.protocol import Context, Outcome
from eval.tasks.threedi import (
    FITTED_HEAD,
    LOOKUP,
    MAJORITY,
    METRICS,
    OWN_HEAD,
    TASKS,
    lookup_table,
    outcome_of,
    state_log_odds,
)
from tests.unit.eval.makers import make_example, make_features, train_config


def example(key: str, sequence: str, states: list[int], cluster: int = 0) -> Example:
    return replace(make_example(key, sequence, cluster), threedi=np.array(states))


def values(outcome: Outcome) -> dict[str, float]:
    assert outcome.skipped is None
    assert [m.metric for m in outcome.measurements] == list(METRICS)
    return {m.metric: estimate([m], 100, 0).value for m in outcome.measurements}


def context_of(test: list[Example], fit: list[Example], structure: float = 0.5, **settings: object) -> Context:
    features = make_features(train_config(Path("runs"), Path("shards"), structure))
    return Context(EvalConfig(**settings), EvalData("x", tuple(test), tuple(fit)), None, features)


def test_accuracy_and_perplexity_count_valid_residues_of_all_chains_together() -> None:
    chains = [example("a", "AC", [0, -1]), example("b", "ACD", [1, 0, 5])]
    odds = np.full(20, np.log(0.5 / 19))
    odds[0] = np.log(0.5)
    found = values(outcome_of(chains, lambda i: np.tile(odds, (len(chains[i]), 1))))
    assert found["accuracy"] == pytest.approx(2 / 4)
    # Two residues at 1/2 and two at 1/38: exp of the mean of -log p.
    assert found["perplexity"] == pytest.approx(np.sqrt(2 * 38))


def test_a_uniform_prediction_has_the_perplexity_of_twenty_states() -> None:
    chain = example("a", "ACDE", [3, 7, 11, 19])
    found = values(outcome_of([chain], lambda i: np.full((4, 20), -np.log(20.0))))
    assert found["perplexity"] == pytest.approx(20.0)


def test_no_valid_state_is_a_reason_to_skip() -> None:
    outcome = outcome_of([example("a", "AC", [-1, -1])], lambda i: np.zeros((2, 20)))
    assert "no residue" in outcome.skipped


def test_frequencies_count_every_state_once_more_than_it_occurs() -> None:
    odds = state_log_odds([example("a", "ACDEF", [0, 0, 3, -1, 19])])
    assert np.exp(odds).sum() == pytest.approx(1.0)
    assert np.exp(odds[[0, 1, 3]]).tolist() == pytest.approx([3 / 24, 1 / 24, 2 / 24])


def test_the_lookup_follows_residue_types_and_falls_back_to_all_residues() -> None:
    fit = [example("a", "AAAC", [5, 5, 2, 7])]
    table = lookup_table(fit)
    assert table[ord("A")].argmax() == 5
    assert table[ord("C")].argmax() == 7
    np.testing.assert_allclose(table[ord("W")], state_log_odds(fit))
    np.testing.assert_allclose(np.exp(table).sum(axis=1), 1.0)
    test = [example("t", "ACA", [5, 7, 2])]
    found = values(LOOKUP.run(context_of(test, fit)))
    assert found["accuracy"] == pytest.approx(2 / 3)
    expected = np.exp(-np.mean([table[ord("A"), 5], table[ord("C"), 7], table[ord("A"), 2]]))
    assert found["perplexity"] == pytest.approx(expected)


def test_the_majority_predicts_frequencies() -> None:
    fit, test = [example("a", "AAAC", [5, 5, 2, 7])], [example("t", "ACA", [5, 7, 2])]
    found = values(MAJORITY.run(context_of(test, fit)))
    assert found["accuracy"] == pytest.approx(1 / 3)
    assert found["perplexity"] == pytest.approx((24**3 / (3 * 2 * 2)) ** (1 / 3))


def test_the_own_head_is_measured_on_its_logits_without_embedding_twice() -> None:
    test = [make_example(f"e{i}", "MKTAYIAKQR"[: 5 + i], cluster=i, seed=i) for i in range(4)]
    context = context_of(test, [])
    found = values(OWN_HEAD.run(context))
    logits = context.features.model.threedi_logits([e.sequence for e in test])
    nll, right = [], []
    for e, of_chain in zip(test, logits, strict=True):
        at = np.flatnonzero(e.threedi >= 0)
        odds = of_chain.log_softmax(-1).numpy()[at]
        nll += (-odds[np.arange(len(at)), e.threedi[at]]).tolist()
        right += (odds.argmax(1) == e.threedi[at]).tolist()
    assert found["accuracy"] == pytest.approx(np.mean(right))
    # float32 log-probabilities of other batches.
    assert found["perplexity"] == pytest.approx(np.exp(np.mean(nll)), rel=1e-5)
    assert context.features.num_embedded == 4


def test_a_fitted_head_beats_the_frequencies_it_is_compared_with() -> None:
    random = np.random.default_rng(0)
    letters, chains = "ACDEFGHIKL", []
    for i in range(40):
        sequence = "".join(random.choice(list(letters), 30))
        chains.append(example(f"e{i}", sequence, [letters.index(letter) for letter in sequence], cluster=i))
    context = context_of(chains[30:], chains[:30], head_epochs=150)
    fitted, majority = values(FITTED_HEAD.run(context)), values(MAJORITY.run(context))
    assert fitted["perplexity"] < 0.8 * majority["perplexity"]
    assert fitted["accuracy"] > majority["accuracy"] + 0.2
    wanted = FITTED_HEAD.wants(context).residues
    assert set(wanted) == {chain.sequence for chain in chains}
    assert context.features.num_embedded == len(set(wanted))


def test_a_checkpoint_without_a_head_says_so() -> None:
    outcome = OWN_HEAD.run(context_of([make_example()], [], structure=0.0))
    assert "no 3Di head" in outcome.skipped


def test_every_3di_task_reports_both_metrics() -> None:
    assert {task.name for task in TASKS} == {"threedi", "threedi_fitted", "threedi_lookup", "threedi_majority"}
    assert all(task.metrics == ("accuracy", "perplexity") for task in TASKS)
