"""What a worker makes of a batch: kept chains, reasons for the rest, and one spool tar."""

from pathlib import Path

import numpy as np
import pytest

from configs.build import BuildConfig, FilterConfig, SyntheticConfig
from data_pipeline import parse_task
from data_pipeline.parse_task import build_graph, parse_batch
from data_pipeline.schema import decode_sample
from data_pipeline.sources import Entry, open_source
from data_pipeline.spool import BatchTask, cut_batches, read_columns
from data_pipeline.structure.geometry import CA
from data_pipeline.structure.threedi import encode_3di
from data_pipeline.synthetic import write_synthetic

SMALL = SyntheticConfig(num_folds=1, families_per_fold=1, members_per_family=3, max_residues=80)


@pytest.fixture(scope="module")
def structures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("structures")
    write_synthetic(SMALL, folder)
    return folder


def batch_of(structures: Path, folder: Path, **settings: object) -> BatchTask:
    folder.mkdir(exist_ok=True)
    config = BuildConfig(output=folder, **settings)  # type: ignore[arg-type]
    entries = list(open_source(structures).entries())
    (task,) = cut_batches(entries, [entry.name for entry in entries], config, folder)
    return task


def test_stored_tokens_and_graphs_are_those_of_the_stored_coordinates(structures: Path, tmp_path: Path) -> None:
    task = batch_of(structures, tmp_path)
    batch = parse_batch(task)
    assert len(batch.chains) >= 3
    assert not batch.rejects
    data = task.tar.read_bytes()
    for record in batch.chains:
        facts = data[record.facts_offset :][: record.facts_length]
        sample = decode_sample(facts, data[record.arrays_offset :][: record.arrays_length])
        assert (sample.key, sample.sequence) == (record.key, record.sequence)
        letters, valid = encode_3di(sample.angstrom())
        assert sample.threedi == letters
        np.testing.assert_array_equal(sample.threedi_valid, valid)
        for config in task.graphs:
            graph = build_graph(sample.angstrom()[:, CA], config)
            np.testing.assert_array_equal(sample.graphs[config.name].edges(), graph.edges())


def test_parsing_again_gives_the_same_tar_and_columns(structures: Path, tmp_path: Path) -> None:
    first, second = batch_of(structures, tmp_path / "a"), batch_of(structures, tmp_path / "b")
    assert first.stem == second.stem
    one, two = parse_batch(first), parse_batch(second)
    assert (one.chains, one.rejects) == (two.chains, two.rejects)
    assert first.tar.read_bytes() == second.tar.read_bytes()


def test_columns_are_read_back_and_unfinished_batches_are_not(structures: Path, tmp_path: Path) -> None:
    task = batch_of(structures, tmp_path)
    assert read_columns(task) is None
    batch = parse_batch(task)
    assert read_columns(task) == batch
    task.tar.write_bytes(task.tar.read_bytes()[:-1])
    assert read_columns(task) is None


def test_settings_that_change_the_samples_rename_the_batch(structures: Path, tmp_path: Path) -> None:
    stem = batch_of(structures, tmp_path).stem
    assert batch_of(structures, tmp_path, filters=FilterConfig(min_residues=31)).stem != stem
    assert batch_of(structures, tmp_path, num_workers=1).stem == stem


def test_filtered_chains_are_listed_with_path_and_chain(structures: Path, tmp_path: Path) -> None:
    batch = parse_batch(batch_of(structures, tmp_path, filters=FilterConfig(max_residues=40)))
    assert not batch.chains
    assert {reject.reason for reject in batch.rejects} == {"too_long"}
    assert all(reject.chain and reject.path.endswith(".cif.gz") for reject in batch.rejects)


def test_an_unexpected_exception_costs_one_entry(
    structures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = parse_task.parse_structure

    def fails_once(data: bytes, name: str) -> list:
        if "m01" in name:
            raise RuntimeError("the parser broke")
        return whole(data, name)

    monkeypatch.setattr(parse_task, "parse_structure", fails_once)
    batch = parse_batch(batch_of(structures, tmp_path))
    assert len({record.source for record in batch.chains}) == 2
    (reject,) = batch.rejects
    assert (reject.reason, reject.detail) == ("parse_error", "RuntimeError: the parser broke")
    assert "m01" in reject.path


def test_a_chain_that_breaks_the_3di_batch_is_lost_alone(
    structures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(chains: list[np.ndarray]) -> list:
        raise FloatingPointError

    def fails_first(coordinates: np.ndarray, seen: list[int] = []) -> tuple[str, np.ndarray]:  # noqa: B006
        seen.append(len(coordinates))
        if len(seen) == 1:
            raise FloatingPointError("not this one")
        return encode_3di(coordinates)

    reference = parse_batch(batch_of(structures, tmp_path / "whole"))
    monkeypatch.setattr(parse_task, "encode_3di_many", breaks)
    monkeypatch.setattr(parse_task, "encode_3di", fails_first)
    batch = parse_batch(batch_of(structures, tmp_path / "broken"))
    assert [record.key for record in batch.chains] == [record.key for record in reference.chains[1:]]
    assert [reject.detail for reject in batch.rejects] == ["FloatingPointError: not this one"]


def test_a_file_that_is_gone_has_a_reason(tmp_path: Path) -> None:
    task = BatchTask("x", str(tmp_path), (Entry("gone.pdb", str(tmp_path / "gone.pdb")),), FilterConfig(), ())
    (reject,) = parse_batch(task).rejects
    assert (reject.path, reject.reason) == ("gone.pdb", "unreadable")
