"""Clusters of chains, whatever they come from."""

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from configs.errors import UserError
from configs.loading import validate
from configs.splits import SplitConfig
from data_pipeline.splits import clusters, mmseqs
from data_pipeline.splits.clusters import assign_clusters, sequence_identity, sequences_of
from data_pipeline.splits.components import first_of_each, merge_clusters, number_by_appearance
from tests.unit.data_pipeline.homologs import chain_table, families, random_sequence

KMERS = SplitConfig(method="kmers")


def test_labels_are_numbered_by_first_appearance_and_facts_tell_the_method(tmp_path: Path) -> None:
    sequences, labels = families(5, 4, 0.8, random.Random(1))
    found = assign_clusters(chain_table(sequences), KMERS, tmp_path)
    np.testing.assert_array_equal(found.labels, number_by_appearance(np.array(labels)))
    assert found.labels.dtype == np.int64
    assert found.facts == {
        "method": "kmers",
        "kmer": 5,
        "coverage": 0.8,
        "coverage_of": "both",
        "max_evalue": 1e-3,
        "chains": 20,
        "identical_sequences": 0,
        "clusters": 5,
        "largest_cluster": 4,
    }


def test_identical_sequences_share_a_cluster_even_where_no_seed_fits(tmp_path: Path) -> None:
    found = assign_clusters(chain_table(["ACD", "WWWWWWWW", "ACD", "XXXXXXXXXXX", "ACE"]), KMERS, tmp_path)
    assert found.labels.tolist() == [0, 1, 0, 2, 3]
    assert found.facts["identical_sequences"] == 1


def test_the_order_of_rows_changes_numbers_only(tmp_path: Path) -> None:
    sequences, _ = families(6, 5, 0.6, random.Random(2))
    sequences += sequences[:7]
    table = chain_table(sequences)
    whole = assign_clusters(table, KMERS, tmp_path).labels
    order = np.random.default_rng(0).permutation(len(sequences))
    turned = assign_clusters(table.take(pa.array(order)), KMERS, tmp_path).labels
    np.testing.assert_array_equal(turned, number_by_appearance(whole[order]))


def test_no_chains_give_no_clusters(tmp_path: Path) -> None:
    found = assign_clusters(chain_table([]), KMERS, tmp_path)
    assert (len(found.labels), found.facts["clusters"], found.facts["largest_cluster"]) == (0, 0, 0)


def test_a_file_is_taken_before_any_program_and_needs_no_sequences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "mmseqs_version", lambda: pytest.fail("a membership file needs no MMseqs2"))
    (tmp_path / "members.tsv").write_text("c1\t0000_A\nc2\t0001_A\nc1\t0002_A\n")
    same = random_sequence(50, random.Random(3))
    table = chain_table([same, "ACDEF", "GHIKL", same, "MNPQR"]).drop(["sequence"])
    found = assign_clusters(table, SplitConfig(membership=tmp_path / "members.tsv"), tmp_path)
    # The fourth chain is missing from the file but identical to the first one.
    assert found.labels.tolist() == [0, 1, 0, 0, 2]
    assert (found.facts["method"], found.facts["chains_missing"], found.facts["clusters"]) == ("membership", 2, 3)


def test_auto_without_mmseqs_uses_kmers_and_a_method_named_but_missing_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mmseqs, "PROGRAM", "no-such-mmseqs")
    table = chain_table(["ACDEFGHIKLM", "MNPQRSTVWYA"])
    assert assign_clusters(table, SplitConfig(), tmp_path).facts["method"] == "kmers"
    assert "MMseqs2 is not installed" in caplog.text
    with pytest.raises(UserError, match=r"not on the PATH; install MMseqs2 .* or set the method to kmers"):
        assign_clusters(table, SplitConfig(method="mmseqs"), tmp_path)


def test_sequences_and_digests_are_read_chunk_by_chunk_and_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "ROWS_PER_PART", 3)
    sequences = [random_sequence(n, random.Random(n)) for n in range(1, 12)]
    table = chain_table(sequences).slice(2)
    assert list(sequences_of(table["sequence"])) == sequences[2:]
    assert list(sequences_of(table["sequence"], np.array([8, 0, 4, 3]))) == [sequences[i] for i in (10, 2, 6, 5)]
    prefixes = [int.from_bytes(d[:8], "little") for d in table["digest"].to_pylist()]
    assert sequence_identity(table).tolist() == prefixes
    hashed = sequence_identity(chain_table(["ACD", "ACE", "ACD"]).drop(["digest"]))
    assert (hashed[0] == hashed[2], hashed[0] == hashed[1]) == (True, False)


def test_links_that_come_in_portions_give_the_components_of_all_of_them() -> None:
    labels = np.arange(7)
    for first, second in (([0, 5], [1, 6]), ([], []), ([1], [2]), ([6], [0])):
        labels = merge_clusters(labels, np.array(first, dtype=int), np.array(second, dtype=int))
    assert number_by_appearance(labels).tolist() == [0, 0, 0, 1, 2, 0, 0]
    assert first_of_each(np.array([0, 0, 1, 0, 2, 1, 3])).tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"method": "membership"}, "add split.membership=FILE"),
        ({"method": "kmers", "membership": "a.tsv"}, "set split.method=membership or remove split.membership"),
        ({"cluster_column": 2}, "name two columns"),
        ({"validation_fraction": 0.5, "test_fraction": 0.5}, "leave nothing to train on"),
        ({"validation_from": "2022-01-01", "test_from": "2021-01-01"}, "give it the earlier day"),
        ({"test_from": "2021-02-30"}, "test_from"),
        ({"kmer": 3}, "kmer"),
    ],
)
def test_settings_that_contradict_each_other_are_named_with_their_remedy(tree: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        validate(SplitConfig, tree, "test")
