"""Test proteins that a model was trained near: found, told, flagged or dropped."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from configs.benchmarks import BenchmarksConfig
from configs.errors import UserError
from data_pipeline.shards import write_shards
from eval import leakage
from eval.datasets.records import Dataset, Record
from eval.leakage import apply_leakage, find_overlap
from tests.unit.eval.makers import make_sample

LETTERS = np.array(list("ACDEFGHIKLMNPQRSTVWY"))


def random_sequence(seed: int, length: int = 120) -> str:
    return "".join(np.random.default_rng(seed).choice(LETTERS, size=length))


def mutated(sequence: str, share: float, seed: int) -> str:
    random = np.random.default_rng(seed)
    letters = np.array(list(sequence))
    chosen = random.random(len(letters)) < share
    letters[chosen] = random.choice(LETTERS, size=int(chosen.sum()))
    return "".join(letters)


TRAIN = [random_sequence(i) for i in range(6)]
HELD_OUT = random_sequence(50)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    def sample(key: str, sequence: str, cluster: int):
        return replace(make_sample(key, cluster, seed=cluster, num_residues=len(sequence)), sequence=sequence)

    train = [sample(f"t{i}_A", sequence, i) for i, sequence in enumerate(TRAIN)]
    write_shards(tmp_path / "shards", {"train": train, "test": [sample("x_A", HELD_OUT, 99)]}, samples_per_shard=4)
    return tmp_path / "shards"


def dataset(sequences: list[tuple[str, ...]]) -> Dataset:
    test = tuple(Record(f"r{i}", pair, 0) for i, pair in enumerate(sequences))
    other = (Record("o", (random_sequence(70),) * len(sequences[0]), 0),)
    groups = {"even": np.arange(len(test)) % 2 == 0}
    splits = {"train": other, "validation": other, "test": test}
    return Dataset("fold", "made", "0" * 64, "class", ("a",), splits, groups=groups)


def test_similar_chains_of_the_train_split_are_found_and_named(shards: Path) -> None:
    relative, part = mutated(TRAIN[2], 0.3, 1), TRAIN[4][30:60]
    found = find_overlap([random_sequence(60), TRAIN[1], relative, part, HELD_OUT, relative], shards)
    assert found.similar.tolist() == [False, True, True, True, False, True]
    assert found.chains == (None, "t1_A", "t2_A", "t4_A", None, "t2_A")
    assert found.num_training == 6
    equal = sum(a == b for a, b in zip(relative, TRAIN[2], strict=True)) / len(relative)
    # An alignment may leave out a few residues at the ends.
    assert found.identity[2] == pytest.approx(equal, abs=0.05)
    assert found.identity[[0, 1, 3]].tolist() == [0.0, 1.0, 1.0]


def test_the_limits_of_identity_and_coverage_hold(shards: Path) -> None:
    relative = mutated(TRAIN[2], 0.3, 1)
    half = TRAIN[3][:60] + random_sequence(80, 60)
    assert find_overlap([relative, half], shards, min_identity=0.3, coverage=0.4).similar.tolist() == [True, True]
    assert find_overlap([relative, half], shards, min_identity=0.3, coverage=0.8).similar.tolist() == [True, False]
    assert find_overlap([relative, half], shards, min_identity=0.9, coverage=0.8).similar.tolist() == [False, False]


def test_blocks_of_training_chains_change_nothing(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [mutated(TRAIN[2], 0.3, 1), TRAIN[5], random_sequence(61)]
    whole = find_overlap(asked, shards)
    monkeypatch.setattr(leakage, "_BLOCK", 2)
    leakage._remembered.cache_clear()
    parts = find_overlap(asked, shards)
    assert parts.chains == whole.chains
    assert np.array_equal(parts.identity, whole.identity)


def test_what_was_found_is_kept_and_used_for_the_same_question_alone(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, folder = [TRAIN[0], random_sequence(60)], tmp_path / "cache"
    first = find_overlap(asked, shards, cache=folder)
    searches: list[int] = []
    search = leakage._search
    monkeypatch.setattr(leakage, "_search", lambda *args: (searches.append(1), search(*args))[1])
    again = find_overlap(asked[::-1], shards, cache=folder)
    assert searches == []
    assert again.similar.tolist() == first.similar.tolist()[::-1]
    assert again.chains == first.chains[::-1]
    find_overlap(asked, shards, min_identity=0.5, cache=folder)
    find_overlap([TRAIN[0]], shards, cache=folder)
    assert len(searches) == 2


def test_a_search_is_remembered_without_a_folder(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = find_overlap([TRAIN[0], TRAIN[1]], shards)

    def refuse(*args: object) -> None:
        raise AssertionError("searched again")

    monkeypatch.setattr(leakage, "_search", refuse)
    again = find_overlap([TRAIN[0], TRAIN[1]], shards)
    assert again.chains == first.chains


def test_copies_of_a_training_chain_change_nothing_but_their_number(shards: Path, tmp_path: Path) -> None:
    sample = replace(make_sample("a_A", 0, seed=0, num_residues=120), sequence=TRAIN[0])
    write_shards(tmp_path / "copies", {"train": [replace(sample, key=f"c{i}_A") for i in range(5)]}, 2)
    found = find_overlap([mutated(TRAIN[0], 0.3, 1), random_sequence(60)], tmp_path / "copies")
    assert found.similar.tolist() == [True, False]
    assert found.chains[0] == "c0_A"
    assert found.num_training == 5


def test_a_damaged_cache_is_searched_again(shards: Path, tmp_path: Path) -> None:
    find_overlap([TRAIN[0]], shards, cache=tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    kept = path.read_text()
    tree = json.loads(kept)
    for content in (kept[:20], "[]", "{}", json.dumps({**tree, "found": {"hits": 3}}), json.dumps({**tree, "x": 1})):
        path.write_text(content)
        assert find_overlap([TRAIN[0]], shards, cache=tmp_path / "cache").similar.tolist() == [True]
        assert path.read_text() == kept


def test_flagging_adds_a_group_and_leaves_the_test_split(shards: Path) -> None:
    given = dataset([(TRAIN[0],), (random_sequence(60),), (HELD_OUT,)])
    found, remark = apply_leakage(given, BenchmarksConfig(leakage="flag"), shards)
    assert found.splits == given.splits
    assert found.sha256 == given.sha256
    assert found.groups["unseen"].tolist() == [False, True, True]
    assert found.groups["even"].tolist() == [True, False, True]
    assert "1 of 3 test records resemble one of 6 training chains" in remark


def test_dropping_leaves_unseen_proteins_and_changes_what_the_data_are_called(shards: Path) -> None:
    given = dataset([(TRAIN[0],), (random_sequence(60),), (HELD_OUT,)])
    found, remark = apply_leakage(given, BenchmarksConfig(leakage="drop"), shards)
    assert [record.key for record in found.splits["test"]] == ["r1", "r2"]
    assert found.splits["train"] == given.splits["train"]
    assert found.sha256 != given.sha256
    assert found.groups["even"].tolist() == [False, True]
    assert any("1 of 3" in note for note in found.notes)
    assert "dropped" in remark


def test_a_pair_is_known_where_one_of_its_proteins_is(shards: Path) -> None:
    new = [random_sequence(60 + i) for i in range(4)]
    given = dataset([(new[0], TRAIN[3]), (new[1], new[2]), (TRAIN[0], new[3])])
    found, _ = apply_leakage(given, BenchmarksConfig(leakage="flag"), shards)
    assert found.groups["unseen"].tolist() == [False, True, False]


def test_without_shards_flagging_says_so_and_dropping_is_refused(tmp_path: Path) -> None:
    given = dataset([(TRAIN[0],)])
    for shards, reason in ((None, "not known"), (tmp_path / "gone", "no such folder")):
        found, remark = apply_leakage(given, BenchmarksConfig(leakage="flag"), shards)
        assert found is given
        assert remark.startswith("leakage: not checked: ")
        assert reason in remark
        with pytest.raises(UserError, match=reason):
            apply_leakage(given, BenchmarksConfig(leakage="drop"), shards)


def test_off_checks_nothing(tmp_path: Path) -> None:
    given = dataset([(TRAIN[0],)])
    found, remark = apply_leakage(given, BenchmarksConfig(leakage="off"), tmp_path / "gone")
    assert found is given
    assert "not checked" in remark


def test_a_test_set_that_would_be_empty_is_refused(shards: Path) -> None:
    with pytest.raises(UserError, match="leaves no test record"):
        apply_leakage(dataset([(TRAIN[0],), (TRAIN[1],)]), BenchmarksConfig(leakage="drop"), shards)
