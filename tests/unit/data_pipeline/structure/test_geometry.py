import numpy as np

from data_pipeline.structure.geometry import (
    CA,
    CB,
    C,
    chain_breaks,
    contact_map,
    dihedral,
    dihedrals,
    geometry_outlier_fraction,
    ramachandran_outliers,
    virtual_cb,
)
from tests.unit.data_pipeline.structure.models import backbone, helix, random_fold

DEGREES_OF_ROUNDING = 0.3
"""Coordinates are rounded to 0.001 Angstrom, over bonds of 1.3 Angstrom."""


def test_the_dihedral_has_the_sign_of_the_international_convention() -> None:
    a, b, c = np.array([[0.0, 1, 0], [0, 0, 0], [1, 0, 0]])
    clockwise = np.array([1.0, 0, 1])
    assert np.isclose(np.degrees(dihedral(a, b, c, clockwise)), 90)


def test_torsions_of_a_built_chain_are_those_it_was_built_from() -> None:
    torsions = [(-57.0, -47.0), (-120.0, 130.0), (60.0, 40.0), (-75.0, 150.0)]
    measured = np.degrees(dihedrals(backbone(torsions)))
    np.testing.assert_allclose(measured[1:, 0], [phi for phi, _ in torsions[1:]], atol=DEGREES_OF_ROUNDING)
    np.testing.assert_allclose(measured[:-1, 1], [psi for _, psi in torsions[:-1]], atol=DEGREES_OF_ROUNDING)
    np.testing.assert_allclose(np.abs(measured[:-1, 2]), 180, atol=DEGREES_OF_ROUNDING)
    assert np.isnan(measured[0, 0])
    assert np.isnan(measured[-1, 1:]).all()


def test_torsions_over_a_chain_break_are_not_defined() -> None:
    chain = helix(10)
    chain[5:] += 20.0
    measured = dihedrals(chain)
    assert chain_breaks(chain).nonzero()[0].tolist() == [4]
    assert np.isnan(measured[5, 0])
    assert np.isnan(measured[4, 1:]).all()
    assert np.isfinite(measured[5, 1:]).all()


def test_the_virtual_cb_has_ideal_distance_and_handedness() -> None:
    chain = helix(5)
    cb = virtual_cb(chain[:, 0], chain[:, CA], chain[:, C])
    distance = np.linalg.norm(cb - chain[:, CA], axis=-1)
    np.testing.assert_allclose(distance, 1.53, atol=0.02)  # C-C single bonds in proteins are 1.52 to 1.54 Angstrom
    chirality = np.einsum(
        "ij,ij->i", np.cross(chain[:, 0] - chain[:, CA], chain[:, C] - chain[:, CA]), cb - chain[:, CA]
    )
    assert (chirality > 0).all(), "L-amino acids"


def test_an_ideal_chain_has_no_outliers_and_a_mangled_one_has() -> None:
    chain = random_fold(60)
    assert geometry_outlier_fraction(chain) == 0.0
    stretched = chain.copy()
    stretched[10, C] += 0.5
    assert 1 / 60 <= geometry_outlier_fraction(stretched) <= 3 / 60
    noise = np.random.default_rng(0).normal(scale=0.5, size=chain.shape)
    assert geometry_outlier_fraction(chain + noise) > 0.8
    assert geometry_outlier_fraction(np.full((5, 5, 3), np.nan)) == 1.0


def test_ramachandran_regions_hold_the_common_conformations_only() -> None:
    allowed = np.array([(-57, -47), (-120, 130), (-75, 150), (55, 45), (-160, -170)], dtype=float)
    forbidden = np.array([(60, -90), (0, 0), (120, 120), (-80, -120)], dtype=float)
    assert not ramachandran_outliers(*allowed.T).any()
    assert ramachandran_outliers(*forbidden.T).all()
    assert not ramachandran_outliers(np.array([np.nan]), np.array([60.0])).any()


def test_glycine_may_take_any_torsions() -> None:
    chain = backbone([(-57.0, -47.0), (60.0, -90.0), (-57.0, -47.0)])
    assert geometry_outlier_fraction(chain) > 0
    chain[1, CB] = np.nan
    assert geometry_outlier_fraction(chain) == 0


def test_contacts_are_symmetric_within_the_cutoff_and_skip_missing_residues() -> None:
    chain = random_fold(40)
    contacts = contact_map(chain, 8.0)
    distance = np.linalg.norm(chain[:, None, CB] - chain[None, :, CB], axis=-1)
    np.testing.assert_array_equal(contacts, distance < 8.0)
    without_cb = chain.copy()
    without_cb[:, CB] = np.nan
    # models.backbone places CB by the same formula, rounded to 0.001 Angstrom.
    differs = contact_map(without_cb, 8.0) != contacts
    assert (np.abs(distance[differs] - 8.0) < 0.01).all()
    chain[7] = np.nan
    assert not contact_map(chain)[7].any()


def test_outliers_are_the_same_with_angles_that_are_known_already() -> None:
    chain = backbone([(-57.0, -47.0), (60.0, -90.0)] * 30)
    chain[10:20, CA] += 0.3
    chain[[7, 30]] = np.nan
    chain[40:] += 12.0
    fraction = geometry_outlier_fraction(chain)
    assert 0.4 < fraction < 0.9
    assert geometry_outlier_fraction(chain, dihedrals(chain)) == fraction
    no_angles = np.full((60, 3), np.nan)
    assert geometry_outlier_fraction(chain, no_angles) < fraction


def test_dihedrals_of_many_atoms_keep_the_shape_of_their_arguments() -> None:
    points = np.random.default_rng(2).normal(size=(4, 3, 5, 3))
    angles = dihedral(*points)
    assert angles.shape == (3, 5)
    assert angles[2, 4] == dihedral(*points[:, 2, 4])
