"""FASTA files of evaluation sets, and exact containment of sequences."""

import gzip
import hashlib
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import UserError
from data_pipeline.splits.containment import ANCHOR, ContainmentIndex
from data_pipeline.splits.fasta import read_fasta, write_fasta
from tests.unit.data_pipeline.homologs import random_sequence


@pytest.mark.parametrize("name", ["a.fasta", "a.fasta.gz"])
def test_letters_become_ours_and_names_are_the_first_words(tmp_path: Path, name: str) -> None:
    text = b">one first of all\nacdef\nGH-I*\r\n\n>two\nAUBZ\n>\nK\n"
    path = tmp_path / name
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    found = read_fasta(path)
    assert found.names == ("one", "two", "sequence 3")
    assert found.sequences == ("ACDEFGHI", "AXXX", "K")
    assert (found.path, found.sha256) == (str(path), hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "holds no sequence"),
        (b"ACDEF\n", r"bad\.fasta:1: 'ACDEF' is no sequence in FASTA form; begin each"),
        (b">a\nACD3F\n", r"bad\.fasta:2: 'ACD3F' is no sequence .*one-letter"),
        (b">a\n>b\nACD\n", "'a' has no residues"),
        (b">a\n\xff\xfe\n", "is no text"),
        (b"\x1f\x8b\x08\x00broken", "damaged gzip file"),
        (gzip.compress(b">a\nACD\n")[:-6], "damaged gzip file"),
    ],
)
def test_bad_files_are_named_with_line_and_remedy(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "bad.fasta"
    path.write_bytes(data)
    with pytest.raises(UserError, match=words):
        read_fasta(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.fasta: cannot be read \(No such file"):
        read_fasta(tmp_path / "none.fasta")


def test_written_sequences_are_read_back_under_their_numbers(tmp_path: Path) -> None:
    assert write_fasta(tmp_path / "a.fasta", iter(["ACD", "EFG"])) == 2
    found = read_fasta(tmp_path / "a.fasta")
    assert (found.names, found.sequences) == (("0", "1"), ("ACD", "EFG"))


def contained(queries: list[str], targets: list[str]) -> list[tuple[int, int]]:
    """The definition."""
    return [
        (q, t)
        for q, ours in enumerate(queries)
        for t, theirs in enumerate(targets)
        if ours == theirs or (min(len(ours), len(theirs)) >= ANCHOR and (ours in theirs or theirs in ours))
    ]


few_letters = st.text("AX", min_size=1, max_size=14)


@settings(max_examples=150, deadline=None)
@given(st.lists(few_letters, max_size=8), st.lists(few_letters, min_size=1, max_size=8, unique=True))
def test_containment_is_that_of_the_definition(queries: list[str], targets: list[str]) -> None:
    assert ContainmentIndex(targets).pairs(queries) == contained(queries, targets)


def test_containment_is_found_in_long_sequences_wherever_it_lies() -> None:
    chosen = random.Random(0)
    long = [random_sequence(300, chosen) for _ in range(20)]
    parts = sorted({long[i][start : start + ANCHOR + i] for i, start in enumerate(range(0, 280, 14))})
    assert len(parts) == 20
    index, back = ContainmentIndex(parts), ContainmentIndex(long)
    assert index.pairs(long) == contained(long, parts)
    assert len(index.pairs(long)) == 20
    assert back.pairs(parts) == contained(parts, long)
