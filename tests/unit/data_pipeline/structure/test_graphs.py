from pathlib import Path

import numpy as np
import pytest

from data_pipeline.structure import distances
from data_pipeline.structure.graphs import GraphRequest, knn_graph, radius_graph, residue_graphs, sequential_edges

MISSING = -32768
"""Mark of a missing atom in the packed coordinates, which are in 0.01 Angstrom."""
DEFAULT = (
    GraphRequest("radius", radius=10.0, min_separation=5),
    GraphRequest("knn", neighbours=10, min_separation=5),
    GraphRequest("radius", radius=8.0),
)


def edges(graph: tuple[np.ndarray, np.ndarray]) -> list[list[int]]:
    indptr, index = graph
    return [index[a:b].tolist() for a, b in zip(indptr[:-1].astype(int), indptr[1:].astype(int), strict=True)]


def brute_force(ca: np.ndarray, request: GraphRequest) -> list[list[int]]:
    """The neighbours by the whole matrix of distances, ties by residue number."""
    squared = sum((ca[:, None, axis] - ca[None, :, axis]) ** 2 for axis in range(3))
    numbers = np.arange(len(ca))
    allowed = np.isfinite(squared) & (np.abs(numbers[:, None] - numbers) >= request.min_separation)
    if request.kind == "radius":
        return [np.flatnonzero(row).tolist() for row in allowed & (squared <= request.radius**2)]
    squared = np.where(allowed, squared, np.inf)
    nearest = squared.argsort(axis=1, kind="stable")
    return [row[: min(request.neighbours, ok.sum())].tolist() for row, ok in zip(nearest, allowed, strict=True)]


def assert_exact(ca: np.ndarray, requests: tuple[GraphRequest, ...] = DEFAULT) -> None:
    for request, graph in zip(requests, residue_graphs(ca, requests), strict=True):
        assert edges(graph) == brute_force(ca, request), request


def globule(num_residues: int, seed: int, missing: float = 0.03) -> np.ndarray:
    """A random walk folded back to the density of a protein, with residues missing."""
    random = np.random.default_rng(seed)
    steps = random.normal(size=(num_residues, 3))
    walk = np.cumsum(3.8 * steps / np.linalg.norm(steps, axis=1, keepdims=True), axis=0)
    edge = (num_residues * 134.0) ** (1 / 3)  # Angstrom; a residue fills about 134 cubic Angstrom
    ca = edge - np.abs(walk % (2 * edge) - edge)
    ca[random.random(num_residues) < missing] = np.nan
    return ca


@pytest.fixture
def ca() -> np.ndarray:
    points = np.random.default_rng(1).normal(scale=8.0, size=(120, 3))
    points[[3, 50]] = np.nan
    return points


@pytest.mark.parametrize("separation", [1, 5])
def test_graphs_equal_those_of_the_distance_matrix(ca: np.ndarray, separation: int) -> None:
    radius = GraphRequest("radius", radius=10.0, min_separation=separation)
    knn = GraphRequest("knn", neighbours=10, min_separation=separation)
    assert edges(radius_graph(ca, 10.0, separation)) == brute_force(ca, radius)
    assert edges(knn_graph(ca, 10, separation)) == brute_force(ca, knn)
    assert_exact(ca, (radius, knn))


@pytest.mark.parametrize("num_residues", [2, 30, 300, 499, 503, 1400])
def test_chains_of_every_length_have_exact_graphs(num_residues: int) -> None:
    assert_exact(globule(num_residues, seed=num_residues))


def test_residues_far_from_all_others_have_their_nearest_neighbours_too() -> None:
    ca = globule(700, seed=4)
    ca[100:160] += np.arange(60)[:, None] * np.array([0.0, 3.8, 0.0]) + 40.0
    ca[690] = 5000.0
    assert_exact(ca)


def test_several_nearest_neighbour_graphs_of_one_chain_may_differ_in_size() -> None:
    requests = tuple(GraphRequest("knn", neighbours=k, min_separation=s) for k, s in ((3, 1), (30, 2), (1, 40)))
    assert_exact(globule(620, seed=5), requests)
    assert_exact(globule(25, seed=5), requests)


@pytest.mark.parametrize("num_residues", [60, 600])
def test_equal_distances_rank_by_residue_number(num_residues: int) -> None:
    """On a lattice most distances occur many times, many of them exactly the radius; some points coincide."""
    lattice = np.random.default_rng(6).integers(0, 6 if num_residues < 100 else 12, size=(num_residues, 3)) * 2.0
    assert len(np.unique(lattice, axis=0)) < num_residues
    assert_exact(lattice)
    assert_exact(lattice, (GraphRequest("radius", radius=6.0), GraphRequest("knn", neighbours=4)))


def test_distances_are_exact_far_from_the_origin() -> None:
    """A pair exactly at the radius is in the graph although the origin is 10 micrometres away."""
    ca = np.arange(40)[:, None] * np.array([2.0, 0.0, 0.0]) + np.array([1e5, -1e5, 1e5])
    assert_exact(ca)
    assert edges(radius_graph(ca, 10.0, 5))[0] == [5]


def test_graphs_do_not_depend_on_how_distances_are_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    ca = globule(400, seed=7)
    whole = [edges(graph) for graph in residue_graphs(ca, DEFAULT)]
    monkeypatch.setattr(distances, "_MAX_DENSE", 0)
    monkeypatch.setattr(distances, "_ROWS", 7)
    monkeypatch.setattr(distances, "_MAX_VALUES", 100)
    assert [edges(graph) for graph in residue_graphs(ca, DEFAULT)] == whole


@pytest.mark.data
def test_real_chains_have_exact_graphs(real_data: Path) -> None:
    packed = np.load(real_data / "structures" / "chains_backbone.npz", allow_pickle=False)
    xyz, offset = packed["xyz"], packed["offset"]
    lengths = np.diff(offset)
    chosen = [*np.linspace(0, len(lengths) - 1, 24).astype(int), *np.argsort(lengths)[[0, -1]]]
    for i in chosen:
        ca = xyz[offset[i] : offset[i + 1], 1]
        assert_exact(np.where(ca == MISSING, np.nan, ca / 100.0))


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
    assert residue_graphs(np.zeros((5, 3)), []) == []


def test_indices_are_stored_in_two_bytes_where_they_fit() -> None:
    indptr, index = radius_graph(np.random.default_rng(0).normal(size=(50, 3)), 1.0)
    assert (indptr.dtype, index.dtype) == (np.uint32, np.uint16)
    line = np.arange(70_000)[:, None] * np.array([3.8, 0.0, 0.0])
    assert radius_graph(line, 4.0)[1].dtype == np.uint32


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "radius"},
        {"kind": "radius", "radius": 0.0},
        {"kind": "knn", "radius": 3.0},
        {"kind": "knn", "neighbours": 3, "min_separation": 0},
        {"kind": "cone", "radius": 1.0},
    ],
)
def test_a_request_that_names_no_graph_is_refused(fields: dict) -> None:
    with pytest.raises(ValueError, match="graph request"):
        GraphRequest(**fields)


@pytest.mark.parametrize("offset", [-2, -1, 0, 1, 2, 9])
def test_sequential_edges_join_residues_at_their_offset(offset: int) -> None:
    for num_residues in (0, 1, 2, 7):
        found = sequential_edges(num_residues, offset)
        expected = [(i, i + offset) for i in range(num_residues) if 0 <= i + offset < num_residues]
        assert found.dtype == np.int64
        assert found.shape == (2, len(expected))
        assert list(zip(*found.tolist(), strict=True)) == expected
