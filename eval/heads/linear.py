"""Linear heads fitted to convergence, the strength of their L2 penalty chosen on validation."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eval.heads.lbfgs import minimise
from eval.heads.losses import Loss, residual_
from eval.heads.scaling import CHUNK, Axes, principal_axes

Judge = Callable[[Tensor], tuple[float, float]]
"""Scores of the validation rows -> the task's metric and minus the loss, both better when higher."""
LOGISTIC_STRENGTHS = (1e3, 1e2, 1e1, 1e0)
"""Of the sum of cross entropies, 1/C in scikit-learn's terms; strong first, because each fit starts at the last."""
RIDGE_STRENGTHS = tuple(10.0 ** (half / 2) for half in range(12, -7, -1))
"""Of the sum of squared errors, scikit-learn's alpha."""
MAX_ITERATIONS = 500
CHOOSING_TOLERANCE, TOLERANCE = 3e-5, 1e-6
"""Change of the objective, as a share of the loss without features, at which a fit of the grid, and the one that was
chosen, is done. Looser fits of weak penalties are held back by having ended early, and would be chosen for that."""
NEVER = -30.0
"""Logit of a class or label without a training example: probability 1e-13."""


@dataclass(frozen=True)
class LinearHead:
    """Scores are `features @ weight.T + bias`, without the last axis where a number is predicted."""

    weight: Tensor
    """float32 [K, F]."""
    bias: Tensor
    """float32 [K]."""
    number: bool
    strength: float
    """Of the L2 penalty, chosen on validation."""
    quality: float
    """The metric on validation; NaN where there is no validation."""
    converged: bool

    def scores(self, features: Tensor) -> Tensor:
        """Logits [R, K], or numbers [R], on the CPU."""
        parts = [torch.addmm(self.bias, part.to(self.bias.device), self.weight.T) for part in features.split(CHUNK)]
        scores = torch.cat(parts).cpu()
        return scores[:, 0] if self.number else scores


@dataclass(frozen=True)
class Fit:
    """On principal axes."""

    strength: float
    weight: Tensor
    """float32 [K, Q]."""
    bias: Tensor
    """float32 [K]."""
    converged: bool = True

    def head(self, axes: Axes, number: bool, quality: float = float("nan")) -> LinearHead:
        weight, bias = axes.unfold(self.weight, self.bias)
        return LinearHead(weight, bias, number, self.strength, quality, self.converged)


def fit_linear(
    loss: Loss,
    features: Tensor,
    labels: Tensor,
    num_outputs: int,
    judge: Judge,
    validation: Tensor,
    strengths: Sequence[float] | None = None,
) -> LinearHead:
    """The best head by `judge` over a grid of penalties: multinomial or one-vs-rest logistic regression, or ridge.

    The objective is the sum of losses + strength / 2 ||W||^2 over standardised features (ridge: without the half), bias
    not penalised: scikit-learn's LogisticRegression with C = 1 / strength, and Ridge with alpha = strength. From strong
    to weak, a logistic grid ends at the first strength that is worse than the one before.

    Args:
        loss: `softmax` with int64 labels [R], `sigmoid` with bool [R, num_outputs], `squared` with floats [R].
        features: float32 [R, F] of the training rows.
        validation: float32 [V, F], whose scores `judge` sees; with no rows, strength 1 is taken.
        strengths: instead of the grid, strong first.
    """
    if not len(validation):
        strengths = (1.0,)
    number = loss == "squared"
    axes = principal_axes(features)
    x = axes.project(features)
    logistic = None if number else _logistic(loss, x, labels.to(x.device), num_outputs, axes)
    if logistic is None:
        fits = _ridge(x, labels, axes, strengths or RIDGE_STRENGTHS)
    else:
        fits = logistic.path(strengths or LOGISTIC_STRENGTHS)
    best, best_score = None, (float("-inf"), float("-inf"))
    for fit in fits:
        score = judge(fit.head(axes, number).scores(validation)) if len(validation) else (float("nan"), 0.0)
        if best is None or score > best_score:
            best, best_score = fit, score
        elif not number:
            break
    assert best is not None, "the grid is not empty"
    if logistic is not None:
        best = logistic.refined(best)
    return best.head(axes, number, best_score[0])


def _ridge(x: Tensor, values: Tensor, axes: Axes, strengths: Sequence[float]) -> Iterator[Fit]:
    """In closed form: on principal axes the normal equations are diagonal."""
    y = values.to(x.device, torch.float64)
    mean = y.mean()
    moment = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    for part, centred in zip(x.split(CHUNK), (y - mean).split(CHUNK), strict=True):
        moment += part.double().T @ centred
    for strength in strengths:
        weight = moment / (axes.variance.double() * len(y) + strength)
        yield Fit(strength, weight.float()[None], mean.float()[None])


def _logistic(loss: Loss, x: Tensor, labels: Tensor, num_outputs: int, axes: Axes) -> "_Logistic":
    counts = labels.sum(dim=0) if loss == "sigmoid" else torch.bincount(labels, minlength=num_outputs)
    outputs = ((counts > 0) & (counts < len(x))).nonzero().squeeze(1)
    if loss == "sigmoid":
        labels = labels[:, outputs]
    else:
        # A class by its number among those that have examples.
        labels = (torch.cumsum(counts > 0, 0) - 1)[labels]
    rate = (counts[outputs] / len(x)).float()
    rest = torch.where(counts == len(x), -NEVER, NEVER)
    return _Logistic(loss, x, labels, axes.variance, outputs, rate, rest)


@dataclass(frozen=True)
class _Logistic:
    """A logistic regression on principal axes, of the K' outputs that have both positive and negative rows."""

    loss: Loss
    x: Tensor
    labels: Tensor
    variance: Tensor
    outputs: Tensor
    """int64 [K']: their numbers."""
    rate: Tensor
    """float32 [K']: their share of the rows."""
    rest: Tensor
    """float32 [K]: the bias of an output that is not fitted."""

    def path(self, strengths: Sequence[float]) -> Iterator[Fit]:
        """Each strength from the optimum of the one before, precise enough to compare them."""
        weight = self.x.new_zeros(len(self.rest), self.x.shape[1])
        bias = self.rest.clone()
        bias[self.outputs] = self.rate.log() - (torch.log1p(-self.rate) if self.loss == "sigmoid" else 0.0)
        fit = Fit(strengths[0], weight, bias)
        for strength in strengths:
            fit = self._fitted(Fit(strength, fit.weight, fit.bias), CHOOSING_TOLERANCE)
            yield fit

    def refined(self, fit: Fit) -> Fit:
        return self._fitted(fit, TOLERANCE)

    def _entropy(self) -> float:
        """Loss of a row by a model without features."""
        own = torch.xlogy(self.rate, self.rate)
        if self.loss == "sigmoid":
            own = own + torch.xlogy(1.0 - self.rate, 1.0 - self.rate)
        return -float(own.sum())

    def _fitted(self, start: Fit, tolerance: float) -> Fit:
        """By L-BFGS in coordinates in which the Hessian of a model without features would be the identity.

        For output k and axis q that is rate (1 - rate) variance + strength / R: rare classes and weak axes move as
        quickly as others.
        """
        x, spread = self.x, self.rate * (1.0 - self.rate)
        scale = (spread[:, None] * self.variance + start.strength / len(x)).rsqrt()
        bias_scale = spread.rsqrt()
        size = scale.numel()

        def unscaled(point: Tensor) -> tuple[Tensor, Tensor]:
            return point[:size].view(scale.shape) * scale, point[size:] * bias_scale

        def objective(point: Tensor) -> tuple[float, Tensor]:
            weight, bias = unscaled(point)
            gradient, bias_gradient = weight * start.strength, torch.zeros_like(bias)
            total = 0.5 * start.strength * float(weight.square().sum(dtype=torch.float64))
            for part, labels in zip(x.split(CHUNK), self.labels.split(CHUNK), strict=True):
                part_total, residual = residual_(self.loss, torch.addmm(bias, part, weight.T), labels)
                total += part_total
                gradient.addmm_(residual.T, part)
                bias_gradient += residual.sum(dim=0)
            both = torch.cat([(gradient * scale).flatten(), bias_gradient * bias_scale])
            return total / len(x), both.div_(len(x))

        at = torch.cat([(start.weight[self.outputs] / scale).flatten(), start.bias[self.outputs] / bias_scale])
        found = minimise(objective, at, tolerance * self._entropy(), MAX_ITERATIONS)
        weight, bias = start.weight.clone(), start.bias.clone()
        weight[self.outputs], bias[self.outputs] = unscaled(found.point)
        return Fit(start.strength, weight, bias, found.converged)
