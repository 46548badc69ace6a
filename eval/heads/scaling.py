"""Features brought to a common scale, and to the axes in which linear heads are easy to fit."""

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 2048
"""Rows worked on at a time, so that no second copy of the features is held."""
SMALLEST_SCALE = 1e-6


@dataclass(frozen=True)
class Standard:
    """Features minus their mean, divided by their standard deviation."""

    mean: Tensor
    """float32 [F]."""
    scale: Tensor
    """float32 [F]; 1 for a constant feature, which therefore becomes 0."""

    def __call__(self, features: Tensor) -> Tensor:
        """float32 [R, F] -> [R, F]."""
        return (features - self.mean) / self.scale


def standard_of(features: Tensor) -> Standard:
    """From the training rows [R, F]; sums in float64, so that a large common mean costs no digits."""
    mean = features.sum(dim=0, dtype=torch.float64) / len(features)
    square = torch.zeros_like(mean)
    for part in features.split(CHUNK):
        square += (part - mean).square().sum(dim=0)
    scale = (square / len(features)).sqrt()
    scale = torch.where(scale > SMALLEST_SCALE * mean.abs().clamp_min(1.0), scale, torch.ones_like(scale))
    return Standard(mean.float(), scale.float())


@dataclass(frozen=True)
class Axes:
    """Principal axes of standardised training rows; an L2 penalty is the same in them."""

    standard: Standard
    axes: Tensor
    """float32 [F, Q], orthonormal columns, Q <= min(R, F)."""
    variance: Tensor
    """float32 [Q]: mean square of the training rows along each."""

    def project(self, features: Tensor) -> Tensor:
        """float32 [R, F] -> [R, Q]."""
        return torch.cat([self.standard(part) @ self.axes for part in features.split(CHUNK)])

    def unfold(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Weights [K, Q] and biases [K] on the axes as weights [K, F] and biases on the features themselves."""
        full = (weight @ self.axes.T) / self.standard.scale
        return full, bias - full @ self.standard.mean


def principal_axes(features: Tensor) -> Axes:
    """By the eigenvectors of the smaller of the two Gram matrices; directions without variance are left out.

    Weights of an L2-penalised model lie in the span of its rows, so nothing is lost.
    """
    standard = standard_of(features)
    num_rows, width = features.shape
    if width <= num_rows:
        gram = torch.zeros(width, width, dtype=torch.float64, device=features.device)
        for part in features.split(CHUNK):
            x = standard(part)
            gram += (x.T @ x).double()
        values, vectors = torch.linalg.eigh(gram / num_rows)
        kept = values > 1e-7 * values[-1].clamp_min(1e-12)
        return Axes(standard, vectors[:, kept].float(), values[kept].float())
    x = standard(features)
    values, vectors = torch.linalg.eigh((x @ x.T).double() / num_rows)
    kept = values > 1e-7 * values[-1].clamp_min(1e-12)
    axes = x.T @ (vectors[:, kept] / (values[kept] * num_rows).sqrt()).float()
    return Axes(standard, axes, values[kept].float())
