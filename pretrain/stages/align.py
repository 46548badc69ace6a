"""Stages `align` and `reference`: a trunk with masked-language, 3Di and contrastive losses; `align` may select."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from configs.errors import UserError
from configs.train import TrainConfig
from data_pipeline.derived import DerivedReader
from data_pipeline.reader import ShardReader
from data_pipeline.schema import Sample
from pretrain.batch import Batch
from pretrain.checkpoints import Checkpoint, open_checkpoint
from pretrain.collate import Item, collate
from pretrain.feed import Fed, chosen_chains, epoch_planner, open_shards, pool_stream
from pretrain.losses.alignment import alignment_terms
from pretrain.losses.terms import Terms
from pretrain.model.alignment import AlignmentModel
from pretrain.model.load import load_model
from pretrain.model.shape import trunk_shape
from pretrain.model.weights import load_trunk_weights
from pretrain.sampler import Crop, Position

TeacherRows = Callable[[int, Sample], np.ndarray]
"""(number of the chain, its sample) -> [N, E] frozen embeddings."""


class AlignStage:
    """Model, data and losses of one alignment or reference run."""

    def __init__(self, config: TrainConfig, resume: Checkpoint | None = None) -> None:
        assert config.trunk is not None
        self._config = config
        self._shape = trunk_shape(config.trunk)
        self._reader = open_shards(config.data)
        self._plan_of = epoch_planner(self._reader, config.data, config.seed)
        self._teacher_rows = teacher_rows(config, self._reader)
        self._reference = open_reference(config)
        width = self._teacher_width()
        torch.manual_seed(config.seed)
        self.model: nn.Module = AlignmentModel(self._shape, config.losses, width)
        if config.trunk.weights and resume is None:
            load_trunk_weights(self.model.trunk, config.trunk.weights, config.trunk.model)
        self.data_sha256 = self._reader.manifest_sha256
        self.pools_per_epoch = len(self._plan_of(0))

    def batches(self, position: Position, rank: int, world_size: int) -> Iterator[Fed]:
        return pool_stream(self._plan_of, self._batch, position, rank, world_size)

    def to(self, device: torch.device) -> None:
        if self._reference is not None:
            self._reference.to(device)

    def loss(self, model: nn.Module, batch: Batch, step: int) -> Terms:
        batch = batch.to(next(model.parameters()).device)
        outputs = model(batch)
        reference = None
        if self._reference is not None:
            with torch.no_grad():
                reference = self._reference(batch)
        return alignment_terms(outputs, batch, self._config.losses, self._config.selection, reference)

    def _batch(self, crops: list[Crop], epoch: int) -> Batch:
        split, clusters = self._config.data.split, self._reader.index(self._config.data.split).cluster
        items = []
        for crop in crops:
            sample = self._reader.sample(split, crop.sample)
            rows = self._teacher_rows(crop.sample, sample) if self._teacher_rows else None
            items.append(Item(crop, sample, int(clusters[crop.sample]), rows))
        data = self._config.data
        alphabet, seed = self._shape.alphabet, self._config.seed
        return collate(items, alphabet, data.mask_fraction, seed, epoch, data.mask_unreliable)

    def _teacher_width(self) -> int | None:
        """Features per residue, from the first chain: what is really there, whatever a config says."""
        if self._teacher_rows is None:
            return None
        split = self._config.data.split
        number = int(chosen_chains(self._reader, self._config.data)[0][0])
        return self._teacher_rows(number, self._reader.sample(split, number)).shape[1]


def teacher_rows(config: TrainConfig, reader: ShardReader) -> TeacherRows | None:
    """Where the teacher's embeddings come from: the derived column, or the teacher itself; None without contrast."""
    if not config.losses.contrast:
        return None
    if config.teacher.column is not None:
        column = DerivedReader(reader, config.teacher.column, verify=config.data.verify)
        return partial(_column_rows, column, config.data.split)
    from pretrain.teachers.load import load_teacher

    teacher = load_teacher(config.teacher)
    return lambda _, sample: teacher.embed(sample)


def check_inputs(config: TrainConfig, reader: ShardReader) -> None:
    """Look, without loading, at all that a run needs beside its shards.

    Raises:
        UserError: teacher column or weights, start weights or reference that are not there or do not fit.
    """
    if config.losses.contrast and config.teacher.column is not None:
        DerivedReader(reader, config.teacher.column, verify=config.data.verify).close()
    elif config.losses.contrast and (config.teacher.weights is None or not config.teacher.weights.exists()):
        raise UserError(
            f"teacher.weights {config.teacher.weights}: not there; train stage `teacher` first, name teacher.column,"
            " or set losses.contrast=0"
        )
    assert config.trunk is not None
    start = config.trunk.weights
    if start not in (None, "hub") and not Path(start).exists():
        raise UserError(f"trunk.weights {start}: no such file or folder; name one, `hub`, or leave it out")
    find_reference(config, verify=False)


def find_reference(config: TrainConfig, verify: bool = True) -> Checkpoint | None:
    """The checkpoint of the residue loss selector's frozen model; None without selection.

    Raises:
        UserError: no such checkpoint, or one of a run that cannot serve (other token alphabet, other losses).
    """
    if config.selection.mode == "off":
        return None
    assert config.selection.reference is not None
    checkpoint = open_checkpoint(config.selection.reference, verify)
    theirs, ours = checkpoint.config, trunk_shape(config.trunk).family
    where = f"selection.reference {checkpoint.path}"
    if theirs.stage == "teacher" or theirs.trunk is None:
        raise UserError(f"{where}: is of stage {theirs.stage!r}; name a run of stage `reference`")
    if trunk_shape(theirs.trunk).family != ours:
        raise UserError(f"{where}: has another token alphabet; its trunk's family must be {ours}")
    for loss in ("structure", "contrast"):
        if getattr(config.losses, loss) and not getattr(theirs.losses, loss):
            raise UserError(f"{where}: was trained without losses.{loss}; train a reference with it")
    return checkpoint


def open_reference(config: TrainConfig) -> nn.Module | None:
    """The frozen reference model, in evaluation mode and without gradients; None without selection."""
    checkpoint = find_reference(config)
    return None if checkpoint is None else load_model(checkpoint).requires_grad_(False)


def _column_rows(column: DerivedReader, split: str, number: int, _: Sample) -> np.ndarray:
    return column.embedding(split, number)
