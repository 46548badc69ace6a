"""Whatever a publisher leaves out, three splits come of it that share no sequence, and a note says how."""

import json
from pathlib import Path

import numpy as np
import pytest

from configs.benchmarks import BenchmarksConfig
from configs.errors import UserError
from eval.datasets.records import SPLITS, Dataset, Files, Layout, Record
from eval.datasets.splitting import degree_matched_negatives, held_out, three_ways
from eval.datasets.store import DatasetStore
from eval.tasks.protocol import DatasetMissing

LETTERS = "ACDEFGHIKLMNPQRSTVWY"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAPLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SAPLM_DATA", raising=False)


def proteins(number: int, length: int = 60, seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)
    return ["".join(generator.choice(list(LETTERS), length)) for _ in range(number)]


def families(number: int, members: int, seed: int = 1) -> list[list[str]]:
    """Sequences with a few substitutions to the first of their family."""
    generator = np.random.default_rng(seed)
    result = []
    for parent in proteins(number, seed=seed):
        copies = [list(parent) for _ in range(members)]
        for letters in copies[1:]:
            for place in generator.choice(len(letters), 4, replace=False):
                letters[place] = LETTERS[int(generator.integers(20))]
        result.append(["".join(letters) for letters in copies])
    return result


def records(sequences: list[str], start: str = "r") -> tuple[Record, ...]:
    return tuple(Record(f"{start}{i}", (s,), i % 3) for i, s in enumerate(sequences))


def store(tmp_path: Path, splits: dict, config: dict | None = None, **changes: object) -> DatasetStore:
    """Of one dataset, `d`, with the splits as its layout reads them."""
    (tmp_path / "root").mkdir(exist_ok=True)
    (tmp_path / "root" / "file.txt").write_text("content")

    def read(files: Files, prefix: str) -> Dataset:
        files.read("file.txt")
        whole = {split: splits.get(split, ()) for split in SPLITS}
        return Dataset("d", "source", "", changes.pop("target", "class"), ("a", "b", "c"), whole, **changes)

    settings = BenchmarksConfig(root=tmp_path / "root", **(config or {}))
    return DatasetStore(settings, 0, {"d": (Layout("layout", "", ("file.txt",), read),)})


def sequences_of(dataset: Dataset, split: str) -> set[frozenset[str]]:
    return {frozenset(record.sequences) for record in dataset.splits[split]}


def check_apart(dataset: Dataset) -> None:
    train, validation, test = (sequences_of(dataset, split) for split in SPLITS)
    assert not train & test
    assert not validation & test
    assert not train & validation
    keys = [record.key for part in dataset.splits.values() for record in part]
    assert len(keys) == len(set(keys))
    assert all(record.cluster >= 0 for record in dataset.splits["test"])


def test_the_publishers_splits_stay_as_they_are(tmp_path: Path) -> None:
    sequences = proteins(30)
    given = {
        "train": records(sequences[:20]),
        "validation": records(sequences[20:25], "v"),
        "test": records(sequences[25:], "t"),
    }
    dataset = store(tmp_path, given).get("d")
    assert {s: [r.key for r in part] for s, part in dataset.splits.items()} == {
        s: [r.key for r in part] for s, part in given.items()
    }
    assert dataset.notes == ()
    check_apart(dataset)


def test_identical_sequences_leave_the_side_that_is_learned_from(tmp_path: Path) -> None:
    a, b, c, *rest = proteins(30)
    dataset = store(
        tmp_path,
        {"train": records([a, b, c, *rest]), "validation": records([b, c], "v"), "test": records([c, rest[0]], "t")},
    ).get("d")
    assert [record.sequences[0] for record in dataset.splits["test"]] == [c, rest[0]]
    assert [record.sequences[0] for record in dataset.splits["validation"]] == [b]
    assert {r.sequences[0] for r in dataset.splits["train"]} == {a, *rest[1:]}
    assert dataset.notes == ("left out as identical to held-out sequences: 1 of validation, 3 of train",)


def test_pairs_are_identical_in_either_order(tmp_path: Path) -> None:
    a, b, c, d, e = proteins(5)
    pair = lambda key, *s: Record(key, s, 1)  # noqa: E731
    dataset = store(
        tmp_path,
        {"train": (pair("1", a, b), pair("2", c, d)), "validation": (pair("3", c, e),), "test": (pair("4", b, a),)},
        target="pair_class",
    ).get("d")
    assert [record.key for record in dataset.splits["train"]] == ["2"]


def test_letters_are_brought_to_ours_and_what_cannot_be_is_counted(tmp_path: Path) -> None:
    good = proteins(8)
    odd = ["acdefJUOBZX*", "", "  ", "ACDE-FG", "ACD1", "MKV LLT"]
    dataset = store(
        tmp_path,
        {"train": records([*good[:3], *odd]), "validation": records(good[3:5], "v"), "test": records(good[5:], "t")},
    ).get("d")
    assert [record.sequences[0] for record in dataset.splits["train"]] == [*good[:3], "ACDEFXXXXXX"]
    assert dataset.notes == (
        "2 records without a sequence left out",
        "3 records with signs that are no residues left out",
    )


def test_long_sequences_are_cropped_and_labels_of_residues_with_them(tmp_path: Path) -> None:
    long = [
        Record(f"{split}{i}", (s,), np.arange(60))
        for split in "tve"
        for i, s in enumerate(proteins(3, seed=ord(split)))
    ]
    dataset = store(
        tmp_path,
        {"train": tuple(long[:3]), "validation": tuple(long[3:6]), "test": tuple(long[6:])},
        {"max_residues": 40},
        target="residue_class",
    ).get("d")
    for part in dataset.splits.values():
        assert all(len(r.sequences[0]) == 40 and np.array_equal(r.label, np.arange(40)) for r in part)
    assert dataset.notes == ("9 sequences cropped to 40 residues",)


def test_groups_of_the_test_split_follow_its_records(tmp_path: Path) -> None:
    sequences = proteins(10)
    dataset = store(
        tmp_path,
        {
            "train": records(sequences[:2]),
            "validation": records(sequences[2:4], "v"),
            "test": records([*sequences[4:9], "A-C"], "t"),
        },
        {"max_test": 3},
        groups={"odd": np.array([False, True, False, True, False, True])},
    ).get("d")
    odd = {f"t{i}" for i in (1, 3)}
    assert [record.key in odd for record in dataset.splits["test"]] == dataset.groups["odd"].tolist()
    assert len(dataset.groups["odd"]) == 3


def test_without_a_test_set_validation_is_tested_on_and_train_gives_a_new_one(tmp_path: Path) -> None:
    related = families(12, 5)
    dataset = store(
        tmp_path, {"train": records([s for f in related for s in f]), "validation": records(proteins(7, seed=5), "v")}
    ).get("d")
    assert {record.key[0] for record in dataset.splits["test"]} == {"v"}
    assert "validation set is the test set" in dataset.notes[0]
    assert "taken from train by sequence cluster" in dataset.notes[1]
    family_of = {s: i for i, f in enumerate(related) for s in f}
    in_train, in_validation = ({family_of[r.sequences[0]] for r in dataset.splits[s]} for s in ("train", "validation"))
    assert in_validation
    assert not in_train & in_validation
    check_apart(dataset)


def test_one_set_alone_is_parted_three_ways_by_cluster(tmp_path: Path) -> None:
    related = families(30, 4)
    family_of = {s: i for i, f in enumerate(related) for s in f}
    dataset = store(tmp_path, {"validation": records([s for f in related for s in f])}).get("d")
    parts = [{family_of[r.sequences[0]] for r in dataset.splits[split]} for split in SPLITS]
    assert all(parts)
    assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
    assert len(dataset.splits["test"]) == pytest.approx(24, abs=4), "a fifth, whole families of four"
    assert "split here by sequence cluster" in dataset.notes[0]


def test_without_a_train_set_validation_is_trained_on(tmp_path: Path) -> None:
    dataset = store(
        tmp_path, {"validation": records(proteins(20), "v"), "test": records(proteins(5, seed=3), "t")}
    ).get("d")
    assert [record.key for record in dataset.splits["test"]] == [f"t{i}" for i in range(5)]
    assert {r.key[0] for split in ("train", "validation") for r in dataset.splits[split]} == {"v"}
    assert "validation set is trained on" in dataset.notes[0]


def test_draws_depend_on_the_seed_alone_and_are_noted(tmp_path: Path) -> None:
    sequences = proteins(60)
    given = {
        "train": records(sequences[:40]),
        "validation": records(sequences[40:50], "v"),
        "test": records(sequences[50:], "t"),
    }
    config = {"max_train": 10, "max_validation": 4, "max_test": 5}
    first, again = (store(tmp_path, given, config).get("d") for _ in range(2))
    assert {s: len(part) for s, part in first.splits.items()} == {"train": 10, "validation": 4, "test": 5}
    assert first.splits == again.splits
    assert first.sha256 == again.sha256
    whole = store(tmp_path, given).get("d")
    assert whole.sha256 != first.sha256, "the hash names the examples, not the files alone"
    assert any("10 of 40 train records drawn" in note for note in first.notes)


def test_clusters_of_a_layout_that_knows_better_are_kept(tmp_path: Path) -> None:
    sequences = proteins(10)
    own = tuple(Record(f"t{i}", (s,), 0, cluster=7) for i, s in enumerate(sequences[6:]))
    dataset = store(
        tmp_path, {"train": records(sequences[:3]), "validation": records(sequences[3:6], "v"), "test": own}
    ).get("d")
    assert {record.cluster for record in dataset.splits["test"]} == {7}


def test_relatives_in_the_test_set_share_a_cluster(tmp_path: Path) -> None:
    related = families(3, 3)
    dataset = store(
        tmp_path,
        {
            "train": records(proteins(3, seed=8)),
            "validation": records(proteins(3, seed=9), "v"),
            "test": records([s for f in related for s in f], "t"),
        },
    ).get("d")
    clusters = np.array([record.cluster for record in dataset.splits["test"]]).reshape(3, 3)
    assert (clusters == clusters[:, :1]).all()
    assert len(set(clusters[:, 0])) == 3


def test_a_dataset_is_read_once(tmp_path: Path) -> None:
    whole = store(tmp_path, {"train": records(proteins(30))})
    assert whole.get("d") is whole.get("d")


def _never_read(files: Files, prefix: str) -> Dataset:
    raise AssertionError("its files are not there")


def test_a_dataset_that_is_not_there_says_what_was_looked_for_and_where(tmp_path: Path) -> None:
    layout = Layout("Somebody's layout", "folder", ("train.csv", "part-*.csv"), _never_read)
    wanting = DatasetStore(BenchmarksConfig(root=tmp_path), 0, {"d": (layout,)})
    with pytest.raises(
        DatasetMissing, match=r"looked for Somebody's layout \(folder/train\.csv, folder/part-\*\.csv\)"
    ):
        wanting.get("d")
    with pytest.raises(DatasetMissing, match=r"benchmarks\.root"):
        DatasetStore(BenchmarksConfig(), 0, {"d": (layout,)}).get("d")
    with pytest.raises(UserError, match="unknown; allowed: d"):
        wanting.get("e")


def test_a_source_of_its_own_is_searched_from_its_top(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "train.csv").write_text("x")
    (tmp_path / "own" / "part-1.csv").write_text("x")
    seen = []

    def read(files: Files, prefix: str) -> Dataset:
        seen.append(prefix)
        parts = dict(zip(SPLITS, (records(proteins(3, seed=i), str(i)) for i in range(3)), strict=True))
        return Dataset("d", "s", "", "class", ("a", "b", "c"), parts)

    config = BenchmarksConfig(sources={"d": str(tmp_path / "own")})
    layouts = {"d": (Layout("l", "folder", ("train.csv", "part-*.csv"), read),)}
    DatasetStore(config, 0, layouts).get("d")
    assert seen == [""]


def test_the_root_is_that_of_the_environment_where_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "file.txt").write_text("x")
    monkeypatch.setenv("SAPLM_DATA", str(tmp_path))
    layouts = store(tmp_path, {"train": records(proteins(30))})._layouts
    assert DatasetStore(BenchmarksConfig(), 0, layouts).get("d").splits["train"]


def test_an_empty_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no usable example"):
        store(tmp_path, {"train": records(["", "A-C"])}).get("d")


def test_a_class_is_not_taken_whole_from_train() -> None:
    many = [Record(str(i), (s,), 0) for i, s in enumerate(proteins(40))]
    single = [Record("last", (proteins(1, seed=2)[0],), 1)]
    taken = held_out([*many, *single], 0.9, labels_stay=True)
    assert not taken[-1]
    assert taken.sum() >= 30


def test_a_family_that_is_everything_is_parted_by_single_records() -> None:
    one = [Record(str(i), (s,), 0) for i, s in enumerate(families(1, 20)[0])]
    assert held_out(one, 0.2).sum() == 4


def test_no_test_protein_of_a_pair_is_seen_in_training() -> None:
    names = proteins(60)
    generator = np.random.default_rng(0)
    pairs = {tuple(sorted(generator.choice(60, 2, replace=False))) for _ in range(600)}
    given = [Record(f"{a} {b}", (names[a], names[b]), 1) for a, b in sorted(pairs)]
    parts = three_ways(given)
    train, validation, test = ({s for r in parts[split] for s in r.sequences} for split in SPLITS)
    assert test
    assert not test & (train | validation)
    for record in parts["validation"]:
        assert not set(record.sequences) <= train


def test_drawn_negatives_are_none_of_the_known_pairs_and_keep_every_degree() -> None:
    generator = np.random.default_rng(0)
    pairs = sorted({tuple(sorted(map(str, generator.choice(80, 2, replace=False)))) for _ in range(300)})
    known = {frozenset(pair) for pair in pairs}
    drawn = degree_matched_negatives(pairs, known)
    assert not {frozenset(pair) for pair in drawn} & known
    assert len({frozenset(pair) for pair in drawn}) == len(drawn)
    assert all(a != b for a, b in drawn)
    degrees = lambda some: sorted(json.dumps(x) for pair in some for x in pair)  # noqa: E731
    assert degrees(drawn) == degrees(pairs)
    assert drawn == degree_matched_negatives(pairs, known)


def test_a_hub_that_meets_everyone_gets_fewer_negatives_and_no_wrong_one() -> None:
    pairs = [("hub", str(i)) for i in range(10)]
    assert degree_matched_negatives(pairs, {frozenset(pair) for pair in pairs}) == []
