"""Tars of reproducible bytes and their index files."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.schema import INDEX_COLUMNS, decode_sample
from data_pipeline.shards import TarWriter, pack_sample, write_shard
from tests.unit.data_pipeline.samples import make_sample, write_small_shards

LONGEST_KEY = "k" * 100


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = write_small_shards(tmp_path / "a"), write_small_shards(tmp_path / "b")
    assert first == second
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert [(tmp_path / "a" / n).read_bytes() for n in names] == [(tmp_path / "b" / n).read_bytes() for n in names]


def test_members_carry_no_time_and_no_owner(tmp_path: Path) -> None:
    write_small_shards(tmp_path)
    with tarfile.open(tmp_path / "train-000000.tar") as tar:
        members = tar.getmembers()
    assert [m.name for m in members[:2]] == ["t00_A.json", "t00_A.safetensors"]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}


def test_the_index_points_at_each_member(tmp_path: Path) -> None:
    samples = [make_sample("a_A", 31, cluster=3, high_quality=True), make_sample(LONGEST_KEY, 45, cluster=4)]
    write_shard(tmp_path / "train-000000.tar", map(pack_sample, samples))
    table = np.load(tmp_path / "train-000000.index.npy", allow_pickle=False)
    data = (tmp_path / "train-000000.tar").read_bytes()
    for sample, values in zip(samples, table.tolist(), strict=True):
        row = dict(zip(INDEX_COLUMNS, values, strict=True))
        facts = data[row["json_offset"] :][: row["json_length"]]
        arrays = data[row["arrays_offset"] :][: row["arrays_length"]]
        assert decode_sample(facts, arrays).sequence == sample.sequence
        assert (row["residues"], row["cluster"], row["high_quality"]) == (
            len(sample),
            sample.cluster,
            sample.high_quality,
        )
        part = data[row["offset"] :][: row["length"]] + bytes(1024)
        with tarfile.open(fileobj=io.BytesIO(part)) as tar:
            assert tar.getnames() == [f"{sample.key}.json", f"{sample.key}.safetensors"]


def test_an_abandoned_tar_leaves_nothing_behind(tmp_path: Path) -> None:
    with TarWriter(tmp_path / "x.tar") as tar:
        tar.add("a.json", b"{}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["1abc.A", "a/b", "", "k" * 101])
def test_a_key_that_would_merge_or_overflow_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(AssertionError):
        write_shard(tmp_path / "x.tar", [pack_sample(make_sample(key, 30))])
