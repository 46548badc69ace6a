"""Batch normalisation with the statistics of all ranks' rows, on any device (torch's own version needs CUDA)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.distributed import all_sum, is_distributed


class PooledBatchNorm(nn.BatchNorm1d):
    """torch's BatchNorm1d over the rows of all ranks: in training a collective that every rank must call.

    Backward goes through the statistics, so that gradients summed over ranks are those of one rank with all rows.
    """

    def forward(self, values: Tensor) -> Tensor:
        """[n, D] -> [n, D]; n may differ between ranks."""
        if not self.training or not is_distributed():
            return self._of_this_rank(values)
        wide = values.float() if values.dtype != torch.float64 else values
        count = all_sum(wide.new_tensor(float(len(wide))))
        mean = _SumOverRanks.apply(wide.sum(0)) / count
        centred = wide - mean
        variance = _SumOverRanks.apply(centred.square().sum(0)) / count
        self._follow(mean.detach(), variance.detach(), count)
        result = centred * torch.rsqrt(variance + self.eps)
        return (result * self.weight + self.bias).to(values.dtype)

    def _of_this_rank(self, values: Tensor) -> Tensor:
        """torch's own, in the precision of the running statistics, which bf16 training may keep in float32."""
        if self.training:
            self.num_batches_tracked += 1
        wide = values.to(self.running_mean.dtype)
        weight, bias = self.weight.to(wide.dtype), self.bias.to(wide.dtype)
        result = F.batch_norm(
            wide, self.running_mean, self.running_var, weight, bias, self.training, self.momentum, self.eps
        )
        return result.to(values.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics as torch does: towards the unbiased variance."""
        unbiased = variance * (count / (count - 1).clamp(min=1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        self.num_batches_tracked += 1


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        return all_sum(tensor)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        # Every rank's loss uses the sum, so each summand's gradient is that of all ranks' losses.
        return all_sum(gradient)
