import hashlib
import json
import os
import shutil
from pathlib import Path

import fsspec
import pytest

from configs.build import BuildConfig
from configs.errors import UserError
from configs.source import SourceConfig, SyntheticConfig
from data_pipeline.inputs import Inputs, read_inputs
from data_pipeline.sources import read_entry
from data_pipeline.structure.chain import StructureError
from tests.unit.data_pipeline.web import remote, tar_bytes


def inputs_of(tmp_path: Path, **source: object) -> Inputs:
    settings = {"kind": "files", "remote": remote(tmp_path)} | source
    return read_inputs(BuildConfig(source=SourceConfig(**settings), output=tmp_path / "out"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "in"
    (place / "sub").mkdir(parents=True)
    for name, content in (("a.pdb", b"a"), ("sub/b.cif", b"bb"), ("c.bcif", b"ccc")):
        (place / name).write_bytes(content)
    (place / "d.tar").write_bytes(tar_bytes({"x.pdb": b"xxxx"}))
    return place


def test_inputs_tell_place_entries_and_their_states(folder: Path, tmp_path: Path) -> None:
    inputs = inputs_of(tmp_path, path=folder)
    assert inputs.place == str(folder)
    assert [entry.name for entry in inputs.entries] == ["a.pdb", "c.bcif", "d.tar/x.pdb", "sub/b.cif"]
    assert len(set(inputs.fingerprints)) == 4
    # What a manifest records: names and sizes as JSON.
    sizes = json.dumps([["a.pdb", 1], ["c.bcif", 3], ["d.tar/x.pdb", 4], ["sub/b.cif", 2]])
    assert inputs.names_and_sizes_sha256 == hashlib.sha256(sizes.encode()).hexdigest()


def test_a_moved_folder_has_the_same_fingerprints(folder: Path, tmp_path: Path) -> None:
    before = inputs_of(tmp_path, path=folder)
    shutil.move(folder, tmp_path / "moved")
    after = inputs_of(tmp_path, path=tmp_path / "moved")
    assert before.fingerprints == after.fingerprints
    assert before.names_and_sizes_sha256 == after.names_and_sizes_sha256


@pytest.mark.parametrize("changed", [0, 1, 2, 3])
def test_a_changed_file_changes_its_fingerprint_alone(folder: Path, tmp_path: Path, changed: int) -> None:
    before = inputs_of(tmp_path, path=folder)
    os.utime(before.entries[changed].path, ns=(1, 1))
    after = inputs_of(tmp_path, path=folder)
    assert [a != b for a, b in zip(before.fingerprints, after.fingerprints, strict=True)] == [
        index == changed for index in range(4)
    ]
    assert before.names_and_sizes_sha256 == after.names_and_sizes_sha256


def test_a_limit_takes_the_first_entries(folder: Path, tmp_path: Path) -> None:
    (folder / "d.tar").write_bytes(b"damaged, and never read")
    inputs = inputs_of(tmp_path, path=folder, limit=2)
    assert [entry.name for entry in inputs.entries] == ["a.pdb", "c.bcif"]


def test_a_remote_files_state_is_its_fingerprint(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/inputs/a.pdb", b"abc")
    memory.pipe("/inputs/b.pdb", b"b")
    try:
        before = inputs_of(tmp_path, path="memory://inputs")
        assert before.place == "memory://inputs"
        assert inputs_of(tmp_path, path="memory://inputs").fingerprints == before.fingerprints
        memory.pipe("/inputs/a.pdb", b"abd")
        after = inputs_of(tmp_path, path="memory://inputs")
        assert [a != b for a, b in zip(before.fingerprints, after.fingerprints, strict=True)] == [True, False]
        assert before.names_and_sizes_sha256 == after.names_and_sizes_sha256
        local = tmp_path / "same"
        local.mkdir()
        (local / "a.pdb").write_bytes(b"abc")
        (local / "b.pdb").write_bytes(b"b")
        assert inputs_of(tmp_path, path=local).names_and_sizes_sha256 == before.names_and_sizes_sha256
    finally:
        memory.rm("/inputs", recursive=True)


def test_an_older_version_is_a_reject_and_its_fingerprint_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "AF-P12345-F1-model_v4.cif").write_bytes(b"old")
    alone = inputs_of(tmp_path, path=folder)
    assert read_entry(alone.entries[0]) == b"old"
    (folder / "AF-P12345-F1-model_v6.cif").write_bytes(b"new")
    both = inputs_of(tmp_path, path=folder)
    with pytest.raises(StructureError, match=r"superseded: AF-P12345-F1-model_v6\.cif"):
        read_entry(both.entries[0])
    assert read_entry(both.entries[1]) == b"new"
    assert both.fingerprints[0] != alone.fingerprints[0]


def test_accessions_without_a_model_are_entries_too(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "AF-P12345-F1-model_v4.cif").write_bytes(b"old")
    (tmp_path / "list.txt").write_text("P12345\nQ8W3K0\n")
    inputs = inputs_of(tmp_path, kind="accessions", path=tmp_path / "list.txt", structures=folder)
    assert [entry.name for entry in inputs.entries] == ["AF-P12345-F1-model_v4.cif", "AF-Q8W3K0-F1"]
    through_api = inputs_of(tmp_path, kind="accessions", path=tmp_path / "list.txt")
    assert len({*inputs.fingerprints, *through_api.fingerprints}) == 4


def test_synthetic_structures_are_written_beside_the_output(tmp_path: Path) -> None:
    small = SyntheticConfig(num_folds=1, families_per_fold=1, members_per_family=2, max_residues=60)
    inputs = read_inputs(BuildConfig(source=SourceConfig(synthetic=small), output=tmp_path / "shards"))
    assert inputs.place == str(tmp_path / "shards.structures")
    assert len(inputs.entries) == 2


@pytest.mark.parametrize("kind", ["files", "accessions", "foldcomp"])
def test_a_missing_place_is_a_mistake_of_the_user(tmp_path: Path, kind: str) -> None:
    with pytest.raises(UserError, match=r"nowhere: (there is no such file|not a Foldcomp database)"):
        inputs_of(tmp_path, kind=kind, path=tmp_path / "nowhere")
