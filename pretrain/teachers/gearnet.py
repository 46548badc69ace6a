"""GearNet (Zhang et al. 2023): relational message passing over residue graphs, on torch-geometric's sparse adjacency.

Parameters are named as in the published state dict: `layers.i.{linear,self_loop,batch_norm}.*`, `batch_norms.i.*`.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.teacher import GearNetConfig
from data_pipeline.schema import Sample
from pretrain.teachers.residue_graph import (
    NUM_RELATIONS,
    NUM_RESIDUE_TYPES,
    GraphBatch,
    pack_graphs,
    protein_graph,
)


class RelationalConv(nn.Module):
    """relu(BN(W_self h_i + sum_r W_r sum_{j in N_r(i)} h_j)): one linear map of the sums of all relations."""

    def __init__(self, num_inputs: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(NUM_RELATIONS * num_inputs, width)
        self.self_loop = nn.Linear(num_inputs, width)
        self.batch_norm = nn.BatchNorm1d(width)

    def forward(self, hidden: Tensor, batch: GraphBatch) -> Tensor:
        """[N, inputs] -> [N, width] along the batch's edges."""
        # The batch comes whole: DeepSpeed's hooks turn an EdgeIndex among the arguments into a plain tensor.
        # Sparse products exist in float32 and float64 only.
        wide = hidden if hidden.dtype == torch.float64 else hidden.float()
        ones = wide.new_ones(batch.adjacency.shape[1])
        sums = batch.adjacency.matmul(wide, ones).to(hidden.dtype)
        sums = sums.view(len(hidden), -1)
        return F.relu(self.batch_norm(self.linear(sums) + self.self_loop(hidden)))


class GearNet(nn.Module):
    """Residue types in, one hidden state per layer out."""

    def __init__(self, config: GearNetConfig) -> None:
        super().__init__()
        self.width = config.width
        inputs = [NUM_RESIDUE_TYPES, *[config.width] * (config.layers - 1)]
        self.layers = nn.ModuleList([RelationalConv(num_inputs, config.width) for num_inputs in inputs])
        self.batch_norms = nn.ModuleList([nn.BatchNorm1d(config.width) for _ in inputs])

    def forward(self, batch: GraphBatch) -> list[Tensor]:
        """Hidden states [N, width] after every layer; the last is the residue representation."""
        hidden = F.one_hot(batch.types, NUM_RESIDUE_TYPES).to(self.layers[0].linear.weight.dtype)
        states = []
        for layer, norm in zip(self.layers, self.batch_norms, strict=True):
            updated = layer(hidden, batch)
            if updated.shape == hidden.shape:
                updated = updated + hidden
            hidden = norm(updated)
            states.append(hidden)
        return states


class GearNetTeacher:
    """A trained GearNet as a teacher: running statistics, no gradient, last layer's states."""

    kind = "gearnet"

    def __init__(self, network: GearNet, weights_sha256: str) -> None:
        self._network = network.float().eval().requires_grad_(False)
        self._device = torch.device("cpu")
        self.width = network.width
        self.weights_sha256 = weights_sha256

    def embed(self, sample: Sample) -> np.ndarray:
        return self.embed_many([sample])[0]

    def to(self, device: torch.device | str) -> "GearNetTeacher":
        """The same teacher, computing on `device`."""
        self._device = torch.device(device)
        self._network.to(self._device)
        return self

    def embed_many(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        results = [np.zeros((len(sample), self.width), dtype=np.float32) for sample in samples]
        graphs = [protein_graph(sample) for sample in samples]
        # Moved before inference mode, under which an EdgeIndex would become a plain tensor.
        batch = pack_graphs(graphs).to(self._device)
        if len(batch.types):
            with torch.inference_mode():
                hidden = self._network(batch)[-1].cpu().numpy()
            parts = np.split(hidden, np.cumsum(batch.sizes)[:-1])
            for result, graph, part in zip(results, graphs, parts, strict=True):
                result[graph.residues] = part
        return results
