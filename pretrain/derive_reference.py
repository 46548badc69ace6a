"""The derived column of the reference model: an approximation of what it loses in training.

In training the reference sees each batch's own masks, and its contrast the pool's residues. The column holds, of each
residue, the 3Di loss averaged over K fixed masks and the two projected embeddings (sequence side: averaged over the
same masks, then divided by its length); training computes the contrast over the actual pool from these.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from configs.errors import UserError
from configs.train import TrainConfig
from data_pipeline.reader import ShardReader
from data_pipeline.schema import Sample
from pretrain.batch import Batch
from pretrain.checkpoints import open_checkpoint
from pretrain.collate import REFERENCE_SIDES, STRUCTURE_LOSS, Item, collate
from pretrain.derive_forms import Errors
from pretrain.derive_source import Made
from pretrain.losses.residues import structure_losses
from pretrain.model.alignment import AlignmentModel
from pretrain.sampler import Crop
from pretrain.stages.embeddings import Embeddings, open_embeddings
from pretrain.stages.reference import COLUMN_KIND, fitting_checkpoint, frozen_model, made_for

APPROXIMATION = (
    "3Di loss averaged over {masks} fixed masks, contrast from cached projections (sequence side averaged over the"
    " masks); the exact reference sees the masks of each batch"
)


@dataclass(frozen=True)
class ReferenceSource:
    """Losses and projections of the frozen reference model, in float32."""

    config: TrainConfig
    weights_sha256: str

    @property
    def what(self) -> str:
        return "reference losses"

    def open(self, column: Path, reader: ShardReader) -> "ReferenceMaker":
        checkpoint = open_checkpoint(self.config.selection.reference)
        if checkpoint.weights_sha256 != self.weights_sha256:
            raise UserError(
                f"selection.reference {checkpoint.path}: not the same here as where derive was started; name a"
                " checkpoint that all machines share"
            )
        model = frozen_model(checkpoint, self.config.losses)
        return ReferenceMaker(self.config, model.to("cuda" if torch.cuda.is_available() else "cpu"), reader)


def reference_source(config: TrainConfig, reader: ShardReader) -> tuple[ReferenceSource, dict[str, Any]]:
    """The reference model of a config, and what a column of it states.

    Raises:
        UserError: no reference model, or one that does not fit the config; a teacher that is not there.
    """
    checkpoint = fitting_checkpoint(config)
    facts = {
        "kind": COLUMN_KIND,
        "approximation": APPROXIMATION.format(masks=config.derive.masks),
        "reference_sha256": checkpoint.weights_sha256,
        **made_for(config, reader),
        "logit_scale": logit_scales(frozen_model(checkpoint, config.losses)),
        "masks": config.derive.masks,
        "mask_seed": config.seed,
        "max_residues": config.data.max_residues,
        "form": "float16",
        "batch_residues": config.derive.batch_residues,
    }
    return ReferenceSource(config, checkpoint.weights_sha256), facts


def logit_scales(model: AlignmentModel) -> list[float]:
    """The exponentiated, bounded scale of every teacher's contrast."""
    pairs = (model, *model.more_projections) if model.losses.contrast else ()
    return [float(pair.temperature()) for pair in pairs]


class ReferenceMaker:
    """Runs the reference model over the fixed masks of chains."""

    def __init__(self, config: TrainConfig, model: AlignmentModel, reader: ShardReader) -> None:
        self._config, self._model, self._reader = config, model, reader
        self._alphabet = model.trunk.shape.alphabet
        self._device = next(model.parameters()).device
        self._embeddings: dict[str, Embeddings | None] = {}

    def __call__(self, split: str, numbers: Sequence[int], samples: Sequence[Sample]) -> list[Made]:
        items = [
            Item(Crop(number, start, length), sample, 0, first, tuple(more))
            for number, sample, (first, *more) in zip(
                numbers, samples, self._teachers(split, numbers, samples), strict=True
            )
            for start, length in windows_of(len(sample), self._config.data.max_residues)
        ]
        sums: dict[int, Sums] = {number: Sums(len(sample)) for number, sample in zip(numbers, samples, strict=True)}
        for mask in range(self._config.derive.masks):
            batch = collate(items, self._alphabet, self._config.data.mask_fraction, self._config.seed, mask, False)
            computed = self._forward(batch)
            ends = np.cumsum([item.crop.length for item in items])
            for item, end in zip(items, ends.tolist(), strict=True):
                rows = slice(end - item.crop.length, end)
                sums[item.crop.sample].add(item.crop.start, {name: values[rows] for name, values in computed.items()})
        return [encode(sums[number].means()) for number in numbers]

    def _teachers(
        self, split: str, numbers: Sequence[int], samples: Sequence[Sample]
    ) -> list[tuple[np.ndarray | None, ...]]:
        if split not in self._embeddings:
            data = self._config.data.model_copy(update={"split": split, "high_quality_only": False})
            self._embeddings[split] = open_embeddings(self._config.model_copy(update={"data": data}), self._reader)
        embeddings = self._embeddings[split]
        return [
            (None,) if embeddings is None else embeddings(number, sample)
            for number, sample in zip(numbers, samples, strict=True)
        ]

    @torch.no_grad()
    def _forward(self, batch: Batch) -> dict[str, np.ndarray]:
        """float32 [N] 3Di losses and [N, P] projections; 0 at residues without 3Di state or structure."""
        batch = batch.to(self._device)
        outputs = self._model(batch)
        computed: dict[str, torch.Tensor] = {}
        if self._config.losses.structure:
            losses = torch.zeros(len(batch.threedi), device=self._device)
            losses[batch.threedi >= 0] = structure_losses(outputs.threedi_logits, batch).float()
            computed[STRUCTURE_LOSS] = losses
        for number, projected in enumerate(outputs.projections):
            for side, rows in zip(REFERENCE_SIDES, (projected.sequence, projected.structure), strict=True):
                computed[f"{side}{number}"] = rows * batch.structure_valid[:, None]
        return {name: values.cpu().numpy() for name, values in computed.items()}


class Sums:
    """What was computed of one chain, added up over masks and windows."""

    def __init__(self, num_residues: int) -> None:
        self._times = np.zeros(num_residues, dtype=np.float32)
        self._totals: dict[str, np.ndarray] = {}

    def add(self, start: int, computed: dict[str, np.ndarray]) -> None:
        """Rows of each array belong to the residues from `start` on."""
        for name, rows in computed.items():
            if name not in self._totals:
                self._totals[name] = np.zeros((len(self._times), *rows.shape[1:]), dtype=np.float32)
            self._totals[name][start : start + len(rows)] += rows
        self._times[start : start + len(rows)] += 1

    def means(self) -> dict[str, np.ndarray]:
        """Means of losses; projections divided by their length, because the mean of unit vectors is shorter."""
        return {
            name: total / self._times
            if name == STRUCTURE_LOSS
            else F.normalize(torch.from_numpy(total), dim=-1).numpy()
            for name, total in self._totals.items()
        }


def windows_of(num_residues: int, longest: int) -> list[tuple[int, int]]:
    """(start, length) of evenly spaced windows that cover a chain: one where it is not longer than `longest`."""
    length = min(num_residues, longest)
    number = -(-num_residues // longest)
    return [(round(k * (num_residues - length) / max(number - 1, 1)), length) for k in range(number)]


def encode(arrays: dict[str, np.ndarray]) -> Made:
    """Projections as float16, losses as they are; the error is that of the projections (residues that have them)."""
    stored = {name: rows if name == STRUCTURE_LOSS else rows.astype(np.float16) for name, rows in arrays.items()}
    projections = [name for name in arrays if name != STRUCTURE_LOSS]
    if not projections:
        return stored, Errors()
    exact, kept = (np.concatenate([of[name] for name in projections], axis=1) for of in (arrays, stored))
    present = exact.any(axis=1)
    return stored, Errors.of(exact[present], kept[present])
