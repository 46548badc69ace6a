"""What a worker makes of a batch: kept chains, reasons for the rest, and one spool tar."""

from pathlib import Path

import numpy as np
import pytest

from configs.build import BuildConfig, FilterConfig, ReliabilityConfig
from configs.source import SyntheticConfig
from data_pipeline import parse_task
from data_pipeline.parse_task import build_graphs, parse_batch
from data_pipeline.schema import decode_sample
from data_pipeline.sources import Entry, open_source
from data_pipeline.spool import BatchTask, ParseSettings, cut_batches, read_columns, sequence_digest
from data_pipeline.structure.frames import decode_dihedrals
from data_pipeline.structure.geometry import CA, dihedrals
from data_pipeline.structure.threedi import encode_3di
from data_pipeline.synthetic.entries import write_synthetic

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
    assert batch.chains.num_rows >= 3
    assert not batch.rejects
    data = task.tar.read_bytes()
    for row in batch.chains.to_pylist():
        facts = data[row["facts_offset"] :][: row["facts_length"]]
        sample = decode_sample(facts, data[row["arrays_offset"] :][: row["arrays_length"]])
        assert (sample.key, sample.sequence) == (row["key"], row["sequence"])
        assert (row["digest"], row["residues"]) == (sequence_digest(sample.sequence), len(sample))
        letters, valid = encode_3di(sample.angstrom())
        assert sample.threedi == letters
        np.testing.assert_array_equal(sample.threedi_valid, valid)
        for name, graph in build_graphs(sample.angstrom()[:, CA], task.settings.graphs).items():
            np.testing.assert_array_equal(sample.graphs[name].edges(), graph.edges())
        assert sample.reliable is not None
        assert not sample.reliable[~sample.valid].any()


def test_stored_backbone_features_are_those_of_the_stored_coordinates(structures: Path, tmp_path: Path) -> None:
    task = batch_of(structures, tmp_path)
    row = parse_batch(task).chains.to_pylist()[0]
    data = task.tar.read_bytes()
    arrays = data[row["arrays_offset"] :][: row["arrays_length"]]
    sample = decode_sample(data[row["facts_offset"] :][: row["facts_length"]], arrays)
    assert sample.dihedrals is not None
    assert sample.frames is not None
    angles = dihedrals(sample.angstrom())
    error = np.angle(np.exp(1j * (decode_dihedrals(sample.dihedrals) - angles)))
    # Half a step of pi / 32767.
    assert np.nanmax(np.abs(error)) <= 4.9e-5
    np.testing.assert_array_equal(np.isnan(decode_dihedrals(sample.dihedrals)), np.isnan(angles))
    without = batch_of(structures, tmp_path / "without", backbone_features=False)
    row = parse_batch(without).chains.to_pylist()[0]
    assert row["arrays_length"] < len(arrays)


def test_the_tar_of_a_batch_holds_what_its_settings_ask_for(structures: Path, tmp_path: Path) -> None:
    strict = batch_of(structures, tmp_path / "strict", reliability=ReliabilityConfig(max_bfactor=1e-3, min_plddt=100))
    plain = batch_of(structures, tmp_path / "plain")
    assert strict.stem != plain.stem


def test_parsing_again_gives_the_same_tar_and_columns(structures: Path, tmp_path: Path) -> None:
    first, second = batch_of(structures, tmp_path / "a"), batch_of(structures, tmp_path / "b")
    assert first.stem == second.stem
    one, two = parse_batch(first), parse_batch(second)
    assert one.chains.equals(two.chains)
    assert one.rejects == two.rejects
    assert first.tar.read_bytes() == second.tar.read_bytes()


def test_columns_are_read_back_and_unfinished_batches_are_not(structures: Path, tmp_path: Path) -> None:
    task = batch_of(structures, tmp_path)
    assert read_columns(task) is None
    batch = parse_batch(task)
    found = read_columns(task)
    assert found is not None
    assert found.chains.equals(batch.chains)
    assert (found.rejects, found.seconds, found.tar_bytes) == (batch.rejects, batch.seconds, batch.tar_bytes)
    task.tar.write_bytes(task.tar.read_bytes()[:-1])
    assert read_columns(task) is None


def test_settings_that_change_the_samples_rename_the_batch(structures: Path, tmp_path: Path) -> None:
    stem = batch_of(structures, tmp_path).stem
    assert batch_of(structures, tmp_path, filters=FilterConfig(min_residues=31)).stem != stem
    assert batch_of(structures, tmp_path, num_workers=1).stem == stem


def test_filtered_chains_are_listed_with_path_and_chain(structures: Path, tmp_path: Path) -> None:
    batch = parse_batch(batch_of(structures, tmp_path, filters=FilterConfig(max_residues=40)))
    assert not batch.chains.num_rows
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
    assert len(set(batch.chains["source"].to_pylist())) == 2
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
    assert batch.chains["key"].to_pylist() == reference.chains["key"].to_pylist()[1:]
    assert [reject.detail for reject in batch.rejects] == ["FloatingPointError: not this one"]


def test_a_file_that_is_gone_has_a_reason(tmp_path: Path) -> None:
    settings = ParseSettings.of(BuildConfig(output=tmp_path))
    task = BatchTask("0" * 32, str(tmp_path), (Entry("gone.pdb", str(tmp_path / "gone.pdb")),), settings)
    (reject,) = parse_batch(task).rejects
    assert (reject.path, reject.reason) == ("gone.pdb", "unreadable")
