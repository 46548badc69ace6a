"""Cluster membership from files, as UniRef, AFDB clusters, MMseqs2 and Foldseek give it."""

import gzip
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from configs.errors import UserError
from configs.splits import SplitConfig
from data_pipeline.splits import membership
from data_pipeline.splits.components import number_by_appearance
from data_pipeline.splits.membership import normalized, read_membership
from tests.unit.data_pipeline.homologs import chain_table

KEYS = ("1abc_A", "1abc_B", "2xyz_A", "AF-P12345-F1_A", "AF-Q9XYZ1-F1_A", "AF-Q9XYZ1-F2_A")


def write(path: Path, lines: Sequence[str]) -> Path:
    data = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def clusters_of(path: Path, keys: Sequence[str] = KEYS, **settings: object) -> tuple[list[int], dict]:
    table = chain_table(["ACDEF"] * len(keys), keys)
    found = read_membership(table["key"], table["entry"], SplitConfig(membership=path, **settings))
    return number_by_appearance(found.labels).tolist(), found.facts


def test_keys_entries_and_accessions_name_chains_whatever_their_case(tmp_path: Path) -> None:
    lines = ["c1\t1ABC_a", "c2\t1abc_B", "c3\t2XYZ", "c1\tp12345", "c3\tAF-Q9XYZ1-F1-model_v4.cif.gz", "c9\tP00000"]
    labels, facts = clusters_of(write(tmp_path / "members.tsv", lines))
    assert labels == [0, 1, 2, 0, 2, 2]
    assert (facts["lines"], facts["chains_named"], facts["chains_missing"]) == (6, 6, 0)
    assert len(facts["membership_sha256"]) == 64


@pytest.mark.parametrize(
    ("name", "accession"),
    [
        ("AF-P12345-F1", "p12345"),
        ("AF-P12345-F1_A", "p12345"),
        ("AF-A0A024R1R8-F12-model_v6", "a0a024r1r8"),
        ("AF-P12345-2-F1_A", "p12345-2"),
        ("sp|P12345|NAME_HUMAN", "p12345"),
        ("tr|Q9XYZ1|Q9XYZ1_MOUSE", "q9xyz1"),
        ("1ABC_A", "1abc_a"),
        ("AF-F1", "af-f1"),
        ("UniRef50_P12345", "uniref50_p12345"),
    ],
)
def test_names_come_down_to_what_is_compared(name: str, accession: str) -> None:
    assert normalized(pa.array([name])).to_pylist() == [accession]


@pytest.mark.parametrize(
    ("name", "delimiter", "settings", "order"),
    [
        ("a.tsv", "\t", {}, (0, 1)),
        ("a.csv", ",", {}, (0, 1)),
        ("a.tsv.gz", "\t", {"cluster_column": 2, "member_column": 1}, (1, 0)),
        ("a.txt", " ", {"cluster_column": 3, "member_column": 1}, (1, None, 0)),
    ],
)
def test_every_form_of_the_table_gives_the_same_clusters(
    tmp_path: Path, name: str, delimiter: str, settings: dict, order: tuple
) -> None:
    rows = [
        ("cluster", "member"),
        ("c1", "1abc_A"),
        ("c2", "1abc_B"),
        ("c1", "2xyz_A"),
        ("c3", "P12345"),
        ("c3", "Q9XYZ1"),
    ]
    lines = [delimiter.join("9606" if i is None else row[i] for i in order) for row in rows]
    assert clusters_of(write(tmp_path / name, lines), **settings)[0] == [0, 1, 0, 2, 2, 2]


def test_a_chain_named_in_two_clusters_joins_them(tmp_path: Path) -> None:
    lines = ["c1\t1abc_A", "c2\t1abc", "c3\t2xyz_A", "c2\tP12345"]
    labels, facts = clusters_of(write(tmp_path / "members.tsv", lines), KEYS[:4])
    # 1abc_A is in c1 by its key and in c2 by its entry.
    assert labels == [0, 0, 1, 0]
    assert facts["chains_in_several_clusters"] == 1


def test_missing_chains_follow_the_policy(tmp_path: Path) -> None:
    path = write(tmp_path / "members.tsv", ["c1\t1abc_A", "c1\t2xyz_A"])
    assert clusters_of(path)[0] == [0, 1, 0, 2, 3, 4]
    labels, facts = clusters_of(path, membership_missing="one_cluster")
    assert labels == [0, 1, 0, 1, 1, 1]
    assert facts["chains_missing"] == 4
    with pytest.raises(UserError, match=r"4 of 6 chains are not in it, e.g. 1abc_B, .*own_cluster or one_cluster"):
        clusters_of(path, membership_missing="error")


def test_a_table_of_other_structures_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "members.tsv", ["1abc_A\tc1", "1abc_B\tc2"])
    with pytest.raises(
        UserError, match=r"none of its 2 lines names one of the 6 chains.*split.member_column \(now 2\)"
    ):
        clusters_of(path)


def test_malformed_files_are_named_with_the_line(tmp_path: Path) -> None:
    ragged = write(tmp_path / "ragged.tsv", ["c1\t1abc_A"] * 4 + ["c1 1abc_B"] + ["c1\t1abc_A"])
    with pytest.raises(UserError, match=r"ragged.tsv:5: has 1 column\(s\) parted by '\\t', line 1 has 2"):
        clusters_of(ragged)
    with pytest.raises(UserError, match=r"split.member_column is 4, but line 1 has 2 column"):
        clusters_of(ragged, member_column=4)
    with pytest.raises(UserError, match=r"member 1abc_B names no cluster in column 1"):
        clusters_of(write(tmp_path / "nameless.tsv", ["c1\t1abc_A", "\t1abc_B"]))
    with pytest.raises(UserError, match="is empty"):
        clusters_of(write(tmp_path / "empty.tsv", []))
    with pytest.raises(UserError, match=r"none.tsv: cannot be read .*name a table of cluster and member"):
        clusters_of(tmp_path / "none.tsv")
    (tmp_path / "text.tsv").write_bytes(b"c1\t1abc_A\n\xff\xfe\t1abc_B\n")
    with pytest.raises(UserError, match=r"text\.tsv: is no text"):
        clusters_of(tmp_path / "text.tsv")


def test_a_compressed_file_cut_short_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "cut.tsv.gz", [f"c{i}\tm{i * 7919 % 10**6}" for i in range(20_000)] + ["c1\t1abc_A"])
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"cut.tsv.gz: cannot be read"):
        clusters_of(path)


def test_labels_do_not_depend_on_the_order_of_lines(tmp_path: Path) -> None:
    chosen = random.Random(0)
    lines = [f"c{chosen.randrange(40)}\tP{i:05d}" for i in range(200)]
    keys = [f"AF-P{i:05d}-F1_A" for i in range(200)]
    labels, _ = clusters_of(write(tmp_path / "a.tsv", lines), keys)
    assert labels == number_by_appearance(np.unique([x.split("\t")[0] for x in lines], return_inverse=True)[1]).tolist()
    chosen.shuffle(lines)
    assert clusters_of(write(tmp_path / "b.tsv", lines), keys)[0] == labels


def test_a_table_far_larger_than_our_chains_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = 2_000_000
    path = tmp_path / "large.tsv"
    with path.open("w") as file:
        for start in range(0, lines, 100_000):
            file.write("".join(f"A0A{i // 10:07d}\tA0A{i:07d}\n" for i in range(start, start + 100_000)))
    monkeypatch.setattr(membership, "MIN_BLOCK_BYTES", 2**20)
    keys = [f"AF-A0A{i:07d}-F1_A" for i in range(0, lines, 1000)]
    keys += [f"AF-A0A{i + 1:07d}-F1_A" for i in range(0, lines, 1000)]
    blocks = []
    index_in = membership.pc.index_in

    def counted(block: pa.Array, **options: object) -> pa.Array:
        blocks.append(len(block))
        return index_in(block, **options)

    monkeypatch.setattr(membership.pc, "index_in", counted)
    before = pa.total_allocated_bytes()
    labels, facts = clusters_of(path, keys)
    assert labels == [*range(2000), *range(2000)]
    assert (facts["lines"], sum(blocks)) == (lines, lines)
    # A block of 1 MiB holds 48,000 lines of 22 bytes: nothing sees more of the 44 MB at once, and nothing stays.
    assert max(blocks) <= 50_000
    assert pa.total_allocated_bytes() - before < 2**22
