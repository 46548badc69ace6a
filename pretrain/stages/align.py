"""Stages `align` and `reference`: a trunk with masked-language, 3Di and contrastive losses; `align` may select."""

from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from configs.errors import UserError
from configs.losses import SelectionConfig
from configs.train import TrainConfig
from data_pipeline.reader import ShardReader
from pretrain.batch import Batch
from pretrain.checkpoints import Checkpoint
from pretrain.collate import Item, collate
from pretrain.feed import Fed, epoch_planner, open_shards, pool_stream
from pretrain.losses.alignment import alignment_terms
from pretrain.losses.selection import selection_ratio
from pretrain.losses.terms import Terms
from pretrain.model.alignment import AlignmentModel
from pretrain.model.lora import apply_lora
from pretrain.model.shape import trunk_shape
from pretrain.model.weights import load_trunk_weights
from pretrain.sampler import Crop, Position
from pretrain.stages.embeddings import Embeddings, check_embeddings, open_embeddings
from pretrain.stages.reference import Reference, check_reference, open_reference


class AlignStage:
    """Model, data and losses of one alignment or reference run."""

    def __init__(self, config: TrainConfig, resume: Checkpoint | None = None) -> None:
        assert config.trunk is not None
        self._config = config
        self._reader = open_shards(config.data)
        self._embeddings = open_embeddings(config, self._reader)
        widths = None if self._embeddings is None else self._embeddings.widths
        self._reference = open_reference(config, self._reader, widths)
        self._batches = Batches(config, self._reader, self._embeddings, self._reference)
        self._held_out = _held_out(config, self._reader)
        torch.manual_seed(config.seed)
        self.model: nn.Module = AlignmentModel(trunk_shape(config.trunk), config.losses, widths)
        if config.trunk.weights and resume is None:
            load_trunk_weights(self.model.trunk, config.trunk.weights, config.trunk.model)
        if config.trunk.lora is not None:
            apply_lora(self.model.trunk, config.trunk.lora)
        self.data_sha256 = self._reader.manifest_sha256
        self.pools_per_epoch = len(self._batches.plan_of(0))

    def batches(self, position: Position, rank: int, world_size: int) -> Iterator[Fed]:
        return self._batches.stream(position, rank, world_size)

    def to(self, device: torch.device) -> None:
        if self._reference is not None:
            self._reference.to(device)

    def loss(self, model: nn.Module, batch: Batch, step: int) -> Terms:
        batch = batch.to(next(model.parameters()).device)
        outputs = model(batch)
        reference = None if self._reference is None else self._reference.losses(batch)
        selection = self._config.selection
        ratio = selection_ratio(step, selection)
        return alignment_terms(outputs, batch, self._config.losses, selection, reference, ratio=ratio)

    def validate(self, model: nn.Module, rank: int, world_size: int) -> dict[str, float]:
        if self._held_out is None:
            return {}
        device = next(model.parameters()).device
        stream = self._held_out.stream(Position(), rank, world_size)
        num_pools = min(self._config.validation.pools, len(self._held_out.plan_of(0)))
        model.eval()
        rows = []
        with torch.no_grad(), closing(stream):
            for fed in islice(stream, num_pools):
                batch = fed.batch.to(device)
                terms = alignment_terms(model(batch), batch, self._config.losses, SelectionConfig())
                rows.append(terms.logged())
        model.train()
        return {name: sum(row[name] for row in rows) / num_pools for name in rows[0] if name.startswith("loss")}


class Batches:
    """From pools of crops to batches, for one split."""

    def __init__(
        self, config: TrainConfig, reader: ShardReader, embeddings: Embeddings | None, reference: Reference | None
    ) -> None:
        self.plan_of = epoch_planner(reader, config.data, config.seed)
        self._config, self._reader = config, reader
        self._embeddings, self._reference = embeddings, reference
        self._alphabet = trunk_shape(config.trunk).alphabet
        self._clusters = reader.index(config.data.split).cluster

    def stream(self, position: Position, rank: int, world_size: int) -> Iterator[Fed]:
        """One rank's shares from a position on, without end."""
        return pool_stream(self.plan_of, self._batch, position, rank, world_size)

    def _batch(self, crops: list[Crop], epoch: int) -> Batch:
        data, items = self._config.data, []
        for crop in crops:
            sample = self._reader.sample(data.split, crop.sample)
            first, *more = self._embeddings(crop.sample, sample) if self._embeddings else (None,)
            known = self._reference.arrays(crop.sample) if self._reference else None
            items.append(Item(crop, sample, int(self._clusters[crop.sample]), first, tuple(more), known))
        return collate(
            items,
            self._alphabet,
            data.mask_fraction,
            self._config.seed,
            epoch,
            data.mask_unreliable,
            describe=self._reference is not None,
        )


def _held_out(config: TrainConfig, reader: ShardReader) -> Batches | None:
    """The chains of validation, in the crops, masks and pools of their first epoch; None where there is none."""
    if not config.validation.pools:
        return None
    data = config.data.model_copy(update={"split": config.validation.split, "high_quality_only": False})
    held_out = config.model_copy(update={"data": data})
    return Batches(held_out, reader, open_embeddings(held_out, reader), None)


def check_inputs(config: TrainConfig, reader: ShardReader) -> None:
    """Look, without loading, at all that a run needs beside its shards.

    Raises:
        UserError: teacher column or weights, start weights or reference that are not there or do not fit.
    """
    check_embeddings(config, reader)
    if config.validation.pools and config.validation.split not in reader.splits:
        raise UserError(
            f"validation.split {config.validation.split!r} is not in {config.data.shards}; allowed:"
            f" {', '.join(reader.splits)}, or validation.pools=0"
        )
    assert config.trunk is not None
    start = config.trunk.weights
    if start not in (None, "hub") and not Path(start).exists():
        raise UserError(f"trunk.weights {start}: no such file or folder; name one, `hub`, or leave it out")
    check_reference(config, reader)
