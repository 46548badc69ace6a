"""Derived columns beside the base shards."""

from pathlib import Path

import numpy as np
import pytest

from configs.errors import UserError
from data_pipeline.derived import DerivedReader, DerivedWriter, derived_names
from data_pipeline.reader import DamagedShard, ShardReader
from data_pipeline.shards import write_shards
from tests.unit.data_pipeline.samples import make_sample, write_small_shards

WIDTH = 4


def write_column(base: ShardReader, name: str = "teacher", offset: float = 0.0) -> None:
    with DerivedWriter(base, name, {"width": WIDTH}) as writer:
        for split in base.splits:
            for i in range(len(base.index(split))):
                n = len(base.sample(split, i))
                writer.write(split, i, {"embedding": np.full((n, WIDTH), i + offset, dtype=np.float16)})


@pytest.fixture
def base(tmp_path: Path) -> ShardReader:
    write_small_shards(tmp_path)
    return ShardReader(tmp_path)


def test_arrays_come_back_for_their_sample(base: ShardReader) -> None:
    write_column(base)
    with DerivedReader(base, "teacher") as column:
        assert column.facts == {"width": WIDTH}
        for split in base.splits:
            for i, n in enumerate(base.index(split).residues):
                embedding = column.arrays(split, i)["embedding"]
                assert embedding.shape == (n, WIDTH)
                assert embedding.dtype == np.float16
                assert (embedding == i).all()
    assert derived_names(base.folder) == ["teacher"]


def test_writing_twice_gives_the_same_bytes(base: ShardReader) -> None:
    write_column(base)
    files = sorted(base.folder.glob("derived/teacher/*"))
    first = [path.read_bytes() for path in files]
    write_column(base)
    assert [path.read_bytes() for path in files] == first


def test_a_missing_column_names_the_command_that_makes_it(base: ShardReader) -> None:
    with pytest.raises(UserError, match="pretrain derive"):
        DerivedReader(base, "teacher")


def test_an_interrupted_column_is_not_there(base: ShardReader) -> None:
    write_column(base)
    with pytest.raises(AttributeError), DerivedWriter(base, "teacher", {}) as writer:
        writer.write("train", 0, None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="not there"):
        DerivedReader(base, "teacher")


def test_samples_out_of_order_and_half_written_splits_are_refused(base: ShardReader) -> None:
    with pytest.raises(AssertionError, match="out of order"), DerivedWriter(base, "c", {}) as writer:
        writer.write("train", 1, {})
    with pytest.raises(AssertionError, match="more expected"), DerivedWriter(base, "c", {}) as writer:
        writer.write("train", 0, {})


def test_a_column_of_other_shards_is_refused(base: ShardReader) -> None:
    write_column(base)
    write_shards(base.folder, {"train": [make_sample("other_A", 33)]})
    with pytest.raises(UserError, match="other shards"):
        DerivedReader(ShardReader(base.folder), "teacher")


def test_a_flipped_bit_is_detected_before_the_data_is_used(base: ShardReader) -> None:
    write_column(base)
    path = base.folder / "derived/teacher/train-000001.tar"
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    with DerivedReader(base, "teacher") as column:
        column.arrays("train", 0)
        with pytest.raises(DamagedShard, match=r"train-000001\.tar"):
            column.arrays("train", 4)
