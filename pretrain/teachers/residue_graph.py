"""Relational residue graphs of proteins, and several of them packed as one adjacency for a graph network.

Seven relations (Zhang et al. 2023, GearNet): sequence offsets -2..2 (target minus source, itself included), residues
within 10 A, and the 10 nearest residues; of both spatial relations the pairs less than 5 apart along the sequence are
left out, so that fewer than 10 nearest remain. (The published code also stops at 32 residues within 10 A, an arbitrary
choice of which is left out here: compact chains have about 20.)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from data_pipeline.schema import Graph, Sample
from data_pipeline.structure.graphs import knn_graph, radius_graph
from pretrain.teachers.adjacency import Adjacency
from pretrain.teachers.line_graph import LineGraph, line_graph

MAX_OFFSET = 2
NUM_RELATIONS = 2 * MAX_OFFSET + 3
TYPICAL_DEGREES = (1, 1, 1, 1, 1, 11, 4)
"""Edges that a residue of a folded chain receives in each relation."""
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


@dataclass(frozen=True)
class ProteinGraph:
    """Nodes are residues with a complete backbone of one protein."""

    types: np.ndarray
    """int64 [N]."""
    positions: np.ndarray
    """float64 [N, 3]: CA, Angstrom."""
    edges: np.ndarray
    """int64 [3, E]: source, target, relation."""
    residues: np.ndarray
    """int64 [N]: which residue of the chain each node is, rising."""


@dataclass(frozen=True)
class GraphBatch:
    """Graphs laid side by side: N nodes of G graphs."""

    types: Tensor
    """int64 [N]."""
    adjacency: Adjacency
    """N * NUM_RELATIONS rows, N columns."""
    graph: Tensor
    """int64 [N]: which graph a node belongs to."""
    sizes: tuple[int, ...]
    """Nodes of each graph."""
    line: LineGraph | None = None
    """What edge messages (GearNet-Edge) need."""

    def to(self, device: torch.device | str) -> Self:
        """The same batch with every tensor on `device`."""
        moved = {name: getattr(self, name).to(device) for name in ("types", "adjacency", "graph")}
        return replace(self, **moved, line=self.line and self.line.to(device))


def protein_graph(sample: Sample, nodes: np.ndarray | None = None) -> ProteinGraph:
    """The relational graph of a stored chain, or the part of it that some of its nodes make.

    Stored radius and kNN graphs are used where the shards hold them, else they are computed.

    Args:
        nodes: int64, rising: residues with a complete backbone; default: all of them.
    """
    ca = sample.angstrom()[:, 1]
    nodes = np.flatnonzero(sample.valid) if nodes is None else nodes
    number = np.full(len(sample) + 2 * MAX_OFFSET, -1, dtype=np.int64)
    number[nodes] = np.arange(len(nodes))
    edges = [*_sequence_edges(nodes, number), *_spatial_edges(sample, ca, nodes, number)]
    types = _TYPE_OF_BYTE[np.frombuffer(sample.sequence.encode(), dtype=np.uint8)[nodes]]
    return ProteinGraph(types, ca[nodes], np.concatenate(edges, axis=1), nodes)


def _sequence_edges(nodes: np.ndarray, number: np.ndarray) -> list[np.ndarray]:
    """[3, E] for each offset; `number` is -1 for what is no node, also beyond the chain's ends."""
    edges = []
    for relation, offset in enumerate(range(-MAX_OFFSET, MAX_OFFSET + 1)):
        # A negative place is one from the end, which lies beyond the chain.
        target = number[nodes + offset]
        source = np.flatnonzero(target >= 0)
        edges.append(np.stack([source, target[source], np.full(len(source), relation)]))
    return edges


def _spatial_edges(sample: Sample, ca: np.ndarray, nodes: np.ndarray, number: np.ndarray) -> list[np.ndarray]:
    """[3, E] of relations 5 and 6."""
    edges = []
    for name in STORED_GRAPHS:
        graph = sample.graphs[name] if name in sample.graphs else _computed(name, ca)
        starts = graph.indptr[nodes].astype(np.int64)
        counts = graph.indptr[nodes + 1].astype(np.int64) - starts
        begins = np.cumsum(counts) - counts
        rank = np.arange(counts.sum()) - np.repeat(begins, counts)
        target = np.repeat(np.arange(len(nodes)), counts)
        neighbour = graph.index[np.repeat(starts, counts) + rank].astype(np.int64)
        kept = np.abs(neighbour - nodes[target]) >= MIN_SEPARATION
        kept &= number[neighbour] >= 0
        if name == STORED_GRAPHS[1]:
            kept &= _among_nearest(ca, nodes, target, neighbour, rank)
        source, target = number[neighbour[kept]], target[kept]
        edges.append(np.stack([source, target, np.full(len(source), 2 * MAX_OFFSET + 1 + len(edges))]))
    return edges


def _computed(name: str, ca: np.ndarray) -> Graph:
    if name == STORED_GRAPHS[0]:
        return Graph(*radius_graph(ca, RADIUS, MIN_SEPARATION))
    return Graph(*knn_graph(ca, NUM_NEAREST, MIN_SEPARATION))


def _among_nearest(
    ca: np.ndarray, nodes: np.ndarray, target: np.ndarray, neighbour: np.ndarray, rank: np.ndarray
) -> np.ndarray:
    """bool [E]: whether a far neighbour is one of the NUM_NEAREST of all residues, near ones in the sequence included.

    Args:
        target, neighbour, rank: int64 [E]: row in `nodes`, residue, and its rank among the far residues by distance.
    """
    steps = np.arange(1 - MIN_SEPARATION, MIN_SEPARATION)
    near = nodes[:, None] + steps[steps != 0]
    inside = (near >= 0) & (near < len(ca))
    between = ca[np.where(inside, near, 0)] - ca[nodes, None]
    squared = np.where(inside, np.einsum("nsx,nsx->ns", between, between), np.inf)
    far = ca[neighbour] - ca[nodes[target]]
    # A missing residue's distance is NaN, which is never smaller.
    closer = squared[target] < np.einsum("ex,ex->e", far, far)[:, None]
    return rank + closer.sum(axis=1) < NUM_NEAREST


def pack_graphs(graphs: Sequence[ProteinGraph], with_lines: bool = False) -> GraphBatch:
    """Lay graphs side by side; their edges become one sorted sparse matrix, and with `with_lines` a line graph too."""
    sizes = tuple(len(graph.types) for graph in graphs)
    splits = np.cumsum([0, *sizes])
    edges = [g.edges + np.array([[at], [at], [0]]) for g, at in zip(graphs, splits[:-1], strict=True)]
    source, target, relation = np.concatenate([np.zeros((3, 0), dtype=np.int64), *edges], axis=1)
    row = target * NUM_RELATIONS + relation
    # Source numbers lie below N, so that one key sorts by row, then source.
    key = row * max(int(splits[-1]), 1) + source
    order = np.argsort(key, kind="stable")
    row, source = row[order], source[order]
    types = np.concatenate([np.zeros(0, dtype=np.int64), *(graph.types for graph in graphs)])
    line = None
    if with_lines:
        residues = np.concatenate([np.zeros(0, dtype=np.int64), *(graph.residues for graph in graphs)])
        positions = np.concatenate([np.zeros((0, 3)), *(graph.positions for graph in graphs)])
        line = line_graph(row, source, NUM_RELATIONS, residues, positions, splits)
    return GraphBatch(
        types=torch.from_numpy(types),
        adjacency=Adjacency.of(row, source, splits * NUM_RELATIONS, splits),
        graph=torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)),
        sizes=sizes,
        line=line,
    )
