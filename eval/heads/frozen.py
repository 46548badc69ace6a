"""Heads on frozen features, one for each seed, and what they say of the test split."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from configs.benchmarks import ProbeConfig
from eval.datasets.records import Record, Target
from eval.features import Features
from eval.heads.inputs import RESIDUE_TARGETS, Unit, in_parts, rows_of, unit_of
from eval.heads.linear import Judge, LinearHead, fit_linear
from eval.heads.losses import LOSSES
from eval.heads.mlp import MlpHead, fit_mlp


@dataclass(frozen=True)
class Prediction:
    """Of one seed for the test split."""

    seed: int
    scores: Tensor
    """Logits [R, K] or numbers [R], on the CPU."""
    chosen: str
    """What validation chose, in words."""
    quality: float
    """The metric on validation; NaN or -inf where it has no value there."""
    validation: Tensor
    """Scores of the validation rows [V, K] or [V], where thresholds are chosen; without rows where there are none."""


def frozen_predictions(
    features: Features,
    splits: Mapping[str, Sequence[Record]],
    target: Target,
    num_classes: int,
    probe: ProbeConfig,
    judge: Judge,
    device: torch.device,
) -> Iterator[Prediction]:
    """Fit on `train`, choose by `judge` on `validation`, score `test`; a linear head for the first seed alone."""
    unit = None
    if features.config.representation == "all_layers" and target not in RESIDUE_TARGETS:
        unit = unit_of(features, splits["train"])
    train = rows_of(features, splits["train"], target, num_classes, unit)
    validation = rows_of(features, splits["validation"], target, num_classes, unit).features
    x, labels = train.features.to(device), train.labels.to(device)
    num_outputs = 1 if LOSSES[target] == "squared" else num_classes
    for seed in probe.seeds[:1] if probe.head == "linear" else probe.seeds:
        if probe.head == "linear":
            head: LinearHead | MlpHead = fit_linear(LOSSES[target], x, labels, num_outputs, judge, validation)
            at_rest = "" if head.converged else ", ended before convergence"
            chosen, quality = f"strength {head.strength:.3g}{at_rest}", head.quality
        else:
            head = fit_mlp(LOSSES[target], x, labels, num_outputs, judge, validation, probe, seed)
            chosen, quality = f"epoch {head.choice.epoch} of {head.choice.epochs}", head.choice.quality
        scores = _scores(head, features, splits["test"], target, num_classes, unit)
        yield Prediction(seed, scores, chosen, quality, head.scores(validation))


def _scores(
    head: LinearHead | MlpHead,
    features: Features,
    records: Sequence[Record],
    target: Target,
    num_classes: int,
    unit: Unit | None,
) -> Tensor:
    parts = (rows_of(features, part, target, num_classes, unit).features for part in in_parts(records))
    return torch.cat([head.scores(part) for part in parts if len(part)])
