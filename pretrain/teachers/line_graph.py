"""Edges as nodes: which edge hears which, by the angle between them (Zhang et al. 2023, GearNet-Edge).

An edge (j -> i) hears every edge (k -> j) that ends where it begins, in the relation of its angle i-j-k: eight bins of
pi / 8. What it hears does not depend on its own relation, and several relations may join the same two residues, so that
sums are made once for each *pair* (j, i) and over pairs (j, k), a third of the work of edge by edge.
"""

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from pretrain.teachers.adjacency import Adjacency

NUM_ANGLES = 8


@dataclass(frozen=True)
class LineGraph:
    """E edges, in order of (target, relation, source), and the P pairs of residues that they join."""

    source: Tensor
    target: Tensor
    relation: Tensor
    """int64 [E] each."""
    separation: Tensor
    """int64 [E]: residues between the two ends along the sequence."""
    distance: Tensor
    """float64 [E]: between the two CA, Angstrom."""
    pair: Tensor
    """int64 [E]: number of the pair that an edge joins, in order of (target, source)."""
    num_pairs: int
    to_pairs: Adjacency
    """P rows * NUM_ANGLES, P columns."""
    to_nodes: Adjacency
    """N rows * relations, E columns: every edge stands once."""

    def to(self, device: torch.device | str) -> Self:
        """The same graph with every tensor on `device`."""
        names = ("source", "target", "relation", "separation", "distance", "pair", "to_pairs", "to_nodes")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def line_graph(
    row: np.ndarray,
    source: np.ndarray,
    num_relations: int,
    residues: np.ndarray,
    positions: np.ndarray,
    splits: np.ndarray,
) -> LineGraph:
    """The line graph of packed graphs.

    Args:
        row: int64 [E], `target * num_relations + relation`, rising.
        source: int64 [E].
        residues: int64 [N]: which residue of its chain each node is.
        positions: float64 [N, 3]: CA, Angstrom.
        splits: int64 [G + 1]: first node of every graph, and the end.
    """
    num_nodes = len(residues)
    target, relation = np.divmod(row, num_relations)
    keys, pair = np.unique(target * max(num_nodes, 1) + source, return_inverse=True)
    pair_target, pair_source = np.divmod(keys, max(num_nodes, 1))
    heard, hears, angle = _angles(pair_source, pair_target, positions)
    line_row = hears * NUM_ANGLES + angle
    order = np.argsort(line_row * max(len(keys), 1) + heard, kind="stable")
    pair_splits = np.searchsorted(pair_target, splits)
    edge_splits = np.searchsorted(target, splits)
    return LineGraph(
        *(torch.from_numpy(each) for each in (source, target, relation, np.abs(residues[source] - residues[target]))),
        distance=torch.from_numpy(np.linalg.norm(positions[source] - positions[target], axis=1)),
        pair=torch.from_numpy(pair),
        num_pairs=len(keys),
        to_pairs=Adjacency.of(line_row[order], heard[order], pair_splits * NUM_ANGLES, pair_splits),
        to_nodes=Adjacency.of(row, np.arange(len(row)), splits * num_relations, edge_splits),
    )


def _angles(source: np.ndarray, target: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, ...]:
    """For pairs sorted by target: (heard pair, hearing pair, bin of their angle), int64 [T] each.

    The angle at j of (k -> j) and (j -> i) lies between i - j and k - j; it is 0 where one of the two joins a residue
    with itself.
    """
    degree = np.bincount(target, minlength=len(positions))
    first = np.cumsum(degree) - degree
    counts = degree[source]
    hears = np.repeat(np.arange(len(source)), counts)
    rank = np.arange(len(hears)) - np.repeat(np.cumsum(counts) - counts, counts)
    heard = np.repeat(first[source], counts) + rank
    direction = positions[target] - positions[source]
    length = np.linalg.norm(direction, axis=1)
    direction /= np.where(length > 0, length, 1)[:, None]
    cosine = -np.einsum("tx,tx->t", direction[hears], direction[heard])
    cosine[(length[hears] == 0) | (length[heard] == 0)] = 1
    angle = np.arccos(np.clip(cosine, -1, 1)) * (NUM_ANGLES / math.pi)
    # An angle of pi itself belongs to the last bin.
    return heard, hears, np.minimum(angle.astype(np.int64), NUM_ANGLES - 1)
