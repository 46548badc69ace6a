import numpy as np
import pytest
from scipy.spatial.distance import cdist

from data_pipeline.structure.distances import DistanceBlocks

REACH = 9.0


def cloud(num_points: int, offset: float = 0.0) -> np.ndarray:
    """float64 [3, P] of about the density of residues, longest along y."""
    edge = (num_points * 134.0 / 3) ** (1 / 3)  # Angstrom; a residue fills about 134 cubic Angstrom
    return np.random.default_rng(num_points).random((3, num_points)) * edge * np.array([[1.0], [3.0], [1.0]]) + offset


@pytest.mark.parametrize("num_points", [1, 2, 150, 500, 501, 1300])
@pytest.mark.parametrize("offset", [0.0, 1e5])
@pytest.mark.parametrize("is_exact", [True, False])
def test_blocks_hold_every_pair_within_reach_to_the_stated_error(
    num_points: int, offset: float, is_exact: bool
) -> None:
    points = cloud(num_points, offset)
    blocks = DistanceBlocks(points, REACH, is_exact)
    assert blocks.error < (1e-9 if is_exact else 0.1)  # square Angstrom
    order = np.arange(num_points) if blocks.order is None else blocks.order
    exact = cdist(points.T, points.T, "sqeuclidean")[np.ix_(order, order)]
    found = np.full_like(exact, np.nan)
    for start, stop, first, squared in blocks:
        assert squared.dtype == (np.float64 if is_exact else np.float32)
        assert np.isnan(found[start:stop]).all(), "no point is the row of two blocks"
        found[start:stop, first : first + squared.shape[1]] = squared
    missing = np.isnan(found)
    assert exact[missing].min(initial=np.inf) > REACH**2
    assert missing.any() == (num_points > 500), "only long chains leave pairs out"
    assert np.abs(found - exact)[~missing].max() <= blocks.error
    some = np.arange(0, num_points, 7)
    assert np.abs(blocks.to_all(some) - exact[some]).max() <= blocks.error


@pytest.mark.parametrize("num_points", [1, 60, 900])
def test_near_pairs_are_those_of_the_distance_matrix(num_points: int) -> None:
    points = cloud(num_points)
    blocks = DistanceBlocks(points, REACH)
    keys, squared, counts = blocks.near()
    assert (np.diff(keys) > 0).all()
    np.testing.assert_array_equal(np.bincount(keys // num_points, minlength=num_points), counts)
    given = blocks.given(keys)
    exact = cdist(points.T, points.T, "sqeuclidean")
    np.testing.assert_array_equal(given, np.flatnonzero(exact <= REACH**2))
    order = np.arange(num_points) if blocks.order is None else blocks.order
    of_keys = exact[order[keys // num_points], order[keys % num_points]]
    assert np.abs(squared - of_keys).max() <= blocks.error


def test_points_that_coincide_are_all_in_reach() -> None:
    keys, squared, counts = DistanceBlocks(np.ones((3, 600)), REACH).near()
    assert len(keys) == 600**2
    assert (counts == 600).all()
    assert (squared == 0).all()


def test_chains_of_great_extent_are_measured_in_double_precision_anyway() -> None:
    points = cloud(100)
    points[0, 7] = 1e4
    blocks = DistanceBlocks(points, REACH, is_exact=False)
    assert next(iter(blocks)).squared.dtype == np.float64
    assert blocks.error < 1e-4
