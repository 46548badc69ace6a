"""Multiview Contrast (Zhang et al. 2023): a graph network learns to tell which two crops come from the same protein."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.teacher import MultiviewConfig, TeacherConfig
from data_pipeline.schema import Sample
from pretrain.distributed import rows_of
from pretrain.losses.contrast import contrast_losses
from pretrain.losses.terms import LossTerm, Statistic, Terms
from pretrain.teachers.gearnet import GearNet
from pretrain.teachers.residue_graph import GraphBatch, ProteinGraph, pack_graphs, protein_graph


@dataclass(frozen=True)
class Views:
    """Two views of each of B proteins in one batch of 2B graphs: first views, then second views in the same order."""

    graphs: GraphBatch
    temperature: float

    def to(self, device: torch.device | str) -> Self:
        """The same views with every tensor on `device`."""
        return replace(self, graphs=self.graphs.to(device))


def make_views(samples: Sequence[Sample], config: MultiviewConfig, rng: np.random.Generator) -> Views:
    """Two random views of every protein; a function of the samples and the generator's state alone.

    Each view is a run of `crop_residues` consecutive residues or a ball around a random one, at equal odds, without a
    random `edge_mask` of its edges.
    """
    proteins = [protein_graph(sample) for sample in samples]
    proteins = [protein for protein in proteins if len(protein.types)]
    first = [_view(protein, config, rng) for protein in proteins]
    second = [_view(protein, config, rng) for protein in proteins]
    return Views(pack_graphs(first + second), config.temperature)


def _view(protein: ProteinGraph, config: MultiviewConfig, rng: np.random.Generator) -> ProteinGraph:
    if rng.random() < 0.5:
        start = rng.integers(0, max(len(protein.types) - config.crop_residues, 0) + 1)
        nodes = np.arange(start, min(start + config.crop_residues, len(protein.types)))
    else:
        centre = protein.positions[rng.integers(len(protein.types))]
        nodes = np.flatnonzero(np.linalg.norm(protein.positions - centre, axis=1) <= config.ball_radius)
    crop = protein.subgraph(nodes)
    kept = rng.random(crop.edges.shape[1]) >= config.edge_mask
    return replace(crop, edges=crop.edges[:, kept])


class MultiviewModel(nn.Module):
    """A GearNet and the head that only its training needs."""

    def __init__(self, config: TeacherConfig) -> None:
        super().__init__()
        self.gearnet = GearNet(config.gearnet)
        width, features = config.gearnet.width, config.gearnet.width * config.gearnet.layers
        self.projection = nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, views: Views) -> Tensor:
        """Unit vectors [G, width]: the states of all layers, averaged over each graph's nodes and projected."""
        states = torch.cat(self.gearnet(views.graphs), dim=-1)
        graphs = views.graphs
        sums = states.new_zeros(len(graphs.sizes), states.shape[-1]).index_add(0, graphs.graph, states)
        sizes = torch.tensor(graphs.sizes, dtype=states.dtype, device=states.device)
        return F.normalize(self.projection(sums / sizes[:, None]), dim=-1)


def multiview_loss(model: nn.Module, views: Views) -> Terms:
    """InfoNCE between first and second views, both directions, against the views of all ranks' proteins.

    Args:
        model: a MultiviewModel, wrapped or not; its batch statistics are those of one rank.

    Returns:
        term `multiview`, statistic `accuracy_multiview` (top-1 of first against all second views).
    """
    embeddings = model(views).float()
    first, second = embeddings.chunk(2)
    (rows,) = rows_of([len(first)], embeddings.device)
    scale = torch.tensor(1 / views.temperature, device=embeddings.device)
    losses = contrast_losses(first, second, scale, None, rows=rows)
    summed = 0.5 * (losses.sequence_to_structure.sum() + losses.structure_to_sequence.sum())
    term = LossTerm(summed, torch.tensor(float(rows.total), device=embeddings.device))
    accuracy = Statistic(losses.hit.sum(), len(losses.hit))
    return Terms({"multiview": term}, {"multiview": 1.0}, {"accuracy_multiview": accuracy})
