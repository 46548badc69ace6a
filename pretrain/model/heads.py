"""Heads on the trunk: masked language models of all families, 3Di, projections, temperature."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.losses import LossConfig
from pretrain.model.layers import RMSNorm, initialise_linear, layer_norm
from pretrain.model.linear import Linear, linear
from pretrain.model.shape import TrunkShape

INITIAL_TEMPERATURE = 0.07


class TiedLanguageHead(nn.Module):
    """ESM-2's head: dense, GELU, LayerNorm, then the transposed embedding plus a bias."""

    def __init__(self, shape: TrunkShape, embedding: nn.Parameter) -> None:
        super().__init__()
        self.dense = Linear(shape.width, shape.width)
        self.norm = layer_norm(shape.width)
        # Registered here too, so that under ZeRO-3 this module gathers the tied weight for its own forward.
        self.weight = embedding
        self.bias = nn.Parameter(torch.zeros(embedding.shape[0]))
        initialise_linear(self.dense)

    def forward(self, hidden: Tensor) -> Tensor:
        """[M, D] -> [M, V]."""
        return linear(self.norm(F.gelu(self.dense(hidden))), self.weight, self.bias)


class UntiedLanguageHead(nn.Module):
    """AMPLIFY's head: the final RMSNorm, then a decoder with bias."""

    def __init__(self, shape: TrunkShape) -> None:
        super().__init__()
        self.norm = RMSNorm(shape.width)
        self.decoder = Linear(shape.width, len(shape.alphabet))
        initialise_linear(self.decoder)

    def forward(self, hidden: Tensor) -> Tensor:
        """[M, D] -> [M, V]."""
        return self.decoder(self.norm(hidden))


class DenseLanguageHead(nn.Module):
    """ESM-C's head: dense, GELU, LayerNorm, then a decoder of its own with bias."""

    def __init__(self, shape: TrunkShape) -> None:
        super().__init__()
        self.dense = Linear(shape.width, shape.width)
        self.norm = layer_norm(shape.width)
        self.decoder = Linear(shape.width, len(shape.alphabet))
        initialise_linear(self.dense)
        initialise_linear(self.decoder)

    def forward(self, hidden: Tensor) -> Tensor:
        """[M, D] -> [M, V]."""
        return self.decoder(self.norm(F.gelu(self.dense(hidden))))


def language_head(shape: TrunkShape, embedding: nn.Parameter) -> nn.Module:
    """The masked-language head of a trunk's family."""
    if shape.family == "esm2":
        return TiedLanguageHead(shape, embedding)
    return UntiedLanguageHead(shape) if shape.family == "amplify" else DenseLanguageHead(shape)


class ThreediHead(nn.Module):
    """3Di state of a residue: Linear(D, D) - ReLU - Linear(D, states)."""

    def __init__(self, width: int, states: int) -> None:
        super().__init__()
        self.dense = Linear(width, width)
        self.out = Linear(width, states)

    def forward(self, rows: Tensor) -> Tensor:
        """[N, D] -> [N, states]."""
        return self.out(F.relu(self.dense(rows)))


class Projection(nn.Module):
    """A biased Linear to the shared space of the contrast, then unit length."""

    def __init__(self, width: int, projection_width: int) -> None:
        super().__init__()
        self.linear = Linear(width, projection_width)

    def forward(self, rows: Tensor) -> Tensor:
        """[N, D] -> [N, P], every row of length 1."""
        return F.normalize(self.linear(rows.to(self.linear.weight.dtype)).float(), dim=-1)


class Temperature(nn.Module):
    """The learnable scale of similarities, exp(logit_scale), never above `maximum`; a module of its own for ZeRO-3."""

    def __init__(self, maximum: float) -> None:
        super().__init__()
        self.maximum = maximum
        # One element rather than a scalar: DeepSpeed cannot broadcast parameters without a dimension.
        self.logit_scale = nn.Parameter(torch.tensor([math.log(1 / INITIAL_TEMPERATURE)]))

    def forward(self) -> Tensor:
        """float32 scalar in (0, maximum]."""
        return _BoundedExp.apply(self.logit_scale.float().squeeze(), self.maximum)


class _BoundedExp(torch.autograd.Function):
    """min(exp(x), bound) whose gradient above the bound still lets descent lower x; a plain clamp would freeze it."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, bound: float) -> Tensor:
        bounded = x.exp().clamp(max=bound)
        ctx.save_for_backward(bounded)
        ctx.bound = bound
        return bounded

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        (bounded,) = ctx.saved_tensors
        pushes_up = (bounded >= ctx.bound) & (gradient < 0)
        return torch.where(pushes_up, 0.0, gradient * bounded), None


class ProjectionPair(nn.Module):
    """The heads of the contrast with one teacher.

    Args:
        width: of the trunk; both sides are projected to min(width, losses.projection_width).
        teacher_width: features of the teacher's embeddings.
    """

    def __init__(self, width: int, teacher_width: int, losses: LossConfig) -> None:
        super().__init__()
        projection_width = min(width, losses.projection_width)
        self.sequence_projection = Projection(width, projection_width)
        self.structure_projection = Projection(teacher_width, projection_width)
        self.temperature = Temperature(losses.max_logit_scale)
