"""Three-state secondary structure by a linear probe on frozen hidden states."""

from itertools import pairwise

import numpy as np
import torch

from eval.intervals import measurement_of
from eval.probes import fit_softmax_regression
from eval.tasks.protocol import Context, FunctionTask, Outcome, Wants

METRIC = "q3"
NUM_CLASSES = 3
MAX_FIT_RESIDUES = 60_000


def _run(context: Context) -> Outcome:
    fit, test = context.data.fit, context.data.test
    labels = np.concatenate([example.secondary for example in fit])
    chosen = np.flatnonzero(labels >= 0)
    if len(np.unique(labels[chosen])) < 2:
        return Outcome(skipped="the fit split has fewer than two secondary-structure states")
    if len(chosen) > MAX_FIT_RESIDUES:
        generator = np.random.default_rng(context.config.seed)
        chosen = np.sort(generator.choice(chosen, MAX_FIT_RESIDUES, replace=False))
    starts = np.cumsum([0, *map(len, fit)])
    rows_of = [chosen[(chosen >= a) & (chosen < b)] - a for a, b in pairwise(starts)]
    hidden = context.features.residue_rows([example.sequence for example in fit], rows_of)
    probe = fit_softmax_regression(hidden, torch.from_numpy(labels[chosen]), NUM_CLASSES)
    rows = []
    hidden_of_test = context.features.hidden([example.sequence for example in test])
    for example, states in zip(test, hidden_of_test, strict=True):
        valid = example.secondary >= 0
        count = int(valid.sum())
        correct = float((probe.predict(states).numpy()[valid] == example.secondary[valid]).sum())
        rows.append((example.key, example.cluster, correct / max(count, 1), float(count)))
    measurement = measurement_of(METRIC, rows)
    if measurement is None:
        return Outcome(skipped="no residue of the held-out split has a secondary-structure state")
    return Outcome((measurement,))


def _wants(context: Context) -> Wants:
    return Wants(residues=tuple(example.sequence for example in (*context.data.fit, *context.data.test)))


TASK = FunctionTask(
    name="secondary_structure",
    version="1",
    frozen="trunk",
    head=f"multinomial logistic regression on standardised hidden states, L2 strength 1, on at most {MAX_FIT_RESIDUES} "
    "residues of the fit split",
    method="share of residues whose state (helix H G I, strand E B, coil) is predicted; states by Kabsch-Sander "
    "hydrogen bonds from coordinates; over residues with a complete backbone",
    metrics=(METRIC,),
    work=_run,
    needs=_wants,
)
