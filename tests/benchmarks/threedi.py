"""3Di tokens: equality with mini3di over real residues, and speed by chain length, side by side.

`speedup_vs_mini3di` is over the real length mix, `speedup_at_1000` over chains of 1,000 residues and more,
`cost_1000_over_300` compares the cost per residue of long and short chains, and `cost_2500_over_300` that of chains
assembled from real ones laid beside each other.

States are compared on every residue, both encoders reading the same float64 coordinates: rounded to float32, a few
residues in a million lie so near the border of two states that mini3di itself changes its mind. It is timed with
float32, in which it is faster.
"""

import itertools
import warnings

import mini3di
import numpy as np

from data_pipeline.structure.threedi import encode_3di_many
from tests.benchmarks._chains import real_chains
from tests.benchmarks._timing import interleaved, report

TIMED_RESIDUES = 60_000
ASSEMBLED_RESIDUES = 2_500
GAP = 60.0
"""Angstrom between the centres of assembled chains: near enough to look like one large protein."""
BATCH = 64
ROUNDS = 11
"""More than usual: `cost_1000_over_300` compares two short timings."""


def peer(chains: list[np.ndarray], dtype: type = np.float32) -> list[str]:
    """3Di letters by mini3di, one chain at a time, which is all it offers."""
    encoder = mini3di.Encoder()
    tokens = [
        encoder.encode_atoms(ca=x[:, 1], cb=x[:, 4], n=x[:, 0], c=x[:, 2]) for x in (c.astype(dtype) for c in chains)
    ]
    return [encoder.build_sequence(states) for states in tokens]


def ours(chains: list[np.ndarray]) -> list[str]:
    """3Di letters by the project's encoder, in batches as the pipeline calls it."""
    groups = (chains[i : i + BATCH] for i in range(0, len(chains), BATCH))
    return [letters for group in groups for letters, _ in encode_3di_many(group)]


def take(chains: list[np.ndarray], shortest: int, longest: int) -> list[np.ndarray]:
    """Chains of a range of lengths, at most TIMED_RESIDUES together."""
    chosen = [c for c in chains if shortest <= len(c) <= longest]
    ends = np.cumsum([len(c) for c in chosen])
    return chosen[: int(np.searchsorted(ends, TIMED_RESIDUES)) + 1]


def assemble(chains: list[np.ndarray]) -> list[np.ndarray]:
    """Chains of about ASSEMBLED_RESIDUES residues, made of real ones on a grid."""
    result, parts, total = [], [], 0
    for chain in itertools.islice(itertools.cycle(chains), 4 * len(chains)):
        place = np.array([len(parts) % 3, len(parts) // 3 % 3, len(parts) // 9]) * GAP
        parts.append(chain - np.nanmean(chain[:, 1], axis=0) + place)
        total += len(chain)
        if total >= ASSEMBLED_RESIDUES:
            result.append(np.concatenate(parts))
            parts, total = [], 0
        if sum(map(len, result)) >= TIMED_RESIDUES:
            break
    return result


def num_residues(chains: list[np.ndarray]) -> int:
    return sum(len(chain) for chain in chains)


def main() -> None:
    everything = [coordinates for _, coordinates in real_chains()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # mini3di computes with NaN before it masks
        expected = peer(everything, np.float64)
    mismatches = sum(a != b for x, y in zip(ours(everything), expected, strict=True) for a, b in zip(x, y, strict=True))
    mix, long, short = take(everything[::37], 0, 10**9), take(everything, 1000, 10**9), take(everything, 280, 320)
    assembled = assemble(short)
    contestants = {
        "ours_mix": lambda: ours(mix),
        "peer_mix": lambda: peer(mix),
        "ours_long": lambda: ours(long),
        "peer_long": lambda: peer(long),
        "ours_short": lambda: ours(short),
        "ours_assembled": lambda: ours(assembled),
    }
    seconds = {name: timing.cpu_seconds for name, timing in interleaved(contestants, rounds=ROUNDS).items()}
    per_residue = {
        name: seconds[f"ours_{name}"] / num_residues(chains)
        for name, chains in (("mix", mix), ("long", long), ("short", short), ("assembled", assembled))
    }
    report(
        "threedi",
        {
            "residues_compared": num_residues(everything),
            "mismatches": mismatches,
            "speedup_vs_mini3di": seconds["peer_mix"] / seconds["ours_mix"],
            "speedup_at_1000": seconds["peer_long"] / seconds["ours_long"],
            "cost_1000_over_300": per_residue["long"] / per_residue["short"],
            "cost_2500_over_300": per_residue["assembled"] / per_residue["short"],
            "microseconds_per_residue": per_residue["mix"] * 1e6,
        },
    )


if __name__ == "__main__":
    main()
