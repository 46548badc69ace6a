import numpy as np

from data_pipeline.structure.vectors import components, cross, dot, length, normalized

ROUNDING = 1e-14


def test_vectors_by_component_obey_the_same_arithmetic() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 20, 3))
    np.testing.assert_allclose(cross(a.T, b.T).T, np.cross(a, b), atol=ROUNDING)
    np.testing.assert_allclose(dot(a.T, b.T), (a * b).sum(-1), atol=ROUNDING)
    np.testing.assert_allclose(length(a.T), np.linalg.norm(a, axis=-1), atol=ROUNDING)
    np.testing.assert_allclose(normalized(a.T).T, a / np.linalg.norm(a, axis=-1, keepdims=True), atol=ROUNDING)


def test_a_zero_vector_has_no_direction_and_a_missing_one_stays_missing() -> None:
    unit = normalized(np.array([[0.0, np.nan, 2.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]))
    assert unit[:, 0].tolist() == [0.0, 0.0, 0.0]
    assert np.isnan(unit[:, 1]).all()
    assert unit[:, 2].tolist() == [1.0, 0.0, 0.0]


def test_components_are_atoms_by_coordinate_by_residue() -> None:
    coordinates = np.random.default_rng(1).normal(size=(7, 5, 3)).astype(np.float32)
    np.testing.assert_array_equal(components(coordinates), coordinates.transpose(1, 2, 0))
    assert components(coordinates).dtype == np.float64
    assert components(np.zeros((0, 5, 3))).shape == (5, 3, 0)
