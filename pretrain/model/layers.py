"""The parts of a trunk layer in all families."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.model.attention import Layout, SelfAttention
from pretrain.model.linear import Linear
from pretrain.model.shape import NORM_EPS, TrunkShape


class RMSNorm(nn.Module):
    """Root-mean-square norm computed in float32, without a bias (AMPLIFY)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + NORM_EPS)).to(x.dtype) * self.weight


class GeluFeedForward(nn.Module):
    """Linear - erf GELU - Linear (ESM-2)."""

    def __init__(self, shape: TrunkShape) -> None:
        super().__init__()
        self.up = Linear(shape.width, shape.inner_width)
        self.down = Linear(shape.inner_width, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        return self.down(F.gelu(self.up(x)))


class SwigluFeedForward(nn.Module):
    """silu(gate(x)) * value(x), then a Linear; `up` packs [gate; value] (AMPLIFY, ESM-C)."""

    def __init__(self, shape: TrunkShape) -> None:
        super().__init__()
        self.up = Linear(shape.width, 2 * shape.inner_width, bias=False)
        self.down = Linear(shape.inner_width, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * value)


class Layer(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, shape: TrunkShape) -> None:
        super().__init__()
        esm2, amplify = shape.family == "esm2", shape.family == "amplify"
        self.residual_scale = shape.residual_scale
        self.attention_norm = RMSNorm(shape.width) if amplify else layer_norm(shape.width)
        self.attention = SelfAttention(shape, bias=esm2)
        self.ffn_norm = RMSNorm(shape.width) if amplify else layer_norm(shape.width)
        self.ffn = GeluFeedForward(shape) if esm2 else SwigluFeedForward(shape)
        initialise_linear(self.attention.qkv)
        initialise_linear(self.ffn.up)
        # The residual stream of a random trunk keeps its scale whatever the depth.
        for linear in (self.attention.out, self.ffn.down):
            initialise_linear(linear, gain=(2 * shape.layers) ** -0.5)

    def forward(self, hidden: Tensor, layout: Layout, maps: list[list[Tensor]] | None = None) -> Tensor:
        """[T, D] -> [T, D]; `maps` as in SelfAttention."""
        mixed = self.attention(self.attention_norm(hidden), layout, maps)
        hidden = torch.add(hidden, mixed, alpha=self.residual_scale)
        return torch.add(hidden, self.ffn(self.ffn_norm(hidden)), alpha=self.residual_scale)


def layer_norm(width: int, bias: bool = True) -> nn.LayerNorm:
    """The LayerNorm of ESM-2 and ESM-C."""
    return nn.LayerNorm(width, eps=NORM_EPS, bias=bias)


def initialise_linear(linear: nn.Linear, gain: float = 1.0) -> None:
    """Normal weights of standard deviation gain / sqrt(3 x inputs) (0.016 at width 1280, 0.032 at 320), zero bias."""
    nn.init.normal_(linear.weight, std=gain * (3 * linear.in_features) ** -0.5)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
