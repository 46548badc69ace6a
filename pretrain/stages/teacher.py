"""Stage `teacher`: a GearNet or GearNet-Edge trained by Multiview Contrast on the shards' structures."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from configs.errors import UserError
from configs.train import TrainConfig
from pretrain.feed import Fed, chosen_chains, open_shards, pool_stream
from pretrain.losses.terms import Terms
from pretrain.sampler import Crop, Plan, Position
from pretrain.teachers.multiview import MultiviewModel, Views, make_views, multiview_loss


class TeacherStage:
    """Model, data and losses of one teacher run."""

    def __init__(self, config: TrainConfig) -> None:
        if config.teacher.kind == "mpnn":
            raise UserError("stage 'teacher' trains teacher.kind=gearnet or gearnet_edge, not 'mpnn'; set one of them")
        self._config = config
        self._reader = open_shards(config.data)
        self._samples, self._residues = chosen_chains(self._reader, config.data)
        if len(self._samples) < 2 * config.engine.num_workers:
            raise UserError(
                f"stage 'teacher': {len(self._samples)} chains for {config.engine.num_workers} workers;"
                " every worker needs two, so use fewer workers or more chains"
            )
        torch.manual_seed(config.seed)
        self.model: nn.Module = MultiviewModel(config.teacher)
        self.data_sha256 = self._reader.manifest_sha256
        self.pools_per_epoch = len(self._plan(0))

    def batches(self, position: Position, rank: int, world_size: int) -> Iterator[Fed]:
        shards = self._reader, self._config.data.split
        return pool_stream(self._plan, self._views, position, rank, world_size, shards)

    def to(self, device: torch.device) -> None:
        """Nothing stands beside the wrapped model."""

    def loss(self, model: nn.Module, batch: Views, step: int) -> Terms:
        return multiview_loss(model, batch.to(next(model.parameters()).device))

    def validate(self, model: nn.Module, rank: int, world_size: int) -> dict[str, float]:
        """Nothing: `tests.benchmarks.gearnet` and alignment tell what a teacher is worth."""
        return {}

    def _plan(self, epoch: int) -> Plan:
        return plan_proteins(
            self._samples, self._residues, self._config.seed, epoch, self._config.teacher.multiview.proteins_per_batch
        )

    def _views(self, crops: list[Crop], epoch: int) -> Views:
        """Views of whole chains, each drawn by a generator of (seed, epoch, chain): the same on any number of ranks."""
        numbers = [crop.sample for crop in crops]
        samples = [self._reader.sample(self._config.data.split, number) for number in numbers]
        generators = [np.random.default_rng([self._config.seed, epoch, number]) for number in numbers]
        teacher = self._config.teacher
        return make_views(samples, teacher.multiview, generators, teacher.kind == "gearnet_edge")


def plan_proteins(samples: np.ndarray, residues: np.ndarray, seed: int, epoch: int, proteins_per_batch: int) -> Plan:
    """Pools of `proteins_per_batch` whole chains, shuffled; a remainder that fills no pool is left out this epoch."""
    wanted = min(proteins_per_batch, len(samples))
    order = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(len(samples))
    order = order[: len(order) // wanted * wanted]
    return Plan(samples[order], np.zeros_like(order), residues[order], np.arange(len(order) + 1), wanted)
