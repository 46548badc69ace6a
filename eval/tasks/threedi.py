"""3Di accuracy: the checkpoint's own head, the same head fitted afterwards, and two baselines without a model."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from data_pipeline.structure.chain import THREEDI_STATES
from eval.data import Example
from eval.intervals import measurement_of
from eval.probes import fit_token_head
from eval.tasks.protocol import Context, FunctionTask, Outcome

METRIC = "accuracy"
NUM_STATES = len(THREEDI_STATES)
_METHOD = "share of residues with a computed 3Di state whose state is predicted, over the unmasked sequence; {}"
_NUM_BYTES = 256


def accuracy_of(examples: Sequence[Example], predict: Callable[[int], np.ndarray]) -> Outcome:
    """Accuracy of `predict(i)`, int64 [N] states of example i, over residues with a valid state."""
    rows = []
    for i, example in enumerate(examples):
        valid = example.threedi >= 0
        count = int(valid.sum())
        correct = float((predict(i)[valid] == example.threedi[valid]).sum())
        rows.append((example.key, example.cluster, correct / max(count, 1), float(count)))
    measurement = measurement_of(METRIC, rows)
    if measurement is None:
        return Outcome(skipped="no residue of the held-out split has a 3Di state")
    return Outcome((measurement,))


def majority_state(examples: Sequence[Example]) -> int:
    """The most frequent valid state; of equals the first."""
    states = np.concatenate([example.threedi for example in examples])
    return int(np.bincount(states[states >= 0], minlength=NUM_STATES).argmax())


def lookup_table(examples: Sequence[Example]) -> np.ndarray:
    """int64 [256]: most frequent state of each residue letter's byte; the majority state for letters never seen."""
    residues = np.concatenate([_letters(example) for example in examples])
    states = np.concatenate([example.threedi for example in examples])
    valid = states >= 0
    counts = np.zeros((_NUM_BYTES, NUM_STATES), dtype=np.int64)
    np.add.at(counts, (residues[valid], states[valid]), 1)
    return np.where(counts.sum(axis=1) > 0, counts.argmax(axis=1), majority_state(examples))


def _letters(example: Example) -> np.ndarray:
    return np.frombuffer(example.sequence.encode(), dtype=np.uint8)


def _own_head(context: Context) -> Outcome:
    logits = context.features.threedi_logits(context.data.test)
    if logits is None:
        return Outcome(skipped="the checkpoint has no 3Di head (trained with losses.structure=0)")
    return accuracy_of(context.data.test, lambda i: logits[i].argmax(dim=-1).numpy())


def _fitted_head(context: Context) -> Outcome:
    fit = context.data.fit
    states = torch.from_numpy(np.concatenate([example.threedi for example in fit]))
    clusters = np.repeat([example.cluster for example in fit], [len(example) for example in fit])
    valid = states >= 0
    if not bool(valid.any()):
        return Outcome(skipped="no residue of the fit split has a 3Di state")
    hidden = torch.cat(context.features.hidden(fit))[valid]
    head = fit_token_head(
        hidden, states[valid], clusters[valid.numpy()], NUM_STATES, context.config.head_epochs, context.config.seed
    )
    tested = context.features.hidden(context.data.test)
    with torch.no_grad():
        predictions = [head(states).argmax(dim=-1).numpy() for states in tested]
    return accuracy_of(context.data.test, lambda i: predictions[i])


def _lookup(context: Context) -> Outcome:
    table = lookup_table(context.data.fit)
    return accuracy_of(context.data.test, lambda i: table[_letters(context.data.test[i])])


def _majority(context: Context) -> Outcome:
    state = majority_state(context.data.fit)
    return accuracy_of(context.data.test, lambda i: np.full(len(context.data.test[i]), state))


OWN_HEAD = FunctionTask(
    name="threedi",
    version="1",
    frozen="trunk and 3Di head",
    head="none: the head trained with the checkpoint",
    method=_METHOD.format("by the checkpoint's own head"),
    metrics=(METRIC,),
    work=_own_head,
)
FITTED_HEAD = FunctionTask(
    name="threedi_fitted",
    version="1",
    frozen="trunk",
    head="L2-normalise, Linear(D, D), ReLU, Linear(D, 20); Adam 1e-3, 512 residues a batch, inputs standardised "
    "(folded into the first Linear), on the fit split; epoch chosen on a tenth of the fit split's clusters",
    method=_METHOD.format("by a head of the same architecture fitted on frozen features"),
    metrics=(METRIC,),
    work=_fitted_head,
)
LOOKUP = FunctionTask(
    name="threedi_lookup",
    version="1",
    frozen="no model",
    head="most frequent state of each residue type in the fit split",
    method=_METHOD.format("by residue type alone"),
    metrics=(METRIC,),
    work=_lookup,
)
MAJORITY = FunctionTask(
    name="threedi_majority",
    version="1",
    frozen="no model",
    head="most frequent state in the fit split",
    method=_METHOD.format("always the most frequent state"),
    metrics=(METRIC,),
    work=_majority,
)
