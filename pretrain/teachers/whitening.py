"""Whitening by running statistics, so that a contrast need not learn the scale and correlation of its inputs.

Features averaged over a protein vary mostly in its composition; all else that tells proteins apart lies in directions
of a hundredth of that variance, which gradient descent finds last.
"""

import torch
from torch import Tensor, nn

from pretrain.distributed import all_sum

MOMENTUM = 0.05
"""Of the running statistics; the first batches are averaged."""
RIDGE = 0.1
"""Times the mean variance, added to the variance of every direction."""


class RunningWhitening(nn.Module):
    """y = L^-1 (x - m) with L L^T = C + ridge: rows uncorrelated and of variance 1, by the running m and C.

    In training the statistics first follow the batch, of all ranks: then it is a collective. No gradient goes through
    them.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("covariance", torch.eye(width))
        self.register_buffer("num_batches", torch.zeros((), dtype=torch.int64))

    def forward(self, values: Tensor) -> Tensor:
        """[n, D] -> [n, D]."""
        wide = values if values.dtype == torch.float64 else values.float()
        if self.training:
            self._follow(wide.detach())
        mean, covariance = self.mean.to(wide.dtype), self.covariance.to(wide.dtype)
        ridge = RIDGE * covariance.diagonal().mean()
        factor = torch.linalg.cholesky(covariance + ridge * torch.eye(len(mean), dtype=wide.dtype, device=wide.device))
        return torch.linalg.solve_triangular(factor, (wide - mean).T, upper=False).T.to(values.dtype)

    @torch.no_grad()
    def _follow(self, values: Tensor) -> None:
        count = all_sum(values.new_tensor(float(len(values)))).clamp(min=1)
        mean = all_sum(values.sum(0)) / count
        centred = values - mean
        covariance = all_sum(centred.T @ centred) / count
        self.num_batches += 1
        weight = max(MOMENTUM, 1 / int(self.num_batches))
        self.mean.lerp_(mean.to(self.mean.dtype), weight)
        self.covariance.lerp_(covariance.to(self.covariance.dtype), weight)
