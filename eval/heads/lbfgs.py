"""Minimisation of smooth convex functions of well-scaled coordinates, whose evaluations are all that costs."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

HISTORY = 20
SUFFICIENT_DECREASE = 1e-4
"""Armijo's constant."""
SMALLEST_STEP = 1e-6
LOOK_BACK = 4
"""Iterations over which progress is judged: single steps of a quasi-Newton method can be short by chance."""

Objective = Callable[[Tensor], tuple[float, Tensor]]
"""Point float32 [P] -> value and gradient [P]."""


@dataclass(frozen=True)
class Minimum:
    point: Tensor
    value: float
    converged: bool
    """False where the iterations ended first."""
    evaluations: int


def minimise(objective: Objective, start: Tensor, tolerance: float, max_iterations: int) -> Minimum:
    """Limited-memory BFGS (Nocedal 1980), first trying the full step, halved until the value falls enough.

    It ends when the last LOOK_BACK iterations together lowered the value by less than `tolerance`, or when
    rounding leaves no lower point along the direction. A first step of the whole gradient is right where the Hessian is
    near the identity: scale the coordinates so.
    """
    point, (value, gradient) = start, objective(start)
    evaluations, values = 1, deque([value], maxlen=LOOK_BACK + 1)
    pairs: deque[tuple[Tensor, Tensor, float]] = deque(maxlen=HISTORY)
    for _ in range(max_iterations):
        direction = _direction(gradient, pairs)
        slope = _dot(gradient, direction)
        if slope >= 0:
            return Minimum(point, value, True, evaluations)
        step = 1.0
        while True:
            new_point = torch.add(point, direction, alpha=step)
            new_value, new_gradient = objective(new_point)
            evaluations += 1
            if new_value <= value + SUFFICIENT_DECREASE * step * slope:
                break
            step *= 0.5
            if step < SMALLEST_STEP:
                return Minimum(point, value, True, evaluations)
        change, bend = new_point - point, new_gradient - gradient
        curvature = _dot(change, bend)
        if curvature > 1e-10 * _dot(bend, bend):
            pairs.append((change, bend, curvature))
        point, value, gradient = new_point, new_value, new_gradient
        values.append(value)
        if len(values) == values.maxlen and values[0] - value <= tolerance:
            return Minimum(point, value, True, evaluations)
    return Minimum(point, value, False, evaluations)


def _direction(gradient: Tensor, pairs: "deque[tuple[Tensor, Tensor, float]]") -> Tensor:
    """Minus the inverse Hessian's estimate times the gradient, by the two-loop recursion."""
    direction = gradient.clone()
    factors = []
    for change, bend, curvature in reversed(pairs):
        factor = _dot(change, direction) / curvature
        direction.add_(bend, alpha=-factor)
        factors.append(factor)
    if pairs:
        _, bend, curvature = pairs[-1]
        direction.mul_(curvature / _dot(bend, bend))
    for (change, bend, curvature), factor in zip(pairs, reversed(factors), strict=True):
        direction.add_(change, alpha=factor - _dot(bend, direction) / curvature)
    return direction.neg_()


def _dot(first: Tensor, second: Tensor) -> float:
    return float(torch.dot(first, second))
