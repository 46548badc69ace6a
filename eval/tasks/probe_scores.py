"""A head's scores as the columns that statistics take, and as a judgement on validation."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from eval.datasets.records import Target
from eval.heads.linear import Judge
from eval.heads.losses import LOSSES, mean_loss
from eval.metrics import Undefined, mcc_threshold
from eval.weighted_statistics import STATISTICS

LOWER_IS_BETTER = ("rmse",)


def columns_of(
    statistic: str, target: Target, scores: Tensor, labels: Tensor, threshold: float | None = None
) -> dict[str, np.ndarray]:
    """Columns [R, ...] of a statistic, from logits [R, K] or numbers [R] and the labels of `Rows`.

    Args:
        threshold: of two classes, of the margin of class 1, for predicted classes; None: the more probable class.

    Raises:
        Undefined: the statistic ranks two classes, and there are more.
    """
    if LOSSES[target] == "squared":
        return {"prediction": scores.double().numpy(), "label": labels.numpy()}
    if LOSSES[target] == "sigmoid":
        return {"scores": torch.sigmoid(scores).numpy(), "labels": labels.numpy()}
    if "score" not in STATISTICS[statistic].columns:
        if threshold is not None:
            return {"prediction": (_margin(scores) > threshold).astype(np.int64), "label": labels.numpy()}
        return {"prediction": scores.argmax(dim=-1).numpy(), "label": labels.numpy()}
    if scores.shape[1] != 2:
        raise Undefined(f"{statistic} ranks two classes, got {scores.shape[1]}")
    return {"score": _margin(scores), "label": labels.numpy()}


def best_threshold(scores: Tensor, labels: Tensor) -> float:
    """The margin of class 1 above which logits [V, 2] of validation rows have the best Matthews correlation.

    Where one class is rare the more probable class is always the other, and says nothing of the ranking.
    """
    return mcc_threshold(_margin(scores), labels.numpy()) if len(labels) else 0.0


def _margin(scores: Tensor) -> np.ndarray:
    return (scores[:, 1] - scores[:, 0]).double().numpy()


def judge_of(statistic: str, target: Target, labels: Tensor) -> Judge:
    """Judges scores of the rows that `labels` belong to; where the statistic is undefined, the loss alone decides."""
    sign = -1.0 if statistic in LOWER_IS_BETTER else 1.0

    def judge(scores: Tensor) -> tuple[float, float]:
        loss = float(mean_loss(LOSSES[target], scores, labels))
        value = _value(lambda: STATISTICS[statistic].value(columns_of(statistic, target, scores, labels)))
        return (sign * value if math.isfinite(value) else -math.inf), (-loss if math.isfinite(loss) else -math.inf)

    return judge


def of_each(
    statistic: str, target: Target, scores: Tensor, labels: Tensor, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The statistic of each example's own rows: int64 numbers of the examples that have one, and float64 values."""
    parts = zip(scores.split(counts.tolist()), labels.split(counts.tolist()), strict=True)
    values = np.array(
        [_value(lambda s=s, y=y: STATISTICS[statistic].value(columns_of(statistic, target, s, y))) for s, y in parts]
    )
    defined = np.flatnonzero(np.isfinite(values))
    return defined, values[defined]


def _value(statistic: Callable[[], float]) -> float:
    try:
        return float(statistic())
    except Undefined:
        return math.nan
