"""Links and clusters by spaced k-mers."""

import itertools
import math
import random
from pathlib import Path

import numpy as np
import pytest
from biotite.sequence.align import SubstitutionMatrix
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.splits import kmers
from data_pipeline.splits.components import number_by_appearance
from data_pipeline.splits.homologs import search_by_kmers
from data_pipeline.splits.kmers import SEEDS, cluster_by_kmers, encode, similar_pairs
from tests.unit.data_pipeline.homologs import families, mutated, random_sequence

BLOSUM62 = SubstitutionMatrix.std_protein_matrix()


def best_run(a: str, b: str, diagonal: int) -> int:
    """The definition: largest sum of consecutive scores along a diagonal."""
    best = running = 0
    for i in range(len(a)):
        if 0 <= i - diagonal < len(b):
            running = max(running + int(BLOSUM62.get_score(a[i], b[i - diagonal])), 0)
            best = max(best, running)
    return best


def linked_by_definition(sequences: list[str], kmer: int) -> np.ndarray:
    """bool [S, S]: pairs that share a seed on a diagonal whose best run has E <= MAX_EVALUE."""
    total, linked = sum(map(len, sequences)), np.zeros((len(sequences),) * 2, dtype=bool)
    for (i, a), (j, b) in itertools.combinations(enumerate(sequences), 2):
        diagonals = set()
        for pattern in SEEDS[kmer]:
            chosen = [k for k, sampled in enumerate(pattern) if sampled == "1"]
            at: dict[str, list[int]] = {}
            for p in range(len(b) - len(pattern) + 1):
                at.setdefault("".join(b[p + k] for k in chosen), []).append(p)
            for p in range(len(a) - len(pattern) + 1):
                diagonals |= {p - other for other in at.get("".join(a[p + k] for k in chosen), ())}
        space = max(len(a), len(b)) * total
        score = max((best_run(a, b, d) for d in diagonals), default=0)
        linked[i, j] = linked[j, i] = kmers.KAPPA * space * math.exp(-kmers.LAMBDA * score) <= kmers.MAX_EVALUE
    return linked


def same_partition(first: np.ndarray, second: np.ndarray) -> bool:
    return number_by_appearance(np.asarray(first)).tolist() == number_by_appearance(np.asarray(second)).tolist()


@pytest.mark.parametrize("kmer", sorted(SEEDS))
def test_families_of_half_the_residues_alike_are_found_and_kept_apart(kmer: int) -> None:
    sequences, labels = families(12, 5, 0.75, random.Random(1))
    assert same_partition(cluster_by_kmers(sequences, kmer, 0.8), np.array(labels))


@pytest.mark.parametrize("identity", [0.5, 0.7])
def test_no_linked_pair_is_parted_and_clusters_are_no_larger_than_links_make_them(identity: float) -> None:
    sequences, _ = families(6, 4, identity, random.Random(2))
    sequences += [random_sequence(n, random.Random(n)) for n in (3, 8, 9, 200)]
    linked = linked_by_definition(sequences, 5)
    assert linked.sum() >= 12, "the test needs linked pairs"
    reach = np.linalg.matrix_power((linked | np.eye(len(linked), dtype=bool)).astype(float), len(linked)) > 0
    found = cluster_by_kmers(sequences, 5, 0.0)
    np.testing.assert_array_equal(found[:, None] == found[None, :], reach)


def test_clusters_do_not_depend_on_order_nor_on_block_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    sequences, _ = families(8, 6, 0.55, random.Random(3))
    whole = cluster_by_kmers(sequences, 5, 0.8)
    order = random.Random(4).sample(range(len(sequences)), len(sequences))
    assert same_partition(cluster_by_kmers([sequences[i] for i in order], 5, 0.8), whole[order])
    monkeypatch.setattr(kmers, "OCCURRENCES_PER_BLOCK", 7)
    monkeypatch.setattr(kmers, "CELLS_PER_BATCH", 500)
    assert same_partition(cluster_by_kmers(sequences, 5, 0.8), whole)


def test_a_family_larger_than_the_partner_cap_stays_one_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmers, "MAX_PARTNERS", 2)
    sequences, labels = families(3, 30, 0.8, random.Random(5))
    assert same_partition(cluster_by_kmers(sequences, 5, 0.8), np.array(labels))


def test_unrelated_chains_stand_alone() -> None:
    chosen = random.Random(6)
    sequences = [random_sequence(chosen.randint(40, 400), chosen) for _ in range(400)]
    # E <= 1e-3 for each of 400 searches: about 0.4 chance links among 80,000 pairs; a second one is improbable.
    assert len(set(cluster_by_kmers(sequences, 5, 0.0))) >= 398


def test_a_domain_and_a_much_longer_chain_are_linked_only_without_a_limit_of_lengths() -> None:
    chosen = random.Random(7)
    domain = random_sequence(100, chosen)
    pair = [domain, random_sequence(150, chosen) + domain + random_sequence(150, chosen)]
    assert len(set(cluster_by_kmers(pair, 5, 0.8))) == 2
    assert len(set(cluster_by_kmers(pair, 5, 0.0))) == 1
    # 80 of 100 residues is exactly the limit.
    assert len(set(cluster_by_kmers([domain, domain[:80]], 5, 0.8))) == 1
    assert len(set(cluster_by_kmers([domain, domain[:79]], 5, 0.8))) == 2


def test_seeds_neither_cross_chains_nor_hold_unknown_residues() -> None:
    for patterns in SEEDS.values():
        for pattern in patterns:
            assert max(map(len, pattern.strip("1").split("1")), default=0) < kmers._ENDS_BETWEEN
            codes = encode(["ACDEFGHIKLMN", "ACDEFGXIKLMN", "AC"])
            seeds, positions = kmers._seeds(codes.codes, pattern)
            windows = 12 - len(pattern) + 1
            assert (codes.owner(positions) == 0).sum() == windows
            hidden = [p for p in range(windows) if p <= 6 < p + len(pattern) and pattern[6 - p] == "1"]
            assert (codes.owner(positions) == 1).sum() == windows - len(hidden)
            assert len(seeds) == 2 * windows - len(hidden)


def test_nothing_and_chains_shorter_than_a_seed_are_fine() -> None:
    assert cluster_by_kmers([], 5, 0.8).tolist() == []
    assert len(set(cluster_by_kmers(["", "A", "ACD", "XXXXXXXXXXXX"], 5, 0.8))) == 4


@settings(max_examples=60, deadline=None)
@given(st.text("ACDWX", min_size=1, max_size=40), st.text("ACDWX", min_size=1, max_size=40), st.data())
def test_the_best_segment_is_that_of_the_definition(a: str, b: str, data: st.DataObject) -> None:
    i, j = data.draw(st.integers(0, len(a) - 1)), data.draw(st.integers(0, len(b) - 1))
    first, second = encode(["WWWW", a, "WWWW"]), encode([b, "WWWW"])
    at_first, at_second = first.starts[1:2] + i, second.starts[:1] + j
    # As far as the whole of both lines: end marks, not widths, must end the runs.
    reach = np.array([100])
    whole = kmers._best_segment(first, second, at_first, at_second, reach, reach)
    reached = max(best_run(a, b, i - j), 0)
    beyond = [best_run(x, y, 0) for x in ("WWWW", a) for y in ("WWWW", b)]
    assert reached <= whole[0] <= max(reached, *beyond, 44)
    before, after = np.array([min(i, j)]), np.array([min(len(a) - i, len(b) - j)])
    assert kmers._best_segment(first, second, at_first, at_second, before, after)[0] == reached


def test_search_names_query_target_and_diagonal() -> None:
    chosen = random.Random(8)
    core = random_sequence(100, chosen)
    queries = [random_sequence(90, chosen), random_sequence(30, chosen) + core]
    targets = [random_sequence(120, chosen), random_sequence(10, chosen) + mutated(core, 0.8, chosen)]
    query, target, diagonal = similar_pairs(encode(queries), encode(targets), 5)
    assert (query.tolist(), target.tolist(), diagonal.tolist()) == ([1], [1], [20])


def test_homologs_are_aligned_across_gaps_with_true_identity_and_coverage() -> None:
    chosen = random.Random(9)
    target = random_sequence(200, chosen)
    gapped = mutated(target[:90] + random_sequence(12, chosen) + target[90:], 0.8, chosen)
    hits = search_by_kmers([random_sequence(200, chosen), gapped, target[60:]], [target], 0.3, 0.8)
    assert hits.query.tolist() == [1, 2]
    assert hits.target.tolist() == [0, 0]
    # 212 columns, of which 12 face the insertion: 0.8 * 200 / 212 within what chance matches and ragged ends add.
    assert hits.identity[0] == pytest.approx(160 / 212, abs=0.04)
    assert hits.coverage[0] >= 0.95
    assert (hits.identity[1], hits.coverage[1]) == (1.0, 1.0)
    assert len(search_by_kmers([gapped], [target], 0.9, 0.8).query) == 0
    assert len(search_by_kmers([target[:100] + random_sequence(100, chosen)], [target], 0.3, 0.8).query) == 0


def test_real_families_are_not_lost_to_the_look_at_a_seeds_surroundings(
    real_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = np.load(real_data / "structures" / "chains_backbone.npz")
    letters, offset = str(data["seq"]), data["offset"]
    sequences = sorted({letters[a:b] for a, b in itertools.pairwise(offset[:1200])})
    quick = cluster_by_kmers(sequences, 5, 0.8)
    monkeypatch.setattr(kmers, "MIN_FLANK_SCORE", 0)
    assert same_partition(cluster_by_kmers(sequences, 5, 0.8), quick)
    assert 1 < np.bincount(quick).max() < len(sequences) / 4
