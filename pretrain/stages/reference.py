"""The frozen reference model of residue loss selection: the model itself, or a derived column of it."""

import logging
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import numpy as np
import torch

from configs.errors import UserError
from configs.losses import LossConfig
from configs.train import TrainConfig
from data_pipeline.derived import DERIVE_REMEDY, DerivedReader
from data_pipeline.reader import ShardReader
from pretrain.batch import Batch
from pretrain.checkpoints import Checkpoint, open_checkpoint
from pretrain.losses.reference import ReferenceLosses, online_reference
from pretrain.losses.reference_column import column_reference
from pretrain.model.alignment import AlignmentModel
from pretrain.model.heads import Temperature
from pretrain.model.load import load_model
from pretrain.model.shape import trunk_shape
from pretrain.teachers.load import load_teacher

COLUMN_KIND = "reference"
log = logging.getLogger("pretrain.reference")


class Reference(Protocol):
    """What the selection knows of the reference model."""

    def to(self, device: torch.device) -> None:
        """Compute on `device`."""
        ...

    def arrays(self, number: int) -> Mapping[str, np.ndarray] | None:
        """What a batch must carry of chain `number` of the split (`Item.reference`); None where nothing."""
        ...

    def losses(self, batch: Batch) -> ReferenceLosses:
        """Of this rank's residues; a collective where the contrast is on."""
        ...


class OnlineReference:
    """The frozen model itself, on the masks of each batch: exact."""

    def __init__(self, model: AlignmentModel, losses: LossConfig) -> None:
        self._model, self._losses = model, losses

    def to(self, device: torch.device) -> None:
        self._model.to(device)

    def arrays(self, number: int) -> None:
        return None

    @torch.no_grad()
    def losses(self, batch: Batch) -> ReferenceLosses:
        return online_reference(self._model(batch), batch, self._losses)


class ColumnReference:
    """A derived column of the model: no forward pass, but losses of other masks than the batch's."""

    def __init__(self, column: DerivedReader, split: str, losses: LossConfig) -> None:
        self._column, self._split, self._losses = column, split, losses
        self._scales: list[float] = column.facts["logit_scale"]

    def to(self, device: torch.device) -> None:
        """Nothing to move: the arrays come with the batch."""

    def arrays(self, number: int) -> dict[str, np.ndarray]:
        return self._column.arrays(self._split, number)

    @torch.no_grad()
    def losses(self, batch: Batch) -> ReferenceLosses:
        return column_reference(batch, self._scales, self._losses)


def open_reference(config: TrainConfig, reader: ShardReader, widths: tuple[int, ...] | None = None) -> Reference | None:
    """The reference of a run that selects; None without selection.

    Args:
        widths: of the teachers' embeddings, which the reference must have been trained on too; None: no contrast.

    Raises:
        UserError: no such checkpoint or column, or one that does not fit this run.
    """
    if config.selection.mode == "off":
        return None
    if config.selection.column is not None:
        column = open_column(config, reader)
        log.warning("reference losses of column %s are approximate: %s", column.folder, column.facts["approximation"])
        return ColumnReference(column, config.data.split, config.losses)
    checkpoint = fitting_checkpoint(config)
    model = frozen_model(checkpoint, config.losses)
    if widths is not None and model.teacher_widths != widths:
        theirs, ours = (" + ".join(map(str, each)) for each in (model.teacher_widths, widths))
        raise UserError(
            f"selection.reference {checkpoint.path}: was trained with teachers of {theirs} features, this run has"
            f" {ours}; name one trained with the same teachers"
        )
    precision = config.engine.precision if config.selection.precision == "same" else config.selection.precision
    return OnlineReference(in_precision(model, precision), config.losses)


def check_reference(config: TrainConfig, reader: ShardReader) -> None:
    """Look, without loading, at what a selection needs.

    Raises:
        UserError: as `open_reference`.
    """
    if config.selection.mode == "off":
        return
    if config.selection.column is not None:
        open_column(config, reader).close()
    else:
        fitting_checkpoint(config, verify=False)


def fitting_checkpoint(config: TrainConfig, verify: bool = True) -> Checkpoint:
    """The checkpoint of the config's reference model.

    Raises:
        UserError: none named, none there, or one of a run that cannot serve (other token alphabet, other losses).
    """
    if config.selection.reference is None:
        raise UserError("selection.reference is not set: name a run or checkpoint of stage `reference`")
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


def frozen_model(checkpoint: Checkpoint, losses: LossConfig) -> AlignmentModel:
    """The reference model without gradients, computing no more than the selection among `losses` needs."""
    model = load_model(checkpoint).requires_grad_(False)
    needed = {"mlm": 0.0, **{name: getattr(losses, name) for name in ("structure", "contrast")}}
    model.losses = model.losses.model_copy(update=needed)
    return model


def in_precision(model: AlignmentModel, precision: Literal["fp32", "bf16"]) -> AlignmentModel:
    """The model's matrices in a precision; temperatures stay in float32, as their error would be exponentiated."""
    temperatures = [module for module in model.modules() if isinstance(module, Temperature)]
    exact = [module.logit_scale.detach().clone() for module in temperatures]
    model.to(torch.bfloat16 if precision == "bf16" else torch.float32)
    for module, value in zip(temperatures, exact, strict=True):
        module.logit_scale.data = value
    return model


def open_column(config: TrainConfig, reader: ShardReader) -> DerivedReader:
    """The derived column of the reference model that a config names, if it was made for this run's data and teachers.

    Raises:
        UserError: not there, of another kind, or made for another reference, teacher, alphabet, mask or losses.
    """
    name = config.selection.column
    column = DerivedReader(reader, name, verify=config.data.verify)
    facts, where = column.facts, f"selection.column {name!r} ({column.folder})"
    remedy = DERIVE_REMEDY.format(folder=reader.folder)
    if facts.get("kind") != COLUMN_KIND:
        raise UserError(f"{where}: holds {facts.get('teacher', 'something else')}, no reference losses; {remedy}")
    wanted = made_for(config, reader)
    if config.selection.reference is not None:
        wanted["reference_sha256"] = fitting_checkpoint(config, verify=False).weights_sha256
    lacking = set(wanted.pop("losses")) - set(facts.get("losses", ()))
    other = [_WORDS[key] for key, value in wanted.items() if facts.get(key) != value]
    if lacking or other:
        what = ", ".join([*other, *(f"losses.{loss} not among its losses" for loss in sorted(lacking))])
        raise UserError(f"{where}: made for another run ({what}); {remedy}")
    return column


def made_for(config: TrainConfig, reader: ShardReader) -> dict[str, Any]:
    """What a column of the reference model must share with the run that uses it."""
    losses = [loss for loss in ("structure", "contrast") if getattr(config.losses, loss)]
    teachers = (config.teacher, *config.more_teachers) if config.losses.contrast else ()
    names = []
    for teacher in teachers:
        if teacher.column is None:
            names.append(f"weights {load_teacher(teacher).weights_sha256}")
            continue
        with DerivedReader(reader, teacher.column, verify=config.data.verify) as column:
            names.append(f"column {column.manifest_sha256}")
    family, fraction = trunk_shape(config.trunk).family, config.data.mask_fraction
    return {"losses": losses, "teachers": names, "family": family, "mask_fraction": fraction}


_WORDS = {
    "reference_sha256": "other reference weights",
    "teachers": "other teachers or teacher columns",
    "family": "another token alphabet",
    "mask_fraction": "another data.mask_fraction",
}
