"""Pseudo-perplexity by masking each residue once, in a few forward passes instead of one per residue."""

import hashlib

import numpy as np

from data_pipeline.structure.chain import AMINO_ACIDS
from eval.data import Example
from eval.intervals import measurement_of
from eval.tasks.protocol import Context, FunctionTask, Outcome

METRIC = "pseudo_perplexity"
NUM_PARTS = 7
"""Disjoint masks that cover a chain: each hides 1/7 = 14.3 % of it, close to the 15 % of training."""
_STANDARD = np.zeros(256, dtype=bool)
_STANDARD[np.frombuffer(AMINO_ACIDS.encode(), dtype=np.uint8)] = True


def partition(example: Example, seed: int) -> list[np.ndarray]:
    """Disjoint, sorted position sets that together hold every standard residue once; keyed by (seed, key).

    Sets differ in size by at most one; empty ones (chains below NUM_PARTS residues) are left out.
    """
    digest = hashlib.sha256(f"{seed}:{example.key}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    scored = np.flatnonzero(_STANDARD[np.frombuffer(example.sequence.encode(), dtype=np.uint8)])
    shuffled = generator.permutation(scored)
    return [np.sort(shuffled[part::NUM_PARTS]) for part in range(min(NUM_PARTS, len(shuffled)))]


def _run(context: Context) -> Outcome:
    examples = context.data.test
    jobs = [(i, part) for i, example in enumerate(examples) for part in partition(example, context.config.seed)]
    losses = context.features.masked_nll([(examples[i], part) for i, part in jobs])
    sums, counts = np.zeros(len(examples)), np.zeros(len(examples))
    for (i, _), loss in zip(jobs, losses, strict=True):
        sums[i] += float(loss.double().sum())
        counts[i] += len(loss)
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
