"""Clusters of benchmark proteins: relatives together, tags no relation, pairs by their two proteins."""

from pathlib import Path

import numpy as np

from data_pipeline.splits.fasta import read_fasta
from eval.clusters import pair_clusters, record_clusters, sequence_clusters

LETTERS = np.array(list("ACDEFGHIKLMNPQRSTVWY"))
TAG = "MGSSHHHHHHSSGLVPRGSH"


def random_sequence(random: np.random.Generator, length: int) -> str:
    return "".join(random.choice(LETTERS, size=length))


def mutated(random: np.random.Generator, sequence: str, share: float) -> str:
    letters = np.array(list(sequence))
    chosen = random.random(len(letters)) < share
    letters[chosen] = random.choice(LETTERS, size=int(chosen.sum()))
    return "".join(letters)


def families(seed: int = 0, tag: str = "") -> tuple[list[str], np.ndarray]:
    """Eight families of four relatives of about 45 % identity, and to which each belongs."""
    random = np.random.default_rng(seed)
    founders = [random_sequence(random, 150) for _ in range(8)]
    return [tag + mutated(random, f, 0.35) for f in founders for _ in range(4)], np.repeat(np.arange(8), 4)


def same_partition(first: np.ndarray, second: np.ndarray) -> bool:
    pairs = set(zip(first.tolist(), second.tolist(), strict=True))
    return len(pairs) == len(set(first.tolist())) == len(set(second.tolist()))


def test_relatives_share_a_cluster_and_others_do_not() -> None:
    sequences, family = families()
    found = sequence_clusters(sequences)
    assert found.dtype == np.int64
    assert same_partition(found, family)
    assert found.tolist() == family.tolist(), "numbered by appearance"


def test_a_purification_tag_is_no_relation() -> None:
    sequences, family = families(tag=TAG)
    assert same_partition(sequence_clusters(sequences), family)


def test_clusters_do_not_depend_on_the_order_of_sequences() -> None:
    sequences, _ = families(seed=1)
    order = np.random.default_rng(0).permutation(len(sequences))
    shuffled = sequence_clusters([sequences[i] for i in order])
    assert same_partition(shuffled, sequence_clusters(sequences)[order])


def test_identical_sequences_share_a_cluster_however_short_or_strange() -> None:
    sequences = ["MKV", "XXXX", "MKV", "A" * 300, "XXXX", "A" * 300, "W"]
    found = sequence_clusters(sequences)
    assert found[0] == found[2] != found[1] == found[4]
    assert found[3] == found[5]
    assert len(set(found.tolist())) == 4


def test_no_sequences_have_no_clusters() -> None:
    assert sequence_clusters([]).shape == (0,)
    assert record_clusters([]).shape == (0,)


def test_pairs_share_a_cluster_when_their_proteins_do_in_any_order() -> None:
    first, second = np.array([0, 1, 2, 0, 1]), np.array([1, 0, 2, 2, 1])
    assert pair_clusters(first, second).tolist() == [0, 0, 1, 2, 3]


def test_examples_of_two_sequences_are_clustered_as_pairs() -> None:
    sequences, _ = families(seed=2)
    a, b, c, d = sequences[0], sequences[1], sequences[4], sequences[5]
    assert record_clusters([(a, c), (d, b), (a, b), (c, d)]).tolist() == [0, 0, 1, 2]
    assert record_clusters([(a,), (c,), (b,)]).tolist() == [0, 1, 0]


def test_no_family_of_real_proteins_swallows_the_rest(real_data: Path) -> None:
    proteins = read_fasta(real_data / "benchmarks" / "yeast_swissprot.fasta.gz").sequences[:800]
    found = sequence_clusters(proteins)
    sizes = np.bincount(found)
    # The largest family of yeast's proteins (kinases, then transposon proteins) holds a few per cent of them.
    assert sizes.max() < 0.1 * len(proteins)
    assert len(sizes) > 0.5 * len(proteins)
