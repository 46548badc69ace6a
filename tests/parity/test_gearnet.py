"""GearNet and GearNet-Edge against plain float64 loops over residues, edges and angles, written from the equations.

Ten chains: real ones where SAPLM_DATA names them, made ones otherwise.
"""

import itertools
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.teacher import GearNetConfig
from data_pipeline.schema import Sample, to_milli_angstrom
from pretrain.teachers.gearnet import GearNet
from pretrain.teachers.residue_graph import pack_graphs, protein_graph
from tests.unit.pretrain.chains import make_chain

ORDER = "GASPVTCILNDQKEMHFRYW"
NUM_CHAINS = 10
LONGEST = 24
"""Residues: the loops over pairs of edges take a good second for ten chains of so many."""
Edge = tuple[int, int, int]
"""Source, target, relation."""


def chains() -> list[Sample]:
    """The same each time; missing residues and unknown types among them."""
    folder = os.environ.get("SAPLM_DATA")
    if folder is None:
        return [make_chain(20 + 3 * seed, seed, (0, 9) if seed % 3 == 0 else (), False) for seed in range(NUM_CHAINS)]
    data = np.load(Path(folder) / "structures" / "chains_backbone.npz")
    offset, sequence = data["offset"], str(data["seq"])
    samples = []
    for first, last in list(itertools.pairwise(offset.tolist()))[:: len(offset) // NUM_CHAINS][:NUM_CHAINS]:
        part = slice(first, min(last, first + LONGEST))
        coordinates = np.where(data["xyz"][part] == -32768, np.nan, data["xyz"][part] / 100.0)
        samples.append(make_sample(sequence[part], coordinates))
    return samples


def make_sample(sequence: str, coordinates: np.ndarray) -> Sample:
    n = len(sequence)
    valid = np.isfinite(coordinates[:, :3]).all(axis=(1, 2))
    stored = to_milli_angstrom(coordinates)
    return Sample("chain", sequence, "D" * n, stored, np.zeros(n, np.float32), valid, valid, {}, {}, 0, True)


def edges_of(sample: Sample) -> list[Edge]:
    """The seven relations from coordinates alone: spatial neighbours first, then those too near in the sequence out."""
    ca = sample.angstrom()[:, 1]
    n = len(ca)
    present = [i for i in range(n) if np.isfinite(ca[i]).all()]
    edges = []
    for i in range(n):
        edges += [(i - offset, i, offset + 2) for offset in range(-2, 3) if 0 <= i - offset < n]
        if i not in present:
            continue
        others = sorted((math.dist(ca[i], ca[j]), j) for j in present if j != i)
        edges += [(j, i, 5) for distance, j in others if distance <= 10.0 and abs(i - j) >= 5]
        edges += [(j, i, 6) for _, j in others[:10] if abs(i - j) >= 5]
    return [(j, i, r) for j, i, r in edges if sample.valid[i] and sample.valid[j]]


def angle_bin(before: Edge, after: Edge, ca: np.ndarray) -> int:
    """Of eight, for the angle at j between i - j and k - j, of edges k -> j and j -> i."""
    (k, j, _), (_, i, _) = before, after
    one, other = ca[i] - ca[j], ca[k] - ca[j]
    angle = math.atan2(float(np.linalg.norm(np.cross(one, other))), float(one @ other))
    return min(int(angle / math.pi * 8), 7)


class PlainGearNet:
    """Node and edge states as dictionaries of vectors."""

    def __init__(self, network: GearNet) -> None:
        self.state = {name: tensor.double().numpy() for name, tensor in network.state_dict().items()}
        self.num_layers, self.width = len(network.layers), network.width
        self.has_edges = any(name.startswith("edge_layers") for name in self.state)

    def normalise(self, x: np.ndarray, name: str) -> np.ndarray:
        spread = np.sqrt(self.state[f"{name}.running_var"] + 1e-5)
        return (x - self.state[f"{name}.running_mean"]) / spread * self.state[f"{name}.weight"] + self.state[
            f"{name}.bias"
        ]

    def linear(self, sums: list[np.ndarray], name: str) -> np.ndarray:
        return self.state[f"{name}.weight"] @ np.concatenate(sums) + self.state[f"{name}.bias"]

    def convolved(self, sums: list[np.ndarray], own: np.ndarray, name: str) -> np.ndarray:
        value = self.linear(sums, f"{name}.linear") + self.linear([own], f"{name}.self_loop")
        return np.maximum(self.normalise(value, f"{name}.batch_norm"), 0)

    def __call__(self, sample: Sample) -> list[np.ndarray]:
        """The states after each layer of the valid residues."""
        ca, edges = sample.angstrom()[:, 1], edges_of(sample)
        types = [ORDER.index(letter) if letter in ORDER else 20 for letter in sample.sequence]
        nodes = {i: np.eye(21)[types[i]] for i in np.flatnonzero(sample.valid).tolist()}
        states = {edge: first_edge_state(edge, types, ca) for edge in edges}
        into = {i: [edge for edge in edges if edge[1] == i] for i in nodes}
        results = []
        for layer in range(self.num_layers):
            if self.has_edges:
                states = self.next_edges(layer, states, into, ca)
            updated = {}
            for i, own in nodes.items():
                sums = [np.zeros(len(own)) for _ in range(7)]
                for source, _, relation in into[i]:
                    sums[relation] = sums[relation] + nodes[source]
                value = self.convolved(sums, own, f"layers.{layer}")
                value = value + own if len(value) == len(own) else value
                if self.has_edges:
                    sums = [np.zeros(len(own)) for _ in range(7)]
                    for edge in into[i]:
                        sums[edge[2]] = sums[edge[2]] + states[edge]
                    value = value + np.maximum(self.linear(sums, f"layers.{layer}.linear"), 0)
                updated[i] = self.normalise(value, f"batch_norms.{layer}")
            nodes = updated
            results.append(np.stack([nodes[i] for i in sorted(nodes)]))
        return results

    def next_edges(
        self, layer: int, states: dict[Edge, np.ndarray], into: dict[int, list[Edge]], ca: np.ndarray
    ) -> dict[Edge, np.ndarray]:
        updated = {}
        for edge, own in states.items():
            sums = [np.zeros(len(own)) for _ in range(8)]
            for before in into[edge[0]]:
                angle = angle_bin(before, edge, ca)
                sums[angle] = sums[angle] + states[before]
            updated[edge] = self.convolved(sums, own, f"edge_layers.{layer}")
        return updated


def first_edge_state(edge: Edge, types: list[int], ca: np.ndarray) -> np.ndarray:
    """The 59 features; a residue of no standard type counts as glycine."""
    source, target, relation = edge
    one_hot = [np.eye(20)[types[end] % 20] for end in (source, target)]
    separation = np.eye(11)[min(abs(source - target), 10)]
    return np.concatenate([*one_hot, np.eye(7)[relation], separation, [math.dist(ca[source], ca[target])]])


def random_network(edge_messages: bool) -> GearNet:
    """Random weights and running statistics, so that every part of every layer matters."""
    torch.manual_seed(0)
    network = GearNet(GearNetConfig(layers=3, width=16), edge_messages).double().eval()
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
        elif name.endswith("running_var"):
            # Sums of edges of edges are large: statistics of their size keep states of size 1.
            buffer.uniform_(0.5, 2000.0 if "edge" in name else 20.0)
    return network


@pytest.mark.parametrize("edge_messages", [False, True])
def test_every_layer_of_ten_packed_chains_equals_the_plain_loop(edge_messages: bool) -> None:
    network, samples = random_network(edge_messages), chains()
    assert len(samples) == NUM_CHAINS
    with torch.no_grad():
        states = network(pack_graphs([protein_graph(sample) for sample in samples], edge_messages))
    plain = PlainGearNet(network)
    expected = [plain(sample) for sample in samples]
    for layer, state in enumerate(states):
        wanted = np.concatenate([each[layer] for each in expected])
        assert np.abs(wanted).max() > 0.1
        # float64 on both sides; sums in another order
        assert np.abs(state.numpy() - wanted).max() < 1e-9 * max(1, np.abs(wanted).max())


def test_stored_graphs_give_the_states_of_computed_ones() -> None:
    network = random_network(False)
    stored, computed = (pack_graphs([protein_graph(make_chain(60, 1, (7,), each))]) for each in (True, False))
    with torch.no_grad():
        assert torch.equal(network(stored)[-1], network(computed)[-1])


def test_gearnet_edge_has_the_published_number_of_parameters_names_and_shapes() -> None:
    network = GearNet(GearNetConfig(), edge_messages=True)
    shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    # Published: 20.15 M.
    assert sum(parameter.numel() for parameter in network.parameters()) == 20_145_635
    assert shapes["layers.0.linear.weight"] == (512, 7 * 21)
    assert shapes["layers.5.linear.weight"] == (512, 7 * 512)
    assert shapes["layers.3.self_loop.weight"] == (512, 512)
    assert shapes["edge_layers.0.linear.weight"] == (21, 8 * 59)
    assert shapes["edge_layers.1.self_loop.weight"] == (512, 21)
    assert shapes["edge_layers.5.linear.weight"] == (512, 8 * 512)
    assert shapes["edge_layers.2.batch_norm.weight"] == shapes["batch_norms.4.bias"] == (512,)
    assert not any(name.startswith("edge_layers") for name in GearNet(GearNetConfig(), False).state_dict())
