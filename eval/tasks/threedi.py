"""3Di accuracy and perplexity: the own head, the same head fitted afterwards, and two baselines without a model."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from data_pipeline.structure.chain import THREEDI_STATES
from eval.data import Example
from eval.intervals import measurement_of
from eval.probes import fit_token_head
from eval.tasks.protocol import Context, FunctionTask, Outcome, Wants

METRICS = ("accuracy", "perplexity")
NUM_STATES = len(THREEDI_STATES)
_METHOD = (
    "over residues with a computed 3Di state, by the unmasked sequence: accuracy is the share whose state is "
    "predicted, perplexity exp of the mean of -log p(state); {}"
)
_NUM_BYTES = 256


def outcome_of(examples: Sequence[Example], log_probs: Callable[[int], np.ndarray]) -> Outcome:
    """Accuracy and perplexity by `log_probs(i)`, float [N, 20] of example i, over residues with a valid state."""
    accuracy, nll = [], []
    for i, example in enumerate(examples):
        at = np.flatnonzero(example.threedi >= 0)
        if not len(at):
            continue
        found, truth = log_probs(i)[at], example.threedi[at]
        correct, loss = found.argmax(axis=1) == truth, -found[np.arange(len(at)), truth]
        accuracy.append((example.key, example.cluster, float(correct.mean()), float(len(at))))
        nll.append((example.key, example.cluster, float(loss.mean(dtype=np.float64)), float(len(at))))
    if not accuracy:
        return Outcome(skipped="no residue of the held-out split has a 3Di state")
    return Outcome((measurement_of("accuracy", accuracy), measurement_of("perplexity", nll, link="exp")))


def state_log_odds(examples: Sequence[Example]) -> np.ndarray:
    """float64 [20]: log frequency of each valid state, every state counted once more than it occurs."""
    states = np.concatenate([example.threedi for example in examples])
    counts = np.bincount(states[states >= 0], minlength=NUM_STATES) + 1.0
    return np.log(counts / counts.sum())


def lookup_table(examples: Sequence[Example]) -> np.ndarray:
    """float64 [256, 20]: log frequency of each state by the residue letter's byte, with one count more spread as the
    states of all residues are; letters never seen have those of all residues."""
    residues = np.concatenate([_letters(example) for example in examples])
    states = np.concatenate([example.threedi for example in examples])
    valid = states >= 0
    counts = np.zeros((_NUM_BYTES, NUM_STATES))
    np.add.at(counts, (residues[valid], states[valid]), 1.0)
    counts += np.exp(state_log_odds(examples))
    return np.log(counts / counts.sum(axis=1, keepdims=True))


def _letters(example: Example) -> np.ndarray:
    return np.frombuffer(example.sequence.encode(), dtype=np.uint8)


def _sequences(examples: Sequence[Example]) -> list[str]:
    return [example.sequence for example in examples]


def _own_head(context: Context) -> Outcome:
    test = context.data.test
    if context.features.threedi_logits([]) is None:
        return Outcome(skipped="the checkpoint has no 3Di head (trained with losses.structure=0)")

    def log_probs(i: int) -> np.ndarray:
        (logits,) = context.features.threedi_logits([test[i].sequence])
        return logits.log_softmax(dim=-1).numpy()

    return outcome_of(test, log_probs)


def _fitted_head(context: Context) -> Outcome:
    fit, test = context.data.fit, context.data.test
    at = [np.flatnonzero(example.threedi >= 0) for example in fit]
    if not any(len(rows) for rows in at):
        return Outcome(skipped="no residue of the fit split has a 3Di state")
    hidden = context.features.residue_rows(_sequences(fit), at)
    states = torch.from_numpy(np.concatenate([example.threedi[rows] for example, rows in zip(fit, at, strict=True)]))
    clusters = np.repeat([example.cluster for example in fit], [len(rows) for rows in at])
    head = fit_token_head(hidden, states, clusters, NUM_STATES, context.config.head_epochs, context.config.seed)

    @torch.no_grad()
    def log_probs(i: int) -> np.ndarray:
        (tested,) = context.features.hidden([test[i].sequence])
        return head(tested).log_softmax(dim=-1).numpy()

    return outcome_of(test, log_probs)


def _lookup(context: Context) -> Outcome:
    table = lookup_table(context.data.fit)
    return outcome_of(context.data.test, lambda i: table[_letters(context.data.test[i])])


def _majority(context: Context) -> Outcome:
    odds = state_log_odds(context.data.fit)
    return outcome_of(context.data.test, lambda i: np.tile(odds, (len(context.data.test[i]), 1)))


def _test_residues(context: Context) -> Wants:
    return Wants(residues=tuple(_sequences(context.data.test)))


def _all_residues(context: Context) -> Wants:
    return Wants(residues=tuple(_sequences((*context.data.fit, *context.data.test))))


OWN_HEAD = FunctionTask(
    name="threedi",
    version="1",
    frozen="trunk and 3Di head",
    head="none: the head trained with the checkpoint",
    method=_METHOD.format("by the checkpoint's own head"),
    metrics=METRICS,
    work=_own_head,
    needs=_test_residues,
)
FITTED_HEAD = FunctionTask(
    name="threedi_fitted",
    version="1",
    frozen="trunk",
    head="L2-normalise, Linear(D, D), ReLU, Linear(D, 20); Adam 1e-3, 512 residues a batch, inputs standardised "
    "(folded into the first Linear), on the fit split; epoch chosen on a tenth of the fit split's clusters",
    method=_METHOD.format("by a head of the same architecture fitted on frozen features"),
    metrics=METRICS,
    work=_fitted_head,
    needs=_all_residues,
)
LOOKUP = FunctionTask(
    name="threedi_lookup",
    version="1",
    frozen="no model",
    head="most frequent state of each residue type in the fit split",
    method=_METHOD.format("by residue type alone, with its frequencies in the fit split"),
    metrics=METRICS,
    work=_lookup,
)
MAJORITY = FunctionTask(
    name="threedi_majority",
    version="1",
    frozen="no model",
    head="most frequent state in the fit split",
    method=_METHOD.format("always the most frequent state, with the frequencies of the fit split"),
    metrics=METRICS,
    work=_majority,
)
TASKS = (OWN_HEAD, FITTED_HEAD, LOOKUP, MAJORITY)
