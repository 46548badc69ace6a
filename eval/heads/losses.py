"""What a head is fitted to: softmax over classes, a sigmoid for each label, or squared error."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from eval.datasets.records import Target

Loss = Literal["softmax", "sigmoid", "squared"]
LOSSES: dict[Target, Loss] = {
    "class": "softmax",
    "residue_class": "softmax",
    "pair_class": "softmax",
    "labels": "sigmoid",
    "value": "squared",
    "residue_value": "squared",
}


def mean_loss(loss: Loss, scores: Tensor, labels: Tensor) -> Tensor:
    """Scalar: cross entropy of logits [R, K] and int64 [R]; of logits [R, K] and bool [R, K], over all of them; or
    squared error of [R] and [R]."""
    if loss == "softmax":
        return functional.cross_entropy(scores, labels)
    if loss == "sigmoid":
        return functional.binary_cross_entropy_with_logits(scores, labels.to(scores.dtype))
    return (scores - labels.to(scores.dtype)).square().mean()


def residual_(loss: Loss, logits: Tensor, labels: Tensor) -> tuple[float, Tensor]:
    """Sum of the losses, and its gradient by the logits, which are overwritten with it."""
    if loss == "sigmoid":
        # log(1 + e^z) - y z = max(z, 0) + log(1 + e^-|z|) - y z
        hot = labels.to(logits.dtype)
        total = functional.softplus(logits).sum(dtype=torch.float64) - (hot * logits).sum(dtype=torch.float64)
        return float(total), logits.sigmoid_().sub_(hot)
    rows = torch.arange(len(labels), device=logits.device)
    own = logits[rows, labels].to(torch.float64).sum()
    top = logits.max(dim=1, keepdim=True).values
    power = logits.sub_(top).exp_()
    sums = power.sum(dim=1, keepdim=True)
    total = (sums.log() + top).sum(dtype=torch.float64) - own
    power.div_(sums)
    power[rows, labels] -= 1.0
    return float(total), power
