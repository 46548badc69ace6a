"""Sequence clusters by shared k-mers and splits by cluster."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.build import SplitConfig
from data_pipeline import clusters
from data_pipeline.clusters import cluster_sequences, kmer_codes, split_of_clusters
from data_pipeline.structure.chain import AMINO_ACIDS

KMER = 5


def random_sequence(length: int, chosen: random.Random) -> str:
    return "".join(chosen.choice(AMINO_ACIDS) for _ in range(length))


def families(num_families: int, members: int, chosen: random.Random) -> tuple[list[str], list[int]]:
    """Sequences of families whose members share the middle two thirds of their ancestor, shuffled, and their family."""
    sequences, labels = [], []
    for family in range(num_families):
        ancestor = random_sequence(120, chosen)
        for _ in range(members):
            sequences.append(random_sequence(20, chosen) + ancestor[20:100] + random_sequence(20, chosen))
            labels.append(family)
    order = chosen.sample(range(len(sequences)), len(sequences))
    return [sequences[i] for i in order], [labels[i] for i in order]


def shared_fraction(a: str, b: str) -> float:
    """The definition, by Python sets."""
    first, second = ({s[i : i + KMER] for i in range(len(s) - KMER + 1)} for s in (a, b))
    return len(first & second) / min(len(first), len(second))


def test_families_are_found_and_kept_apart() -> None:
    sequences, labels = families(12, 5, random.Random(1))
    found = cluster_sequences(sequences, KMER, 0.1)
    assert len(set(found)) == 12
    assert len(set(zip(found.tolist(), labels, strict=True))) == 12


@pytest.mark.parametrize("min_shared", [0.05, 0.3])
def test_no_pair_over_the_threshold_is_parted_and_links_are_real(min_shared: float) -> None:
    sequences, _ = families(6, 4, random.Random(2))
    found = cluster_sequences(sequences, KMER, min_shared)
    linked = np.zeros((len(sequences),) * 2, dtype=bool)
    for i, a in enumerate(sequences):
        for j, b in enumerate(sequences):
            linked[i, j] = shared_fraction(a, b) >= min_shared
    assert all(found[i] == found[j] for i, j in np.argwhere(linked))
    # Components are no larger than what the links join.
    reach = np.linalg.matrix_power(linked.astype(float), 8) > 0
    assert all(reach[i, j] for i in range(len(found)) for j in range(len(found)) if found[i] == found[j])


def test_a_family_larger_than_the_partner_cap_stays_one_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "MAX_PARTNERS", 3)
    sequences, labels = families(3, 20, random.Random(3))
    found = cluster_sequences(sequences, KMER, 0.1)
    assert len(set(zip(found.tolist(), labels, strict=True))) == 3


def test_clusters_do_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sequences, _ = families(5, 4, random.Random(4))
    whole = cluster_sequences(sequences, KMER, 0.1)
    monkeypatch.setattr(clusters, "ROWS_PER_BLOCK", 3)
    np.testing.assert_array_equal(cluster_sequences(sequences, KMER, 0.1), whole)


def test_clusters_are_numbered_by_first_appearance_and_short_chains_stand_alone() -> None:
    assert cluster_sequences(["ACD", "WWWWWWWW", "ACD", "XXXXXXXXX", "ACE"], KMER, 0.1).tolist() == [0, 1, 0, 2, 3]
    assert cluster_sequences([], KMER, 0.1).tolist() == []


def test_kmers_with_unknown_residues_do_not_count() -> None:
    assert len(kmer_codes("ACDEFXACDEF", KMER)) == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=3, max_size=60), st.integers(0, 5))
def test_held_out_splits_are_never_empty_and_close_to_their_fraction(sizes: list[int], seed: int) -> None:
    config = SplitConfig(validation_fraction=0.1, test_fraction=0.1, seed=seed)
    splits = split_of_clusters([f"c{i}" for i in range(len(sizes))], np.array(sizes), config)
    held = {name: [s for s, split in zip(sizes, splits, strict=True) if split == name] for name in set(splits)}
    assert set(held) == {"train", "validation", "test"}
    for name in ("validation", "test"):
        # Where no cluster fits into the fraction, the smallest one at hand is taken alone.
        alone = len(held[name]) == 1 and held[name][0] <= min(held["train"])
        assert sum(held[name]) <= round(0.1 * sum(sizes)) or alone


def test_the_split_depends_on_the_seed_and_on_names_only() -> None:
    names = [f"c{i}" for i in range(40)]
    sizes = np.ones(40, dtype=int)
    config = SplitConfig()
    splits = split_of_clusters(names, sizes, config)
    assert splits == split_of_clusters(names, sizes, config)
    assert splits != split_of_clusters(names, sizes, SplitConfig(seed=1))
    backwards = split_of_clusters(names[::-1], sizes, config)
    assert backwards[::-1] == splits
    assert (splits.count("test"), splits.count("validation")) == (4, 4)


def test_two_clusters_only_train_and_a_fraction_of_zero_stays_empty() -> None:
    assert split_of_clusters(["a", "b"], np.array([5, 5]), SplitConfig()) == ["train", "train"]
    only_test = split_of_clusters(list("abcdef"), np.ones(6, int), SplitConfig(validation_fraction=0))
    assert set(only_test) == {"train", "test"}
