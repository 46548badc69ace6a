"""GearNet and GearNet-Edge (Zhang et al. 2023): relational message passing over residue graphs, and over their edges.

Parameters are named as in the published state dict: `layers.i.{linear,self_loop,batch_norm}.*`, `batch_norms.i.*`, and
for GearNet-Edge `edge_layers.i.{linear,self_loop,batch_norm}.*`. N residues, E edges, P pairs of residues with an edge.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.teacher import GearNetConfig
from data_pipeline.schema import Sample
from pretrain.teachers.adjacency import Adjacency, RelationalLinear
from pretrain.teachers.batch_norm import PooledBatchNorm
from pretrain.teachers.line_graph import NUM_ANGLES, LineGraph
from pretrain.teachers.residue_graph import (
    NUM_RELATIONS,
    NUM_RESIDUE_TYPES,
    TYPICAL_DEGREES,
    GraphBatch,
    pack_graphs,
    protein_graph,
)

LONGEST_SEPARATION = 10
"""Edges between residues farther apart along the sequence share one feature."""
NUM_EDGE_FEATURES = 2 * (NUM_RESIDUE_TYPES - 1) + NUM_RELATIONS + LONGEST_SEPARATION + 1 + 1
RESIDUES_AT_ONCE = {False: 8192, True: 1024}
"""Embedded at a time, without and with edge messages (about 0.2 MB a residue at width 512); more in a long chain."""


class RelationalConv(nn.Module):
    """relu(BN(sum_r W_r sum_{j in N_r(i)} h_j + W_self h_i + b))."""

    def __init__(self, num_relations: int, num_inputs: int, width: int) -> None:
        super().__init__()
        self.linear = RelationalLinear(num_relations * num_inputs, width)
        self.self_loop = nn.Linear(num_inputs, width)
        self.batch_norm = PooledBatchNorm(width)

    def forward(self, sources: Tensor, own: Tensor, adjacency: Adjacency, place: Tensor | None = None) -> Tensor:
        """Messages of `sources` [columns, inputs] to what has the states `own` [M, inputs]; returns [M, width].

        Args:
            place: int64 [M]: whose sums (rows / relations of them) each of the M hears; default: its own.
        """
        heard = self.linear(sources, adjacency)
        if place is not None:
            heard = heard.index_select(0, place)
        return F.relu(self.batch_norm(heard + self.self_loop(own)))


class GearNet(nn.Module):
    """Residue types in, one hidden state per layer out; with `edge_messages` it is GearNet-Edge."""

    def __init__(self, config: GearNetConfig, edge_messages: bool = False) -> None:
        super().__init__()
        self.width = config.width
        inputs = [NUM_RESIDUE_TYPES, *[config.width] * (config.layers - 1)]
        self.layers = nn.ModuleList([RelationalConv(NUM_RELATIONS, each, config.width) for each in inputs])
        for layer in self.layers:
            _scale_by_degree(layer.linear)
        self.edge_layers = nn.ModuleList()
        if edge_messages:
            # An edge's state is as wide as its source's before the same layer, to which it is added.
            pairs = zip([NUM_EDGE_FEATURES, *inputs], inputs, strict=False)
            self.edge_layers.extend(RelationalConv(NUM_ANGLES, before, after) for before, after in pairs)
        self.batch_norms = nn.ModuleList([PooledBatchNorm(config.width) for _ in inputs])

    @property
    def edge_messages(self) -> bool:
        return len(self.edge_layers) > 0

    def forward(self, batch: GraphBatch) -> list[Tensor]:
        """Hidden states [N, width] after every layer."""
        dtype = self.batch_norms[0].weight.dtype
        hidden = F.one_hot(batch.types, NUM_RESIDUE_TYPES).to(dtype)
        edges = None
        if self.edge_messages:
            assert batch.line is not None, "GearNet-Edge needs graphs packed with lines"
            edges = edge_features(batch.types, batch.line).to(dtype)
        states = []
        for number, (layer, norm) in enumerate(zip(self.layers, self.batch_norms, strict=True)):
            updated = layer(hidden, hidden, batch.adjacency)
            if updated.shape == hidden.shape:
                updated = updated + hidden
            if edges is not None and batch.line is not None:
                edges = self._edge_states(number, edges, batch.line)
                updated = updated + F.relu(layer.linear(edges, batch.line.to_nodes))
            hidden = norm(updated)
            states.append(hidden)
        return states

    def _edge_states(self, number: int, edges: Tensor, line: LineGraph) -> Tensor:
        by_pair = edges.new_zeros(line.num_pairs, edges.shape[1]).index_add(0, line.pair, edges)
        return self.edge_layers[number](by_pair, edges, line.to_pairs, line.pair)


@torch.no_grad()
def _scale_by_degree(linear: RelationalLinear) -> None:
    """Make initial weights smaller where more neighbours are summed, so that no relation drowns the others."""
    scale = torch.tensor(TYPICAL_DEGREES).rsqrt()
    linear.weight.mul_(scale.repeat_interleave(linear.in_features // NUM_RELATIONS))


def edge_features(types: Tensor, line: LineGraph) -> Tensor:
    """float64 [E, 59]: types of source and target, relation, separation (0 .. 10 and beyond), distance (Angstrom).

    Residues of no standard type count as glycine, as in the published code.
    """
    known = torch.where(types < NUM_RESIDUE_TYPES - 1, types, 0)
    parts = [
        F.one_hot(known[line.source], NUM_RESIDUE_TYPES - 1),
        F.one_hot(known[line.target], NUM_RESIDUE_TYPES - 1),
        F.one_hot(line.relation, NUM_RELATIONS),
        F.one_hot(line.separation.clamp(max=LONGEST_SEPARATION), LONGEST_SEPARATION + 1),
        line.distance[:, None],
    ]
    return torch.cat([part.double() for part in parts], dim=1)


class GearNetTeacher:
    """A trained GearNet as a teacher: running statistics, no gradient, states of the last layer or of all."""

    def __init__(
        self, network: GearNet, weights_sha256: str, representation: Literal["last", "concat"] = "last"
    ) -> None:
        self.kind = "gearnet_edge" if network.edge_messages else "gearnet"
        self._network = network.float().eval().requires_grad_(False)
        self._device = torch.device("cpu")
        self._concat = representation == "concat"
        self.width = network.width * (len(network.layers) if self._concat else 1)
        self.weights_sha256 = weights_sha256

    def to(self, device: torch.device | str) -> "GearNetTeacher":
        """The same teacher, computing on `device`."""
        self._device = torch.device(device)
        self._network.to(self._device)
        return self

    def embed(self, sample: Sample) -> np.ndarray:
        return self.embed_many([sample])[0]

    def embed_many(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        most = RESIDUES_AT_ONCE[self._network.edge_messages]
        return [each for part in _parts(samples, most) for each in self._embed_together(part)]

    def _embed_together(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        results = [np.zeros((len(sample), self.width), dtype=np.float32) for sample in samples]
        graphs = [protein_graph(sample) for sample in samples]
        batch = pack_graphs(graphs, self._network.edge_messages).to(self._device)
        if len(batch.types):
            with torch.inference_mode():
                states = self._network(batch)
                hidden = (torch.cat(states, dim=1) if self._concat else states[-1]).cpu().numpy()
            parts = np.split(hidden, np.cumsum(batch.sizes)[:-1])
            for result, graph, part in zip(results, graphs, parts, strict=True):
                result[graph.residues] = part
        return results


def _parts(samples: Sequence[Sample], most: int) -> Iterator[list[Sample]]:
    """Runs of samples of at most so many residues together; a longer one stands alone."""
    part: list[Sample] = []
    residues = 0
    for sample in samples:
        if part and residues + len(sample) > most:
            yield part
            part, residues = [], 0
        part.append(sample)
        residues += len(sample)
    if part:
        yield part
