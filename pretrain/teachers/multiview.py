"""Multiview Contrast (Zhang et al. 2023): a graph network learns to tell which two crops come from the same protein."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.teacher import MultiviewConfig, TeacherConfig
from data_pipeline.schema import MILLI_ANGSTROM, Sample
from pretrain.distributed import rows_of
from pretrain.losses.contrast import contrast_losses
from pretrain.losses.terms import LossTerm, Statistic, Terms
from pretrain.teachers.gearnet import GearNet
from pretrain.teachers.residue_graph import GraphBatch, ProteinGraph, pack_graphs, protein_graph
from pretrain.teachers.whitening import RunningWhitening

TRIES = 20
"""Second views drawn in search of one that overlaps the first; the last is taken in any case."""


@dataclass(frozen=True)
class Views:
    """Two views of each of B proteins in one batch of 2B graphs: first views, then second views in the same order."""

    graphs: GraphBatch
    temperature: float

    def to(self, device: torch.device | str) -> Self:
        """The same views with every tensor on `device`."""
        return replace(self, graphs=self.graphs.to(device))


def make_views(
    samples: Sequence[Sample],
    config: MultiviewConfig,
    generators: Sequence[np.random.Generator],
    with_lines: bool = False,
) -> Views:
    """Two random views of every protein, each drawn from that protein's own generator.

    Proteins without any complete backbone have none.
    """
    seen = [(sample, rng) for sample, rng in zip(samples, generators, strict=True) if sample.valid.any()]
    drawn = [draw_views(sample, config, rng) for sample, rng in seen]
    first, second = [pair[0] for pair in drawn], [pair[1] for pair in drawn]
    return Views(pack_graphs(first + second, with_lines), config.temperature)


def draw_views(sample: Sample, config: MultiviewConfig, rng: np.random.Generator) -> tuple[ProteinGraph, ProteinGraph]:
    """Two random views of a protein with at least one complete backbone.

    Each is a run of `crop_residues` consecutive residues or a ball around a random one, at equal odds, and at
    `mask_odds` without a random `edge_mask` of its edges. Edges are those of the whole chain that join two of the
    view's residues.
    """
    nodes = np.flatnonzero(sample.valid)
    first = _chosen(sample, nodes, config, rng)
    for _ in range(TRIES if config.overlapping else 1):
        second = _chosen(sample, nodes, config, rng)
        if len(np.intersect1d(first, second, assume_unique=True)):
            break
    return _masked(protein_graph(sample, first), config, rng), _masked(protein_graph(sample, second), config, rng)


def _chosen(sample: Sample, nodes: np.ndarray, config: MultiviewConfig, rng: np.random.Generator) -> np.ndarray:
    """Which of some residues a view shows."""
    if rng.random() < 0.5:
        start = rng.integers(0, max(len(nodes) - config.crop_residues, 0) + 1)
        return nodes[start : start + config.crop_residues]
    positions = sample.coordinates[nodes, 1] / MILLI_ANGSTROM
    centre = positions[rng.integers(len(nodes))]
    return nodes[np.linalg.norm(positions - centre, axis=1) <= config.ball_radius]


def _masked(view: ProteinGraph, config: MultiviewConfig, rng: np.random.Generator) -> ProteinGraph:
    if rng.random() >= config.mask_odds:
        return view
    kept = rng.random(view.edges.shape[1]) >= config.edge_mask
    return replace(view, edges=view.edges[:, kept])


class MultiviewModel(nn.Module):
    """A GearNet and the head that only its training needs."""

    def __init__(self, config: TeacherConfig) -> None:
        super().__init__()
        self.gearnet = GearNet(config.gearnet, config.kind == "gearnet_edge")
        features = config.gearnet.width * config.gearnet.layers
        self.whitening = RunningWhitening(features)
        self.projection = nn.Linear(features, features)
        # Keeps all angles, which after whitening are good ones to begin with.
        nn.init.orthogonal_(self.projection.weight)

    def forward(self, views: Views) -> Tensor:
        """Unit vectors [G, layers * width]: states of all layers, averaged over each graph's nodes and projected."""
        states = torch.cat(self.gearnet(views.graphs), dim=-1)
        graphs = views.graphs
        sums = states.new_zeros(len(graphs.sizes), states.shape[-1]).index_add(0, graphs.graph, states)
        sizes = torch.tensor(graphs.sizes, dtype=states.dtype, device=states.device)
        return F.normalize(self.projection(self.whitening(sums / sizes[:, None])), dim=-1)


def multiview_loss(model: nn.Module, views: Views) -> Terms:
    """InfoNCE between first and second views, both directions, against the views of all ranks' proteins.

    Args:
        model: a MultiviewModel, wrapped or not.

    Returns:
        term `multiview`, statistic `accuracy_contrast` (top-1 of first against all second views).
    """
    embeddings = model(views).float()
    first, second = embeddings.chunk(2)
    (rows,) = rows_of([len(first)], embeddings.device)
    scale = torch.tensor(1 / views.temperature, device=embeddings.device)
    losses = contrast_losses(first, second, scale, None, rows=rows)
    summed = 0.5 * (losses.sequence_to_structure.sum() + losses.structure_to_sequence.sum())
    term = LossTerm(summed, torch.tensor(float(rows.total), device=embeddings.device))
    accuracy = Statistic(losses.hit.sum(), len(losses.hit))
    return Terms({"multiview": term}, {"multiview": 1.0}, {"accuracy_contrast": accuracy})
