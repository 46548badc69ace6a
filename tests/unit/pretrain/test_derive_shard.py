"""Batches of chains within a shard, and marks of finished shards."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.manifest import write_sealed
from data_pipeline.reader import DamagedShard, ShardReader
from data_pipeline.schema import SCHEMA_VERSION
from data_pipeline.shards import write_shards
from pretrain import derive_shard
from pretrain.derive_progress import Pace, shown
from pretrain.derive_shard import ShardMark, ShardResult, is_whole, read_mark, read_sample, windows
from tests.unit.pretrain.chains import make_chain

LENGTHS = np.random.default_rng(0).integers(10, 500, size=300).tolist()


def test_every_chain_stands_in_one_batch_and_batches_keep_to_their_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derive_shard, "WINDOW_BATCHES", 4)
    found = list(windows(LENGTHS, 1000))
    batches = list(itertools.chain.from_iterable(found))
    assert sorted(itertools.chain.from_iterable(batches)) == list(range(len(LENGTHS)))
    assert max(sum(LENGTHS[n] for n in batch) for batch in batches) <= 1000
    for window in found:
        numbers = sorted(itertools.chain.from_iterable(window))
        assert numbers == list(range(numbers[0], numbers[-1] + 1)), "a window is a run, so that little is held"
        assert sum(LENGTHS[n] for n in numbers) <= 4000
    assert len(found) > 10


def test_chains_of_a_batch_are_of_similar_length() -> None:
    batches = list(itertools.chain.from_iterable(windows(LENGTHS, 4000)))
    padded = sum(max(LENGTHS[n] for n in batch) * len(batch) for batch in batches)
    # In file order padding would cost about as much as the residues themselves.
    assert padded < 1.1 * sum(LENGTHS)


def test_a_chain_beyond_the_budget_stands_alone() -> None:
    assert list(windows([5, 70, 6], 20)) == [[[0, 2], [1]]]
    assert list(windows([700], 20)) == [[[0]]]
    assert list(windows([], 20)) == []


def test_a_chain_is_read_as_the_reader_gives_it(tmp_path: Path) -> None:
    write_shards(tmp_path, {"train": [make_chain(20 + i, i) for i in range(5)]}, samples_per_shard=3)
    with ShardReader(tmp_path) as reader:
        alone, usual = read_sample(reader.files("train")[1], 1), reader.sample("train", 4)
        assert alone.key == usual.key
        np.testing.assert_array_equal(alone.coordinates, usual.coordinates)
        np.testing.assert_array_equal(alone.valid, usual.valid)


def test_a_damaged_base_shard_is_never_read(tmp_path: Path) -> None:
    write_shards(tmp_path, {"train": [make_chain(20, 0)]})
    path = tmp_path / "train-000000.tar"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with ShardReader(tmp_path) as reader, pytest.raises(DamagedShard, match=r"train-000000\.tar"):
        read_sample(reader.files("train")[0], 0)


def test_only_a_whole_mark_counts(tmp_path: Path) -> None:
    write_shards(tmp_path, {"train": [make_chain(20, 0)]})
    with ShardReader(tmp_path) as reader:
        facts = reader.files("train")[0].facts
    mark = ShardMark(
        schema_version=SCHEMA_VERSION, identity="i", base_sha256="b", pca_sha256=None, facts=facts, errors={}
    )
    path = tmp_path / "mark.json"
    write_sealed(path, mark)
    assert read_mark(path) == mark
    whole = path.read_bytes()
    for damaged in (whole[:-3], whole.replace(b'"i"', b'"j"'), b""):
        path.write_bytes(damaged)
        assert read_mark(path) is None
    assert read_mark(tmp_path / "none.json") is None


def test_a_shard_is_whole_only_with_both_of_its_files_unchanged(tmp_path: Path) -> None:
    write_shards(tmp_path, {"train": [make_chain(20, 0)]})
    with ShardReader(tmp_path) as reader:
        facts = reader.files("train")[0].facts
    assert is_whole(tmp_path, facts)
    for name in (facts.name, facts.index):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[:-1] + b"\2")
        assert not is_whole(tmp_path, facts)
        (tmp_path / name).unlink()
        assert not is_whole(tmp_path, facts)
        (tmp_path / name).write_bytes(data)
    assert is_whole(tmp_path, facts)


def make_results(tmp_path: Path, made: list[bool]) -> list[ShardResult]:
    write_shards(tmp_path, {"train": [make_chain(20, i) for i in range(len(made))]}, samples_per_shard=1)
    with ShardReader(tmp_path) as reader:
        files = reader.files("train")
        return [ShardResult("train", n, file.facts, None, made[n]) for n, file in enumerate(files)]


def test_the_rate_counts_only_shards_made_after_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 110.0, 110.0])
    monkeypatch.setattr("pretrain.derive_progress.time.monotonic", lambda: next(clock))
    pace = Pace(total=80)
    found, first, second, _ = make_results(tmp_path, [False, True, True, True])
    pace.add(found)
    pace.add(first)
    assert pace.words() == "40 of 80 residues"
    pace.add(second)
    # 20 residues in the ten seconds after the first, 20 residues left.
    assert pace.words() == "60 of 80 residues, 2 residues/s, about 0:00:10 left"


def test_showing_progress_passes_every_result_on(tmp_path: Path) -> None:
    made = make_results(tmp_path, [True, False, True])
    assert list(shown(iter(made), 60, "embeddings")) == made
