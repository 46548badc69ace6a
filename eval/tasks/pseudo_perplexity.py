"""Pseudo-perplexity by masking each residue once, in a few forward passes instead of one per residue."""

import hashlib

import numpy as np
import torch

from eval.data import Example
from eval.intervals import measurement_of
from eval.models.protocol import RESIDUES, NotSupported
from eval.tasks.protocol import Context, FunctionTask, Outcome

METRIC = "pseudo_perplexity"
NUM_PARTS = 7
"""Disjoint masks that cover a chain: each hides 1/7 = 14.3 % of it, close to the 15 % of training."""
_COLUMN = np.full(256, -1)
_COLUMN[np.frombuffer(RESIDUES.encode(), dtype=np.uint8)] = np.arange(len(RESIDUES))


def partition(example: Example, seed: int) -> list[np.ndarray]:
    """Disjoint, sorted position sets that together hold every standard residue once; keyed by (seed, key).

    Sets differ in size by at most one; empty ones (chains below NUM_PARTS residues) are left out.
    """
    digest = hashlib.sha256(f"{seed}:{example.key}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    scored = np.flatnonzero(_COLUMN[_bytes(example.sequence)] >= 0)
    shuffled = generator.permutation(scored)
    return [np.sort(shuffled[part::NUM_PARTS]) for part in range(min(NUM_PARTS, len(shuffled)))]


def _bytes(sequence: str) -> np.ndarray:
    return np.frombuffer(sequence.encode(), dtype=np.uint8)


def _run(context: Context) -> Outcome:
    examples = context.data.test
    jobs = [(i, part) for i, example in enumerate(examples) for part in partition(example, context.config.seed)]
    try:
        found = context.features.model.masked_log_probs([(examples[i].sequence, part) for i, part in jobs])
    except NotSupported as error:
        return Outcome(skipped=str(error))
    sums, counts = np.zeros(len(examples)), np.zeros(len(examples))
    for (i, part), log_probs in zip(jobs, found, strict=True):
        residues = _COLUMN[_bytes(examples[i].sequence)[part]]
        sums[i] -= float(log_probs.double()[torch.arange(len(part)), torch.from_numpy(residues)].sum())
        counts[i] += len(part)
    rows = [
        (example.key, example.cluster, total / max(count, 1.0), count)
        for example, total, count in zip(examples, sums, counts, strict=True)
    ]
    measurement = measurement_of(METRIC, rows, link="exp")
    if measurement is None:
        return Outcome(skipped="the held-out split has no standard residue")
    return Outcome((measurement,))


TASK = FunctionTask(
    name="pseudo_perplexity",
    version="1",
    frozen="trunk and language-model head",
    head="none",
    method="partition pseudo-perplexity: the standard residues of each chain are split at random (by seed and key) "
    f"into {NUM_PARTS} disjoint masks; exp of the mean over residues of -log p(residue | chain with its mask hidden), "
    "p over the whole vocabulary. Not the one-residue-at-a-time value, whose context is larger",
    metrics=(METRIC,),
    work=_run,
)
