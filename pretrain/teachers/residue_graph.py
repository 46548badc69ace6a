"""Relational residue graphs of proteins, and several of them packed as one adjacency for a graph network.

Seven relations (Zhang et al. 2023, GearNet): sequence offsets -2..2 (target minus source, itself included), radius 10 A
and 10 nearest neighbours, both of residues at least 5 apart along the sequence.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch_geometric import EdgeIndex

from data_pipeline.schema import Graph, Sample
from data_pipeline.structure.graphs import knn_graph, radius_graph, sequential_edges

MAX_OFFSET = 2
NUM_RELATIONS = 2 * MAX_OFFSET + 3
RADIUS = 10.0
"""Angstrom."""
NUM_NEAREST = 10
MIN_SEPARATION = 5
STORED_GRAPHS = ("radius10", "knn10")
"""Names under which shards may hold the radius and kNN graphs of relations 5 and 6."""
RESIDUE_ORDER = "GASPVTCILNDQKEMHFRYW"
"""Residue types in the order of the published weights; any other residue is the last, 21st type."""
NUM_RESIDUE_TYPES = len(RESIDUE_ORDER) + 1
_TYPE_OF_BYTE = np.full(256, len(RESIDUE_ORDER), dtype=np.int64)
_TYPE_OF_BYTE[np.frombuffer(RESIDUE_ORDER.encode(), dtype=np.uint8)] = np.arange(len(RESIDUE_ORDER))

# torch says once per process that compressed sparse rows are new; their results are tested here.
warnings.filterwarnings("ignore", message="Sparse (CSR tensor support|invariant checks)")


@dataclass(frozen=True)
class ProteinGraph:
    """Nodes are the residues with a CA of one protein."""

    types: np.ndarray
    """int64 [N]."""
    positions: np.ndarray
    """float64 [N, 3]: CA, Angstrom."""
    edges: np.ndarray
    """int64 [3, E]: source, target, relation."""
    residues: np.ndarray
    """int64 [N]: which residue of the chain each node is, rising."""

    def subgraph(self, nodes: np.ndarray) -> Self:
        """The graph that some nodes (int64, rising) and the edges among them make."""
        number = np.full(len(self.types), -1, dtype=np.int64)
        number[nodes] = np.arange(len(nodes))
        source, target = number[self.edges[0]], number[self.edges[1]]
        kept = (source >= 0) & (target >= 0)
        edges = np.stack([source[kept], target[kept], self.edges[2, kept]])
        return replace(
            self, types=self.types[nodes], positions=self.positions[nodes], edges=edges, residues=self.residues[nodes]
        )


@dataclass(frozen=True)
class GraphBatch:
    """Graphs laid side by side: N nodes of G graphs."""

    types: Tensor
    """int64 [N]."""
    adjacency: EdgeIndex
    """[N * NUM_RELATIONS, N]: row `target * NUM_RELATIONS + relation` holds the sources of its edges."""
    graph: Tensor
    """int64 [N]: which graph a node belongs to."""
    sizes: tuple[int, ...]
    """Nodes of each graph."""

    def to(self, device: torch.device | str) -> Self:
        """The same batch with every tensor on `device`."""
        moved = {name: getattr(self, name).to(device) for name in ("types", "adjacency", "graph")}
        return replace(self, **moved)


def protein_graph(sample: Sample) -> ProteinGraph:
    """The relational graph of a stored chain, over residues with a complete backbone.

    Stored radius and kNN graphs are used where the shards hold them, else they are computed.
    """
    ca = sample.angstrom()[:, 1]
    separated = [_stored_or_computed(sample, name, ca) for name in STORED_GRAPHS]
    parts = [_sequence_edges(len(sample))]
    for relation, graph in enumerate(separated, start=2 * MAX_OFFSET + 1):
        source, target = graph.edges()
        far = np.abs(source - target) >= MIN_SEPARATION
        parts.append(np.stack([source[far], target[far], np.full(far.sum(), relation)]))
    types = _TYPE_OF_BYTE[np.frombuffer(sample.sequence.encode(), dtype=np.uint8)]
    every = np.arange(len(sample))
    return ProteinGraph(types, ca, np.concatenate(parts, axis=1), every).subgraph(every[sample.valid])


def _stored_or_computed(sample: Sample, name: str, ca: np.ndarray) -> Graph:
    if name in sample.graphs:
        return sample.graphs[name]
    if name == STORED_GRAPHS[0]:
        return Graph(*radius_graph(ca, RADIUS, MIN_SEPARATION))
    return Graph(*knn_graph(ca, NUM_NEAREST, MIN_SEPARATION))


def _sequence_edges(num_residues: int) -> np.ndarray:
    parts = []
    for relation, offset in enumerate(range(-MAX_OFFSET, MAX_OFFSET + 1)):
        edges = sequential_edges(num_residues, offset)
        parts.append(np.concatenate([edges, np.full((1, edges.shape[1]), relation)]))
    edges = np.concatenate(parts, axis=1)
    return edges[:, edges[0].argsort(kind="stable")]


def pack_graphs(graphs: Sequence[ProteinGraph]) -> GraphBatch:
    """Lay graphs side by side; their edges become one sorted sparse matrix, its transpose included for backward."""
    sizes = tuple(len(graph.types) for graph in graphs)
    starts = np.cumsum([0, *sizes])
    edges = [
        np.stack([g.edges[0] + at, (g.edges[1] + at) * NUM_RELATIONS + g.edges[2]])
        for g, at in zip(graphs, starts[:-1], strict=True)
    ]
    source, row = np.concatenate(edges, axis=1)
    order = np.lexsort((source, row))
    adjacency = EdgeIndex(
        torch.from_numpy(np.stack([row[order], source[order]])),
        sparse_size=(int(starts[-1]) * NUM_RELATIONS, int(starts[-1])),
        sort_order="row",
    )
    adjacency.fill_cache_()
    return GraphBatch(
        types=torch.from_numpy(np.concatenate([graph.types for graph in graphs])),
        adjacency=adjacency,
        graph=torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)),
        sizes=sizes,
    )
