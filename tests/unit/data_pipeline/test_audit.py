"""Audit names every damaged file."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from configs.errors import UserError
from data_pipeline.audit import audit
from data_pipeline.manifest import MANIFEST_NAME, read_manifest, write_sealed
from data_pipeline.reader import ShardReader
from data_pipeline.schema import Graph
from data_pipeline.shards import write_shards
from tests.unit.data_pipeline.samples import make_sample, small_splits, write_small_shards
from tests.unit.data_pipeline.test_derived import write_column


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_small_shards(tmp_path)
    write_column(ShardReader(tmp_path))
    return tmp_path


def test_sound_shards_pass_and_are_counted(folder: Path) -> None:
    report = audit(folder)
    assert not report.damage
    samples = small_splits()["train"]
    train = report.splits["train"]
    assert (train.samples, train.residues, train.high_quality) == (10, sum(map(len, samples)), 4)
    assert train.threedi.sum() + train.invalid == train.residues
    assert report.derived == {"teacher": 15}


def test_several_processes_find_what_one_finds(folder: Path) -> None:
    path = sorted(folder.glob("train-*.tar"))[1]
    path.write_bytes(path.read_bytes()[:-1])
    alone, together = audit(folder), audit(folder, workers=2)
    assert list(together.damage) == [path.name]
    assert together.damage == alone.damage
    for split, counts in alone.splits.items():
        found = together.splits[split]
        assert (found.samples, found.residues, found.clusters) == (counts.samples, counts.residues, counts.clusters)
        np.testing.assert_array_equal(found.threedi, counts.threedi)
        assert found.graph_edges == counts.graph_edges


def test_every_flip_and_truncation_is_blamed_on_its_file(folder: Path) -> None:
    chosen = random.Random(3)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    for trial in range(3 * len(files)):
        path = files[trial % len(files)]
        whole = path.read_bytes()
        position = chosen.randrange(len(whole))
        flipped = bytes([whole[position] ^ (1 << chosen.randrange(8))])
        path.write_bytes(whole[:position] + flipped + whole[position + 1 :] if trial % 3 else whole[:position])
        assert list(audit(folder).damage) == [str(path.relative_to(folder))]
        path.write_bytes(whole)
    assert not audit(folder).damage


def test_missing_and_foreign_files_are_named(folder: Path) -> None:
    (folder / "test-000000.tar").rename(folder / "test-000007.tar")
    (folder / "derived/teacher/train-000001.index.npy").unlink()
    assert set(audit(folder).damage) == {
        "test-000000.tar",
        "test-000007.tar",
        "derived/teacher/train-000001.index.npy",
    }


def test_a_cluster_in_two_splits_is_damage(tmp_path: Path) -> None:
    write_shards(tmp_path, {"train": [make_sample("a_A", 30, 1)], "test": [make_sample("b_A", 30, 1)]})
    assert "clusters stand in two splits" in audit(tmp_path).damage[MANIFEST_NAME]


def test_a_key_that_stands_twice_is_damage(tmp_path: Path) -> None:
    write_shards(tmp_path, {"train": [make_sample("a_A", 30, 1)], "test": [make_sample("a_A", 30, 2)]})
    assert "stand twice" in audit(tmp_path).damage[MANIFEST_NAME]


def test_a_graph_that_leaves_its_chain_is_damage_even_with_right_hashes(tmp_path: Path) -> None:
    sample = make_sample("a_A", 30)
    outside = Graph(sample.graphs["knn2"].indptr, np.full_like(sample.graphs["knn2"].index, 30))
    write_shards(tmp_path, {"train": [replace(sample, graphs={"knn2": outside})]})
    assert "graph knn2" in audit(tmp_path).damage["train-000000.tar"]


def test_totals_that_disagree_are_damage(tmp_path: Path) -> None:
    write_small_shards(tmp_path)
    manifest, _ = read_manifest(tmp_path)
    test = manifest.splits["test"].model_copy(update={"residues": 1})
    write_sealed(tmp_path / MANIFEST_NAME, manifest.model_copy(update={"splits": {**manifest.splits, "test": test}}))
    assert "test: samples, residues" in audit(tmp_path).damage[MANIFEST_NAME]


def test_a_column_of_other_shards_is_named(folder: Path) -> None:
    write_shards(folder, {"train": [make_sample("other_A", 33)]})
    assert "made from other shards" in audit(folder).damage["derived/teacher/manifest.json"]


def test_nothing_to_audit_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished build"):
        audit(tmp_path)
