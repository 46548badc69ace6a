import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.structure.geometry import dihedral
from data_pipeline.structure.place import place_atom

A, B, C = np.array([[0.3, 1.2, -0.4], [1.1, 0.1, 0.2], [2.4, 0.6, -0.3]])
ROUNDING = 1e-9
"""Far above what a dozen float64 operations on numbers near one can lose."""


@given(st.floats(0.5, 3.0), st.floats(0.3, 2.8), st.floats(-3.1, 3.1))
def test_the_placed_atom_has_the_asked_length_angle_and_dihedral(length: float, angle: float, torsion: float) -> None:
    d = place_atom(A, B, C, length, angle, torsion)
    bond, back = d - C, B - C
    assert abs(np.linalg.norm(bond) - length) < ROUNDING
    assert abs(np.dot(bond, back) / (length * np.linalg.norm(back)) - np.cos(angle)) < ROUNDING
    assert abs(dihedral(A, B, C, d) - torsion) < ROUNDING


def test_a_dihedral_of_zero_lies_on_the_side_of_the_first_atom() -> None:
    square = place_atom(np.array([0.0, 1, 0]), np.zeros(3), np.array([1.0, 0, 0]), 1.0, np.pi / 2, 0.0)
    np.testing.assert_allclose(square, [1, 1, 0], atol=ROUNDING)


def test_many_atoms_are_placed_at_once_as_one_by_one() -> None:
    random = np.random.default_rng(0)
    a, b, c = random.normal(size=(3, 7, 3))
    torsions = random.uniform(-3, 3, 7)
    together = place_atom(a, b, c, 1.5, 1.9, torsions)
    alone = [place_atom(a[i], b[i], c[i], 1.5, 1.9, torsions[i]) for i in range(7)]
    np.testing.assert_allclose(together, alone, atol=ROUNDING)
