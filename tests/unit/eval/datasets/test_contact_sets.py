"""Chains of contact benchmarks from structure files, arrays and lists of contacts."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.benchmarks import BenchmarksConfig
from configs.errors import UserError
from eval.datasets.contact_sets import ContactSet, contact_set
from eval.tasks.protocol import DatasetMissing
from tests.unit.data_pipeline.structure.models import NAMES
from tests.unit.eval.makers import backbone

SEQUENCE = "MKTAYIAKQRQISFVKSHFS"
ATOMS = ("N", "CA", "C", "O")


def pdb_text(sequence: str, coordinates: np.ndarray, chain: str = "A") -> str:
    lines = []
    for i, (letter, residue) in enumerate(zip(sequence, coordinates, strict=True), start=1):
        for name, (x, y, z) in zip(ATOMS, residue, strict=False):
            lines.append(
                f"ATOM  {len(lines) + 1:5d}  {name:<3s} {NAMES[letter]} {chain}{i:4d}    "
                f"{x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00          {name[0]:>2s}  \n"
            )
    return "".join(lines) + "TER\nEND\n"


def read(place: Path, **fields: int) -> ContactSet:
    return contact_set("casp", BenchmarksConfig(sources={"casp": str(place)}, **fields))


def test_a_folder_of_structures_gives_its_chains(tmp_path: Path) -> None:
    coordinates = backbone("H" * 20)
    (tmp_path / "T1024.pdb").write_text(pdb_text(SEQUENCE, coordinates))
    (tmp_path / "T1025-D1.pdb").write_text(pdb_text(SEQUENCE[::-1], coordinates))
    (tmp_path / "again.pdb").write_text(pdb_text(SEQUENCE, coordinates, chain="B"))
    (tmp_path / "short.pdb").write_text(pdb_text(SEQUENCE[:5], coordinates[:5]))
    (tmp_path / "broken.pdb").write_text("no structure")
    (tmp_path / "targetlist.csv").write_text("T1024;x")
    found = read(tmp_path)
    assert [chain.sequence for chain in found.chains] == [SEQUENCE, SEQUENCE[::-1]]
    np.testing.assert_allclose(found.chains[0].coordinates[:, :4], coordinates[:, :4], atol=5e-4)
    assert found.notes == ("1 files cannot be used: broken.pdb (not_a_structure)",)
    assert {chain.cluster for chain in found.chains} == {0, 1}
    assert len(found.sha256) == 64


def test_files_of_one_name_in_two_folders_are_two_chains(tmp_path: Path) -> None:
    for folder, letters in (("a", SEQUENCE), ("b", SEQUENCE[::-1])):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.pdb").write_text(pdb_text(letters, backbone("H" * 20)))
    assert [chain.key for chain in read(tmp_path).chains] == ["model_A", "model_A#2"]


def test_chains_are_cropped_and_drawn(tmp_path: Path) -> None:
    for i in range(4):
        letters = SEQUENCE[i:] + SEQUENCE[:i]
        (tmp_path / f"t{i}.pdb").write_text(pdb_text(letters, backbone("E" * 20)))
    found = read(tmp_path, max_residues=15, max_test=2)
    assert [len(chain) for chain in found.chains] == [15, 15]
    assert all(len(chain.coordinates) == 15 for chain in found.chains)


@pytest.mark.parametrize("atoms", [3, 4, 5])
def test_arrays_hold_coordinates_or_contacts(atoms: int, tmp_path: Path) -> None:
    coordinates = np.random.default_rng(0).normal(size=(20, atoms, 3))
    np.savez(tmp_path / "a.npz", seq=SEQUENCE, coords=coordinates)
    contacts = np.zeros((20, 20), dtype=bool)
    contacts[2, 11] = contacts[11, 2] = True
    np.savez(tmp_path / "b.npz", sequence=SEQUENCE[::-1], contacts=contacts)
    first, second = read(tmp_path).chains
    np.testing.assert_array_equal(first.coordinates[:, :atoms], coordinates)
    assert np.isnan(first.coordinates[:, atoms:]).all()
    assert second.coordinates is None
    assert second.pairs.tolist() == [[2, 11]]


def test_arrays_of_another_shape_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", sequence=SEQUENCE, coordinates=np.zeros((20, 3)))
    with pytest.raises(UserError, match=r"shape \[20, 3\]; allowed is \[20, A, 3\]"):
        read(tmp_path)
    np.savez(tmp_path / "a.npz", coordinates=np.zeros((20, 5, 3)))
    with pytest.raises(UserError, match="has no array sequence or seq"):
        read(tmp_path / ".")


def test_lists_of_contacts_are_read_from_parquet_files(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    table = pa.table({"seq": [SEQUENCE, SEQUENCE[::-1]], "label": [[[0, 9], [3, 15]], [[1, 19]]]})
    pq.write_table(table, tmp_path / "data" / "test-00000-of-00001.parquet")
    pq.write_table(table, tmp_path / "data" / "train-00000-of-00001.parquet")
    found = read(tmp_path, max_residues=14)
    assert [chain.pairs.tolist() for chain in found.chains] == [[[0, 9]], []]
    assert any("publisher's" in note for note in found.notes)


def test_a_set_without_a_place_is_missing_and_an_empty_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetMissing, match=r"benchmarks\.sources\.casp=FOLDER"):
        contact_set("casp", BenchmarksConfig())
    with pytest.raises(UserError, match="holds no chain of 12 residues or more"):
        read(tmp_path)
