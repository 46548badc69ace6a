"""The blockwise product of sums over neighbours with a relational weight, and its gradients, against dense matrices."""

import numpy as np
import pytest
import torch

from pretrain.teachers import adjacency
from pretrain.teachers.adjacency import Adjacency, RelationalLinear

RELATIONS, INPUTS, WIDTH = 3, 4, 5
SIZES = (4, 0, 7, 1, 6)
SPLITS = np.cumsum([0, *SIZES])


@pytest.fixture(scope="module")
def entries() -> tuple[np.ndarray, np.ndarray]:
    """Random edges inside each of five graphs, one of them empty and one without edges; sorted by row."""
    rng = np.random.default_rng(0)
    parts = []
    for start, size in zip(SPLITS[:-1], SIZES, strict=True):
        if size > 1:
            rows = rng.integers(start * RELATIONS, (start + size) * RELATIONS, 4 * size)
            parts.append(np.stack([rows, rng.integers(start, start + size, 4 * size)]))
    edges = np.concatenate(parts, axis=1)
    row, source = edges[:, np.lexsort((edges[1], edges[0]))]
    return row, source


def dense(row: np.ndarray, source: np.ndarray) -> torch.Tensor:
    matrix = torch.zeros(SPLITS[-1] * RELATIONS, SPLITS[-1], dtype=torch.float64)
    return matrix.index_put((torch.from_numpy(row), torch.from_numpy(source)), torch.tensor(1.0).double(), True)


def linear() -> RelationalLinear:
    torch.manual_seed(0)
    return RelationalLinear(RELATIONS * INPUTS, WIDTH).double()


@pytest.mark.parametrize("block_bytes", [1, 400, 2**20])
@pytest.mark.parametrize("kept_bytes", [0, 2**20])
def test_values_and_gradients_equal_the_dense_product_whatever_the_blocks(
    entries: tuple[np.ndarray, np.ndarray], block_bytes: int, kept_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adjacency, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(adjacency, "KEPT_BYTES", kept_bytes)
    matrix = Adjacency.of(*entries, SPLITS * RELATIONS, SPLITS)
    layer = linear()
    values = torch.randn(SPLITS[-1], INPUTS, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(SPLITS[-1], WIDTH, dtype=torch.float64)
    got = layer(values, matrix)
    got_gradients = torch.autograd.grad((got * weights).sum(), [values, layer.weight, layer.bias])
    sums = (dense(*entries) @ values).view(SPLITS[-1], -1)
    wanted = sums @ layer.weight.T + layer.bias
    wanted_gradients = torch.autograd.grad((wanted * weights).sum(), [values, layer.weight, layer.bias])
    # float64, sums in another order
    torch.testing.assert_close(got, wanted, atol=1e-12, rtol=0)
    for one, other in zip(got_gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


@pytest.mark.parametrize("block_bytes", [1, 2**20])
def test_without_gradients_blocks_may_cut_graphs(
    entries: tuple[np.ndarray, np.ndarray], block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adjacency, "BLOCK_BYTES", block_bytes)
    matrix, layer = Adjacency.of(*entries, SPLITS * RELATIONS, SPLITS), linear()
    values = torch.randn(SPLITS[-1], INPUTS, dtype=torch.float64)
    with torch.inference_mode():
        got = layer(values, matrix)
    wanted = (dense(*entries) @ values).view(SPLITS[-1], -1) @ layer.weight.T + layer.bias
    torch.testing.assert_close(got, wanted, atol=1e-12, rtol=0)


def test_no_graphs_at_all_give_no_rows_and_zero_gradients() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    matrix, layer = Adjacency.of(nothing, nothing, np.array([0]), np.array([0])), linear()
    result = layer(torch.zeros(0, INPUTS, dtype=torch.float64, requires_grad=True), matrix)
    assert result.shape == (0, WIDTH)
    result.sum().backward()
    assert not layer.weight.grad.any()
