"""Losses and gradients that are no numbers, for tests of what training makes of them."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pretrain.losses.terms import LossTerm, Terms


class PoisonGradient(torch.autograd.Function):
    """The value as it is, and NaN for its gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * float("nan")


def poisoned(terms: Terms, what: str) -> Terms:
    """The same terms with a `loss` or only its `gradient` that is no number."""
    if what == "gradient":
        return replace(
            terms, terms={name: LossTerm(PoisonGradient.apply(t.sum), t.count) for name, t in terms.terms.items()}
        )
    # Infinite and not through any operation: its gradient is finite, so nothing but the loss itself shows it.
    return replace(terms, terms={name: LossTerm(t.sum + float("inf"), t.count) for name, t in terms.terms.items()})
