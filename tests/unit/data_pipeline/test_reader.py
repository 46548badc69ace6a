"""Random access to verified shards."""

import random
from pathlib import Path

import numpy as np
import pytest

from configs.errors import UserError
from data_pipeline.manifest import MANIFEST_NAME, read_manifest, write_sealed
from data_pipeline.reader import DamagedShard, ShardReader
from tests.unit.data_pipeline.samples import small_splits, write_small_shards


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_small_shards(tmp_path)
    return tmp_path


def read_everything(folder: Path, verify: bool = True) -> None:
    with ShardReader(folder, verify) as reader:
        for split in reader.splits:
            for i in range(len(reader.index(split))):
                reader.sample(split, i)


def test_every_sample_comes_back_as_it_was_written(folder: Path) -> None:
    with ShardReader(folder) as reader:
        for split, samples in small_splits().items():
            assert len(reader.index(split)) == len(samples)
            for i, sample in enumerate(samples):
                back = reader.sample(split, i)
                assert (back.key, back.sequence, back.threedi, back.facts) == (
                    sample.key,
                    sample.sequence,
                    sample.threedi,
                    sample.facts,
                )
                np.testing.assert_array_equal(back.coordinates, sample.coordinates)
                np.testing.assert_array_equal(back.bfactor, sample.bfactor)
                np.testing.assert_array_equal(back.threedi_valid, sample.threedi_valid)
                np.testing.assert_array_equal(back.graphs["knn2"].edges(), sample.graphs["knn2"].edges())
                assert reader.key(split, i) == sample.key


def test_the_index_tells_lengths_clusters_and_quality(folder: Path) -> None:
    samples = small_splits()["train"]
    with ShardReader(folder) as reader:
        index = reader.index("train")
    assert index.residues.tolist() == [len(s) for s in samples]
    assert index.cluster.tolist() == [s.cluster for s in samples]
    assert index.high_quality.tolist() == [s.high_quality for s in samples]
    assert index.shard.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]


def test_an_unknown_split_names_those_that_exist(folder: Path) -> None:
    with ShardReader(folder) as reader, pytest.raises(UserError, match="allowed: train, validation, test"):
        reader.index("valid")


def test_a_folder_without_manifest_is_an_unfinished_build(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        ShardReader(tmp_path / "nothing")
    with pytest.raises(UserError, match="data_pipeline build"):
        ShardReader(tmp_path)


def test_another_major_schema_version_is_refused(folder: Path) -> None:
    manifest, _ = read_manifest(folder)
    write_sealed(folder / MANIFEST_NAME, manifest.model_copy(update={"schema_version": "2.0"}))
    with pytest.raises(UserError, match=r"schema version 2\.0"):
        ShardReader(folder)


def test_a_missing_shard_is_damage_that_names_the_file(folder: Path) -> None:
    (folder / "test-000000.tar").unlink()
    with ShardReader(folder) as reader, pytest.raises(DamagedShard, match=r"test-000000\.tar.*audit"):
        reader.sample("test", 0)


def test_every_single_bit_flip_is_detected_before_the_data_is_used(folder: Path) -> None:
    read_everything(folder)
    chosen = random.Random(7)
    files = sorted(folder.iterdir())
    for trial in range(150):
        path = files[trial % len(files)]
        whole = path.read_bytes()
        position, bit = chosen.randrange(len(whole)), chosen.randrange(8)
        path.write_bytes(whole[:position] + bytes([whole[position] ^ (1 << bit)]) + whole[position + 1 :])
        with pytest.raises(DamagedShard, match=path.name.split(".")[0]):
            read_everything(folder)
        path.write_bytes(whole)
    read_everything(folder)


def test_every_truncation_is_detected_even_without_hashing(folder: Path) -> None:
    chosen = random.Random(8)
    for path in sorted(folder.glob("*.tar")):
        whole = path.read_bytes()
        for _ in range(5):
            path.write_bytes(whole[: chosen.randrange(len(whole))])
            with pytest.raises(DamagedShard, match=path.name):
                read_everything(folder, verify=False)
        path.write_bytes(whole)
