"""Sequences of known kinship, and tables of chains, for the tests of clusters, splits and leaks."""

import random
from collections.abc import Sequence

import pyarrow as pa

from data_pipeline.spool import sequence_digest
from data_pipeline.structure.chain import AMINO_ACIDS


def random_sequence(length: int, chosen: random.Random) -> str:
    return "".join(chosen.choice(AMINO_ACIDS) for _ in range(length))


def mutated(sequence: str, identity: float, chosen: random.Random) -> str:
    """The sequence with exactly this fraction of residues kept and every other one replaced by a different one."""
    changed = set(chosen.sample(range(len(sequence)), round((1 - identity) * len(sequence))))
    return "".join(chosen.choice(AMINO_ACIDS.replace(c, "")) if i in changed else c for i, c in enumerate(sequence))


def families(num: int, members: int, identity: float, chosen: random.Random) -> tuple[list[str], list[int]]:
    """Members of families, each with this identity to its ancestor of 150 residues, shuffled; and their families."""
    sequences, labels = [], []
    for family in range(num):
        ancestor = random_sequence(150, chosen)
        sequences += [mutated(ancestor, identity, chosen) for _ in range(members)]
        labels += [family] * members
    order = chosen.sample(range(len(sequences)), len(sequences))
    return [sequences[i] for i in order], [labels[i] for i in order]


def chain_table(sequences: Sequence[str], keys: Sequence[str] = (), dates: Sequence[str | None] = ()) -> pa.Table:
    """Columns of chains as a build hands them over, in two chunks, as a build's columns come in many."""
    names = list(keys) or [f"{i:04d}_A" for i in range(len(sequences))]
    table = pa.table(
        {
            "key": pa.array(names, pa.string()),
            "entry": pa.array([name.rpartition("_")[0] or name for name in names], pa.string()),
            "digest": pa.array([sequence_digest(s) for s in sequences], pa.binary(16)),
            "deposition_date": pa.array(list(dates) or [None] * len(names), pa.string()),
            "sequence": pa.array(sequences, pa.large_string()),
        }
    )
    half = len(names) // 2
    return pa.concat_tables([table.slice(0, half), table.slice(half)])
