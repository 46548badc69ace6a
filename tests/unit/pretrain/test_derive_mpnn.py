"""The MPNN teacher's computation in blocks against the plain formulas, with random weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipeline.schema import Sample
from pretrain.teachers import mpnn
from pretrain.teachers.mpnn import MpnnEncoder, MpnnTeacher, load_mpnn
from tests.unit.pretrain.chains import make_chain

LAYER = {
    "W1": (3, 1), "W2": (1, 1), "W3": (1, 1), "W11": (3, 1), "W12": (1, 1), "W13": (1, 1),
    "dense_W_in": (1, 4), "dense_W_out": (4, 1),
}  # fmt: skip
"""Linear maps of a layer by their published names: inputs and outputs in units of the width."""


def write_random_mpnn(path: Path, width: int = 16, layers: int = 3, seed: int = 0) -> Path:
    """An archive of the encoder's form with random weights of sensible size."""
    random = np.random.default_rng(seed)
    shapes = {"embedding_linear": (66, 16), "edge_embedding": (416, width), "W_e": (width, width)}
    norms = ["norm_edges"]
    for number in range(layers):
        shapes |= {f"enc{number}_{name}": (a * width, b * width) for name, (a, b) in LAYER.items()}
        norms += [f"enc{number}_norm{place}" for place in (1, 2, 3)]
    arrays = {}
    for name, shape in shapes.items():
        arrays[f"{name}.w"] = random.normal(size=shape, scale=shape[0] ** -0.5)
        if name != "edge_embedding":
            arrays[f"{name}.b"] = random.normal(size=shape[1], scale=0.1)
    for name in norms:
        arrays[f"{name}.scale"] = random.uniform(0.5, 1.5, size=width)
        arrays[f"{name}.offset"] = random.normal(size=width, scale=0.1)
    np.savez(path, **{name: array.astype(np.float32) for name, array in arrays.items()})
    return path


def plain_embedding(encoder: MpnnEncoder, sample: Sample) -> np.ndarray:
    """float32 [N, D] by the formulas as they are written down: whole tensors and concatenations, no blocks.

    For chains whose residues all have a backbone.
    """
    backbone = sample.angstrom()[:, :3]
    neighbours, present = (torch.from_numpy(x) for x in mpnn._nearest(backbone[:, 1]))
    atoms = torch.from_numpy(mpnn._five_atoms(backbone).astype(np.float32))
    with torch.inference_mode():
        edges = encoder.edges(encoder.norm_features(encoder.features(plain_features(encoder, atoms, neighbours))))
        nodes = edges.new_zeros(len(atoms), edges.shape[-1])
        for layer in encoder.layers:
            message = plain_message(layer.node_message, nodes, edges, neighbours) * present[..., None]
            nodes = layer.norms[0](nodes + message.sum(1) / mpnn.MESSAGE_SCALE)
            nodes = layer.norms[1](nodes + layer.narrow(F.gelu(layer.widen(nodes))))
            edges = layer.norms[2](edges + plain_message(layer.edge_message, nodes, edges, neighbours))
    return nodes.numpy()


def plain_features(encoder: MpnnEncoder, atoms: Tensor, neighbours: Tensor) -> Tensor:
    """[N, K, 416]: positional code and radial functions of 25 distances."""
    own, other = (list(x) for x in zip(*mpnn._PAIRS, strict=True))
    distance = ((atoms[:, None, own] - atoms[:, other][neighbours]).square().sum(-1) + 1e-6).sqrt()
    centres = torch.linspace(*mpnn.RBF_RANGE, mpnn.NUM_RBF)
    radial = torch.exp(-(((distance[..., None] - centres) / 1.25) ** 2)).flatten(2)
    is_self = neighbours == torch.arange(len(atoms))[:, None]
    position = F.one_hot(torch.where(is_self, mpnn.SELF_POSITION, mpnn.OTHER_POSITION), 66).float()
    return torch.cat([encoder.position(position), radial], dim=-1)


def plain_message(maps: torch.nn.ModuleList, nodes: Tensor, edges: Tensor, neighbours: Tensor) -> Tensor:
    """[N, K, D]: three linear maps of (node, edge, neighbour) with GELU between them."""
    own = nodes[:, None].expand(-1, neighbours.shape[1], -1)
    first, second, third = maps
    return third(F.gelu(second(F.gelu(first(torch.cat([own, edges, nodes[neighbours]], dim=-1))))))


@pytest.fixture
def teacher(tmp_path: Path) -> MpnnTeacher:
    return load_mpnn(write_random_mpnn(tmp_path / "mpnn.npz"))


# Fewer residues than neighbours, as many, and several blocks with a rest.
@pytest.mark.parametrize("num_residues", [1, 20, 64, 65, 150])
def test_blocks_give_what_the_plain_formulas_give(teacher: MpnnTeacher, num_residues: int) -> None:
    chain = make_chain(num_residues, num_residues)
    expected = plain_embedding(teacher._encoder, chain)
    assert 0.3 < expected.std() < 3
    # float32 sums in another order.
    np.testing.assert_allclose(teacher.embed(chain), expected, atol=1e-5)


def test_far_apart_residues_have_no_radial_features_and_cost_nothing_in_accuracy(teacher: MpnnTeacher) -> None:
    chain = make_chain(70, 1)
    spread = chain.coordinates.copy()
    spread[35:] += 400_000
    far = Sample(**{**vars(chain), "coordinates": spread, "graphs": {}})
    np.testing.assert_allclose(teacher.embed(far), plain_embedding(teacher._encoder, far), atol=1e-5)


def test_the_other_chains_of_a_batch_change_no_bit(teacher: MpnnTeacher) -> None:
    chains = [make_chain(n, n, missing) for n, missing in ((90, (3, 4)), (30, ()), (4, (0, 1, 2, 3)), (120, ()))]
    for together, chain in zip(teacher.embed_many(chains), chains, strict=True):
        np.testing.assert_array_equal(together, teacher.embed(chain))
        assert (together.any(axis=1) == chain.valid).all()


def test_chains_laid_side_by_side_as_on_a_gpu_give_the_same(teacher: MpnnTeacher) -> None:
    chains = [make_chain(n, n) for n in (90, 30, 70)]
    side_by_side = np.split(teacher._nodes(chains), [90, 120])
    for part, chain in zip(side_by_side, chains, strict=True):
        # Other blocks, and in products of other sizes sums of another order.
        np.testing.assert_allclose(part, teacher.embed(chain), atol=1e-5)


@pytest.mark.parametrize("edges", [64, 1000, 2**20])
def test_the_size_of_a_block_is_a_matter_of_speed(
    teacher: MpnnTeacher, monkeypatch: pytest.MonkeyPatch, edges: int
) -> None:
    chain = make_chain(100, 5)
    expected = teacher.embed(chain)
    monkeypatch.setitem(mpnn.EDGES_AT_ONCE, "cpu", edges)
    np.testing.assert_allclose(teacher.embed(chain), expected, atol=1e-5)
