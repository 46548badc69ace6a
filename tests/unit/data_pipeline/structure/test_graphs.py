import numpy as np
import pytest

from data_pipeline.structure.graphs import knn_graph, radius_graph


def edges(graph: tuple[np.ndarray, np.ndarray]) -> list[list[int]]:
    indptr, index = graph
    return [index[a:b].tolist() for a, b in zip(indptr[:-1].astype(int), indptr[1:].astype(int), strict=True)]


@pytest.fixture
def ca() -> np.ndarray:
    points = np.random.default_rng(1).normal(scale=8.0, size=(120, 3))
    points[[3, 50]] = np.nan
    return points


@pytest.mark.parametrize("separation", [1, 5])
def test_the_radius_graph_equals_the_distance_matrix(ca: np.ndarray, separation: int) -> None:
    distance = np.linalg.norm(ca[:, None] - ca[None], axis=-1)
    apart = np.abs(np.subtract.outer(np.arange(120), np.arange(120))) >= separation
    expected = [np.flatnonzero(row).tolist() for row in (distance <= 10.0) & apart]
    assert edges(radius_graph(ca, 10.0, separation)) == expected


@pytest.mark.parametrize("separation", [1, 5])
def test_the_knn_graph_lists_the_nearest_first(ca: np.ndarray, separation: int) -> None:
    distance = np.linalg.norm(ca[:, None] - ca[None], axis=-1)
    apart = np.abs(np.subtract.outer(np.arange(120), np.arange(120))) >= separation
    distance = np.where(apart & np.isfinite(distance), distance, np.inf)
    nearest = np.argsort(distance, axis=1)[:, :10]
    expected = [[] if i in (3, 50) else nearest[i].tolist() for i in range(120)]
    assert edges(knn_graph(ca, 10, separation)) == expected


def test_short_chains_have_as_many_neighbours_as_there_are() -> None:
    ca = np.array([[0.0, 0, 0], [1, 0, 0], [3, 0, 0]])
    assert edges(knn_graph(ca, 10, 1)) == [[1, 2], [0, 2], [1, 0]]
    assert edges(knn_graph(ca, 10, 2)) == [[2], [], [0]]
    assert edges(radius_graph(ca, 2.5, 1)) == [[1], [0, 2], [1]]


@pytest.mark.parametrize("num_residues", [0, 1, 4])
def test_without_positions_there_are_no_edges(num_residues: int) -> None:
    for indptr, index in (radius_graph(np.full((num_residues, 3), np.nan), 10.0), knn_graph(np.zeros((0, 3)), 3)):
        assert len(index) == 0
        assert (indptr == 0).all()
    assert len(radius_graph(np.full((num_residues, 3), np.nan), 10.0)[0]) == num_residues + 1


def test_indices_are_stored_in_two_bytes_where_they_fit() -> None:
    indptr, index = radius_graph(np.random.default_rng(0).normal(size=(50, 3)), 1.0)
    assert (indptr.dtype, index.dtype) == (np.uint32, np.uint16)
    line = np.arange(70_000)[:, None] * np.array([3.8, 0.0, 0.0])
    assert radius_graph(line, 4.0)[1].dtype == np.uint32
