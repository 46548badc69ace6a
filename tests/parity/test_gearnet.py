"""GearNet against a plain float64 loop over residues, relations and neighbours, written from its definition."""

import numpy as np
import pytest
import torch

from configs.teacher import GearNetConfig
from data_pipeline.schema import Sample
from pretrain.teachers.gearnet import GearNet
from pretrain.teachers.residue_graph import pack_graphs, protein_graph
from tests.unit.pretrain.chains import make_chain

ORDER = "GASPVTCILNDQKEMHFRYW"


def neighbours_by_relation(sample: Sample) -> list[list[list[int]]]:
    """[relation][residue] -> the residues that send it messages, from coordinates alone."""
    ca = sample.angstrom()[:, 1]
    n = len(ca)
    distance = np.linalg.norm(ca[:, None] - ca[None], axis=-1)
    relations: list[list[list[int]]] = [[[] for _ in range(n)] for _ in range(7)]
    for i in range(n):
        if not sample.valid[i]:
            continue
        for offset in range(-2, 3):
            if 0 <= i - offset < n:
                relations[offset + 2][i].append(i - offset)
        far = [j for j in range(n) if abs(i - j) >= 5 and sample.valid[j]]
        relations[5][i] = [j for j in far if distance[i, j] <= 10.0]
        relations[6][i] = sorted(far, key=lambda j, i=i: distance[i, j])[:10]
    return [[[j for j in row if sample.valid[j]] for row in relation] for relation in relations]


def plain_forward(network: GearNet, sample: Sample) -> list[np.ndarray]:
    """The states after each layer of the valid residues."""
    state = {name: tensor.double().numpy() for name, tensor in network.state_dict().items()}
    relations = neighbours_by_relation(sample)

    def normalise(x: np.ndarray, name: str) -> np.ndarray:
        spread = np.sqrt(state[f"{name}.running_var"] + 1e-5)
        return (x - state[f"{name}.running_mean"]) / spread * state[f"{name}.weight"] + state[f"{name}.bias"]

    hidden = np.zeros((len(sample), 21))
    for i, letter in enumerate(sample.sequence):
        hidden[i, ORDER.index(letter) if letter in ORDER else 20] = 1
    states = []
    for layer in range(len(network.layers)):
        name = f"layers.{layer}"
        rows = []
        for i in range(len(sample)):
            sums = [sum((hidden[j] for j in relation[i]), np.zeros(hidden.shape[1])) for relation in relations]
            value = state[f"{name}.linear.weight"] @ np.concatenate(sums) + state[f"{name}.linear.bias"]
            value += state[f"{name}.self_loop.weight"] @ hidden[i] + state[f"{name}.self_loop.bias"]
            value = np.maximum(normalise(value, f"{name}.batch_norm"), 0)
            rows.append(value + hidden[i] if value.shape == hidden[i].shape else value)
        hidden = normalise(np.stack(rows), f"batch_norms.{layer}")
        states.append(hidden[sample.valid])
    return states


@pytest.fixture(scope="module")
def network() -> GearNet:
    """Random weights and running statistics, so that every part of the layer matters."""
    torch.manual_seed(0)
    network = GearNet(GearNetConfig(layers=3, width=16)).double().eval()
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 20.0)
    return network


@pytest.mark.parametrize("stored", [True, False])
def test_every_layer_equals_the_plain_loop_on_packed_chains(network: GearNet, stored: bool) -> None:
    samples = [make_chain(n, seed, missing, stored) for n, seed, missing in ((40, 1, ()), (9, 2, ()), (33, 3, (0, 14)))]
    with torch.no_grad():
        states = network(pack_graphs([protein_graph(sample) for sample in samples]))
    expected = [plain_forward(network, sample) for sample in samples]
    for layer, state in enumerate(states):
        plain = np.concatenate([each[layer] for each in expected])
        # float64 on both sides; sums of about ten neighbours in another order
        assert np.abs(state.numpy() - plain).max() < 1e-9
        assert np.abs(plain).max() > 0.1


def test_names_and_shapes_are_those_of_the_published_state_dict() -> None:
    network = GearNet(GearNetConfig())
    shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    assert shapes["layers.0.linear.weight"] == (512, 7 * 21)
    assert shapes["layers.5.linear.weight"] == (512, 7 * 512)
    assert shapes["layers.3.self_loop.weight"] == (512, 512)
    assert shapes["layers.2.batch_norm.weight"] == shapes["batch_norms.4.bias"] == (512,)
