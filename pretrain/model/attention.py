"""Self-attention over packed sequences with rotary positions."""

from collections.abc import Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.model.shape import ROTARY_BASE, TrunkShape


class RotaryTable(nn.Module):
    """Rotary angles of packed positions, as unit complex numbers.

    Buffer `inv_freq_bits`, int32 [head_width / 2], holds the float32 inverse frequencies bit by bit. Published ESM-2
    weights bring frequencies that were rounded through fp16, so they are state; and an integer buffer stays as it is
    when a module is cast to bf16, which would turn positions beyond a few hundred into noise.
    """

    def __init__(self, head_width: int) -> None:
        super().__init__()
        self.register_buffer("inv_freq_bits", default_inv_freq(head_width).view(torch.int32))

    @property
    def inv_freq(self) -> Tensor:
        """float32 [head_width / 2]."""
        return self.inv_freq_bits.view(torch.float32)

    def forward(self, positions: Tensor) -> Tensor:
        """complex64 [T, head_width / 2] of int64 [T]."""
        angles = positions[:, None].float() * self.inv_freq
        return torch.polar(torch.ones_like(angles), angles)


def default_inv_freq(head_width: int) -> Tensor:
    """float32 [head_width / 2]: base ** (-2 j / head_width), rounded as fair-esm, transformers and AMPLIFY round it."""
    return 1.0 / (ROTARY_BASE ** (torch.arange(0, head_width, 2).float() / head_width))


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Turn neighbouring feature pairs (2j, 2j + 1) of x [T, ..., head_width] by rotary [T, head_width / 2]."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    turned = pairs * rotary.view(rotary.shape[0], *[1] * (x.ndim - 2), rotary.shape[1])
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)


def packed_attention(qk: Tensor, value: Tensor, lengths: Sequence[int]) -> Tensor:
    """Softmax attention within each protein: the one place that chooses a backend.

    Args:
        qk: [T, 2, H, d], rotated queries and keys.
        value: [T, H, d].
        lengths: tokens of each protein, summing to T.

    Returns:
        [T, H, d].
    """
    outputs = []
    runs = [(length, len(list(group))) for length, group in groupby(lengths)]
    sizes = [length * count for length, count in runs]
    for (length, count), qk_run, value_run in zip(runs, qk.split(sizes), value.split(sizes), strict=True):
        # Neighbours of equal length (samplers sort packs) share one call; reshaping a run of rows costs no copy.
        query, key = qk_run.unflatten(0, (count, length)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value_run.unflatten(0, (count, length)).transpose(1, 2))
        outputs.append(mixed.transpose(1, 2).flatten(0, 1))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def explicit_attention(qk: Tensor, value: Tensor, lengths: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """`packed_attention` with its probabilities written out, for evaluation: [T, H, d] and per protein [H, n, n]."""
    outputs, maps = [], []
    for qk_one, value_one in zip(qk.split(list(lengths)), value.split(list(lengths)), strict=True):
        query, key = qk_one.permute(1, 2, 0, 3).unbind(0)
        probabilities = ((query * query.shape[-1] ** -0.5) @ key.transpose(1, 2)).float().softmax(-1)
        maps.append(probabilities)
        outputs.append((probabilities.to(value.dtype) @ value_one.transpose(0, 1)).transpose(0, 1))
    return torch.cat(outputs), maps


class SelfAttention(nn.Module):
    """Multi-head attention with one fused projection; rows of q and k pair neighbouring features for the rotation.

    Released ESM-2 weights pair feature j with j + d/2 instead: a permutation of rows, done when weights are read or
    written (`names.py`), which leaves every dot product the same and the rotation free of strided copies.
    """

    def __init__(self, shape: TrunkShape, bias: bool) -> None:
        super().__init__()
        self.heads = shape.heads
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=bias)
        self.out = nn.Linear(shape.width, shape.width, bias=bias)

    def forward(
        self, x: Tensor, rotary: Tensor, lengths: Sequence[int], maps: list[list[Tensor]] | None = None
    ) -> Tensor:
        """[T, D] -> [T, D]; when `maps` is given, this layer's probabilities (per protein [H, n, n]) are appended."""
        qk, value = self.qkv(x).view(x.shape[0], 3, self.heads, -1).split((2, 1), dim=1)
        qk, value = rotate(qk, rotary), value.squeeze(1)
        if maps is None:
            mixed = packed_attention(qk, value, lengths)
        else:
            mixed, layer_maps = explicit_attention(qk, value, lengths)
            maps.append(layer_maps)
        return self.out(mixed.flatten(1))
