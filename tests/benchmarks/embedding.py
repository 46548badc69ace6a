"""Embedding proteins on a CPU: passes side by side, one thread each, beside threads that share every pass.

`python -m tests.benchmarks.embedding`: an ESM-2 of 8M with random weights, `--threads` threads, random proteins of
natural lengths; medians of interleaved rounds.

* `speedup`: wall time of shared passes of 4,096 tokens (torch's own way) over that of passes side by side;
* `speedup_same_batches`: the same with shared passes as small as those side by side;
* `cpu_ratio`: CPU time of shared passes over that of passes side by side: what threads lose waiting;
* `largest_difference`: of any state between the ways.
"""

import argparse
import os

import numpy as np
import torch

from eval.models.batches import batches_of
from eval.models.checkpoint_model import CheckpointModel, pack
from eval.models.side_by_side import CPU_TOKENS
from tests.benchmarks._timing import interleaved, report
from tests.benchmarks.eval import random_model


def main() -> None:
    """Run the contest and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--proteins", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(5.7, 0.5, options.proteins), 50, 1022).astype(int)
    sequences = ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), n)) for n in lengths]
    model = random_model()
    timings = interleaved(
        {
            "side": lambda: model.hidden(sequences),
            "shared": lambda: shared(model, sequences, 4096),
            "small": lambda: shared(model, sequences, CPU_TOKENS),
        },
        options.rounds,
    )
    ours, theirs = model.hidden(sequences), shared(model, sequences, 4096)
    report(
        "embedding",
        {
            "speedup": timings["shared"].wall_seconds / timings["side"].wall_seconds,
            "speedup_same_batches": timings["small"].wall_seconds / timings["side"].wall_seconds,
            "cpu_ratio": timings["shared"].cpu_seconds / timings["side"].cpu_seconds,
            "residues_per_second": {
                name: round(sum(lengths) / timing.wall_seconds) for name, timing in timings.items()
            },
            "largest_difference": max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)),
            "threads": options.threads,
            "residues": int(sum(lengths)),
        },
    )


@torch.no_grad()
def shared(model: CheckpointModel, sequences: list[str], batch_tokens: int) -> list[torch.Tensor]:
    """States of residues, pass after pass."""
    tokens = [model.tokens_of(sequence) for sequence in sequences]
    found: list[torch.Tensor] = [torch.empty(0)] * len(sequences)
    for batch in batches_of([len(t) for t in tokens], batch_tokens):
        packed = pack([tokens[i] for i in batch], model.device)
        for i, part in zip(batch, model.encoder(packed).split(packed.lengths), strict=True):
            found[i] = part[1:-1].clone()
    return found


if __name__ == "__main__":
    main()
