"""The MPNN teacher against embeddings that another implementation of the same encoder made."""

from pathlib import Path

import numpy as np
import pytest

from configs.errors import UserError
from data_pipeline.schema import Sample, to_milli_angstrom
from pretrain.teachers.mpnn import MpnnTeacher, _five_atoms, load_mpnn

ATOMS = ("N", "CA", "C", "O", "CB")


@pytest.fixture(scope="module")
def teacher(real_data: Path) -> MpnnTeacher:
    return load_mpnn(real_data / "teachers" / "mpnn_encoder_64d.npz")


@pytest.fixture(scope="module")
def chain(real_data: Path) -> Sample:
    """The reference chain, read by columns so that no parser of ours takes part."""
    atoms: dict[str, dict[str, list[float]]] = {}
    for line in (real_data / "teachers" / "reference_chain.pdb").read_text().splitlines():
        if line.startswith("ATOM") and line[16] in " A":
            place = atoms.setdefault(line[22:27].strip(), {})
            place.setdefault(line[12:16].strip(), [float(line[at : at + 8]) for at in (30, 38, 46)])
    missing = [np.nan] * 3
    coordinates = np.array([[place.get(name, missing) for name in ATOMS] for place in atoms.values()])
    return make_sample(coordinates)


def make_sample(coordinates: np.ndarray) -> Sample:
    n = len(coordinates)
    valid = np.isfinite(coordinates[:, :3]).all(axis=(1, 2))
    stored = to_milli_angstrom(coordinates)
    return Sample("chain", "A" * n, "D" * n, stored, np.zeros(n, np.float32), valid, valid, {}, {}, 0, True)


def test_embeddings_equal_those_of_another_implementation(teacher: MpnnTeacher, chain: Sample, real_data: Path) -> None:
    expected = np.load(real_data / "teachers" / "reference_embeddings.npz", allow_pickle=False)["embeddings"]
    got = teacher.embed(chain)
    assert got.shape == expected.shape == (122, 64)
    # float32 through three layers in another order of operations; embeddings are of size 1
    assert np.abs(got - expected).max() < 1e-5


def test_the_archive_has_the_published_number_of_parameters(real_data: Path) -> None:
    arrays = np.load(real_data / "teachers" / "mpnn_encoder_64d.npz", allow_pickle=False)
    assert len(arrays.files) == 73
    assert sum(arrays[name].size for name in arrays.files) == 256_432


def test_chains_embedded_together_equal_chains_embedded_alone(teacher: MpnnTeacher, chain: Sample) -> None:
    coordinates = chain.angstrom()
    chains = [chain, make_sample(coordinates[:30]), make_sample(coordinates[40:115])]
    for together, one in zip(teacher.embed_many(chains), chains, strict=True):
        # Batched matrix products sum in another order.
        np.testing.assert_allclose(together, teacher.embed(one), atol=1e-5)


def test_residues_without_backbone_are_zero_rows_and_do_not_disturb_others(teacher: MpnnTeacher, chain: Sample) -> None:
    coordinates = chain.angstrom()
    gapped = coordinates.copy()
    gapped[[3, 70], 2] = np.nan
    got = teacher.embed(make_sample(gapped))
    assert not got[[3, 70]].any()
    rest = np.delete(np.arange(len(coordinates)), [3, 70])
    np.testing.assert_allclose(got[rest], teacher.embed(make_sample(coordinates[rest])), atol=1e-5)


def test_a_chain_without_any_backbone_gives_zeros(teacher: MpnnTeacher) -> None:
    assert not teacher.embed(make_sample(np.full((4, 5, 3), np.nan))).any()


def test_embeddings_do_not_depend_on_the_order_of_residues(teacher: MpnnTeacher, chain: Sample) -> None:
    order = np.random.default_rng(0).permutation(len(chain))
    shuffled = teacher.embed(make_sample(chain.angstrom()[order]))
    np.testing.assert_allclose(shuffled, teacher.embed(chain)[order], atol=1e-5)


def test_the_fourth_atom_is_a_virtual_cb_of_fixed_bond_length(chain: Sample) -> None:
    atoms = _five_atoms(chain.angstrom()[:, :3])
    # Both constructions describe the same atom; on bent backbones their ideal geometries differ by up to 0.2 A.
    assert np.linalg.norm(atoms[:, 3] - atoms[:, 4], axis=-1).max() < 0.3
    np.testing.assert_allclose(np.linalg.norm(atoms[:, 3] - atoms[:, 1], axis=-1), 1.522, atol=1e-9)


def test_foreign_or_missing_weights_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_mpnn(tmp_path / "missing.npz")
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(UserError, match="not a numpy archive"):
        load_mpnn(tmp_path / "text.npz")
    np.savez(tmp_path / "foreign.npz", weights=np.zeros(3))
    with pytest.raises(UserError, match="foreign or incomplete"):
        load_mpnn(tmp_path / "foreign.npz")
