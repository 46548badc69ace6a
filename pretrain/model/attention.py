"""Self-attention over packed sequences with rotary positions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.attention.varlen import varlen_attn

from configs.errors import UserError
from pretrain.model import half_attention
from pretrain.model.linear import Linear
from pretrain.model.shape import NORM_EPS, ROTARY_BASE, TrunkShape

SDPA, VARLEN = "sdpa", "varlen"


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


@dataclass(frozen=True)
class Layout:
    """How packed proteins lie in T tokens: made once per batch, used by every layer."""

    lengths: tuple[int, ...]
    """Tokens of each of P proteins."""
    rotary: Tensor
    """float32 [T, head_width / 2, 2]: cosine and sine of every position's angles."""
    cu_seqlens: Tensor | None = None
    """int32 [P + 1]: where each protein begins, and T; None where proteins are attended to one by one."""

    @classmethod
    def of(cls, lengths: Sequence[int], table: RotaryTable, device: torch.device, backend: str = SDPA) -> "Layout":
        """For proteins of these lengths, laid end to end."""
        sizes = torch.tensor(lengths)
        ends = sizes.cumsum(0)
        positions = torch.arange(int(ends[-1])) - (ends - sizes).repeat_interleave(sizes)
        rotary = torch.view_as_real(table(positions.to(device)))
        cu_seqlens = F.pad(ends, (1, 0)).to(device, torch.int32) if backend == VARLEN else None
        return cls(tuple(lengths), rotary, cu_seqlens)


def choose_backend(asked: str, device: torch.device, dtype: torch.dtype, head_width: int) -> str:
    """`sdpa` or `varlen`, for engine.attention `asked`.

    Raises:
        UserError: varlen is asked for and cannot be had here.
    """
    problem = _without_varlen(device, dtype, head_width)
    if asked == VARLEN and problem:
        raise UserError(f"engine.attention is varlen, but {problem}; use engine.attention=sdpa or auto")
    return SDPA if asked == SDPA or problem else VARLEN


def _without_varlen(device: torch.device, dtype: torch.dtype, head_width: int) -> str | None:
    """Why torch's variable-length flash kernel cannot run; None if it can."""
    if device.type != "cuda":
        return f"the device is {device.type!r} and its kernel is for CUDA"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"the precision is {dtype} and its kernel takes bf16 and fp16 only (engine.precision=bf16)"
    if head_width % 8 or head_width > 256:
        return f"heads are {head_width} wide and its kernel takes multiples of 8 up to 256"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return f"the device is of compute capability {capability[0]}.{capability[1]} and its kernel needs 8.0"
    return None


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Turn neighbouring feature pairs (2j, 2j + 1) of x [T, ..., head_width] by rotary [T, head_width / 2, 2]."""
    wide = _wide(x).unflatten(-1, (-1, 2))
    rotary = rotary.view(rotary.shape[0], *[1] * (x.ndim - 2), *rotary.shape[1:])
    if torch.compiler.is_compiling():
        # Compilers fuse this into one pass, but know no complex numbers.
        (even, odd), (cos, sin) = wide.unbind(-1), rotary.unbind(-1)
        turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(wide) * torch.view_as_complex(rotary))
    return turned.flatten(-2).to(x.dtype)


def packed_attention(qkv: Tensor, layout: Layout) -> Tensor:
    """Softmax attention within each protein: the one place that runs a backend.

    Args:
        qkv: [T, 3, H, d], queries and keys not yet rotated; on a CPU they may be rotated where they lie.

    Returns:
        [T, H, d].
    """
    if qkv.device.type == "cpu":
        return _cpu_attention(qkv, layout)
    qk, value = qkv.split((2, 1), dim=1)
    return _attend(rotate(qk, layout.rotary), value.squeeze(1), layout)


# Lengths differ in every pack; a compiler that saw them would compile anew for each.
@torch.compiler.disable
def _attend(qk: Tensor, value: Tensor, layout: Layout) -> Tensor:
    """[T, H, d] of rotated queries and keys [T, 2, H, d] and values [T, H, d]: in one call, or one for each run."""
    if layout.cu_seqlens is not None:
        longest = max(layout.lengths)
        return varlen_attn(*qk.unbind(1), value, layout.cu_seqlens, layout.cu_seqlens, longest, longest)
    outputs = []
    for rows, shape in _runs(layout.lengths):
        query, key, values = (_heads_first(x, rows, shape) for x in (*qk.unbind(1), value))
        outputs.append(F.scaled_dot_product_attention(query, key, values).transpose(1, 2).flatten(0, 1))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _runs(lengths: Sequence[int]) -> Iterator[tuple[slice, tuple[int, int]]]:
    """Rows and (proteins, tokens of each) of every run of neighbours of equal length, which share one call."""
    begin = 0
    for length, group in groupby(lengths):
        count = len(list(group))
        yield slice(begin, begin + count * length), (count, length)
        begin += count * length


def _heads_first(x: Tensor, rows: slice, shape: tuple[int, int]) -> Tensor:
    """View [proteins, H, n, d] of a run in x [T, H, d]; reshaping a run of rows costs no copy."""
    return x[rows].unflatten(0, shape).transpose(1, 2)


@torch.compiler.disable
def _cpu_attention(qkv: Tensor, layout: Layout) -> Tensor:
    if not (torch.is_grad_enabled() and qkv.requires_grad) and half_attention.helps(qkv):
        return half_attention.half_attention(qkv, layout.rotary, layout.lengths)
    return _CpuAttention.apply(qkv, layout.rotary, layout.lengths)


class _CpuAttention(torch.autograd.Function):
    """Rotation in place and torch's fused CPU attention run by run, with one buffer for the gradient of qkv.

    The same kernels as `scaled_dot_product_attention`; what autograd would add are eight copies of queries, keys and
    values (rotated ones, slices put together again), as much as a tenth of the attention itself.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, qkv: Tensor, rotary: Tensor, lengths: tuple[int, ...]) -> Tensor:
        _turn(qkv[:, :2], rotary, 1)
        outputs, logs = [], []
        for rows, shape in _runs(lengths):
            query, key, value = (_heads_first(x, rows, shape) for x in qkv.unbind(1))
            mixed, log_sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)
            outputs.append(mixed.transpose(1, 2).flatten(0, 1))
            logs.append(log_sums)
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        ctx.save_for_backward(qkv, rotary, output, *logs)
        ctx.lengths = lengths
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        qkv, rotary, output, *logs = ctx.saved_tensors
        found = torch.empty_like(qkv)
        for (rows, shape), log_sums in zip(_runs(ctx.lengths), logs, strict=True):
            parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                _heads_first(gradient, rows, shape),
                *(_heads_first(x, rows, shape) for x in (*qkv.unbind(1), output)),
                log_sums,
                dropout_p=0.0,
                is_causal=False,
            )
            for into, part in zip(found.unbind(1), parts, strict=True):
                _heads_first(into, rows, shape).copy_(part)
        _turn(found[:, :2], rotary, -1)
        return found, None, None


def attention_with_log_sums(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax attention [H, n, d] of one protein's rotated [H, n, d] each, and the log [H, n] of its denominators."""
    if query.device.type == "cpu":
        parts = (x.unsqueeze(0) for x in (query, key, value))
        mixed, log_sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*parts)
        return mixed[0], log_sums[0]
    return _written_out(query, key, value)


def _written_out(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(1, 2)
    log_sums = scores.logsumexp(-1)
    return (scores - log_sums[..., None]).exp() @ value, log_sums


def _turn(x: Tensor, rotary: Tensor, direction: int) -> None:
    """Turn x [T, 2, H, d] where it lies by the angles of rotary, or back (-1)."""
    factors = torch.view_as_complex(rotary)[:, None, None]
    wide = _wide(x)
    pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)))
    pairs.mul_(factors if direction > 0 else factors.conj())
    if wide is not x:
        x.copy_(wide)


def _wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x if x.dtype == torch.float64 else x.float()


def explicit_attention(qkv: Tensor, layout: Layout) -> tuple[Tensor, list[Tensor]]:
    """`packed_attention` with its probabilities written out, for evaluation: [T, H, d] and per protein [H, n, n]."""
    outputs, maps = [], []
    qk, value = rotate(qkv[:, :2], layout.rotary), qkv[:, 2]
    for qk_one, value_one in zip(qk.split(layout.lengths), value.split(layout.lengths), strict=True):
        query, key = qk_one.permute(1, 2, 0, 3).unbind(0)
        probabilities = _wide((query * query.shape[-1] ** -0.5) @ key.transpose(1, 2)).softmax(-1)
        maps.append(probabilities)
        outputs.append((probabilities.to(value.dtype) @ value_one.transpose(0, 1)).transpose(0, 1))
    return torch.cat(outputs), maps


class SelfAttention(nn.Module):
    """Multi-head attention with one fused projection; rows of q and k pair neighbouring features for the rotation.

    ESM-C normalises queries and keys over their whole width first. Released ESM-2 and ESM-C weights pair feature j with
    j + d/2 instead: a permutation of rows, done when weights are read or written (`names.py`), which leaves every dot
    product the same and the rotation free of strided copies.
    """

    def __init__(self, shape: TrunkShape, bias: bool) -> None:
        super().__init__()
        self.heads = shape.heads
        self.qkv = Linear(shape.width, 3 * shape.width, bias=bias)
        self.out = Linear(shape.width, shape.width, bias=bias)
        self.normalised = shape.family == "esmc"
        if self.normalised:
            self.query_norm, self.key_norm = (nn.LayerNorm(shape.width, eps=NORM_EPS, bias=False) for _ in range(2))

    def forward(self, x: Tensor, layout: Layout, maps: list[list[Tensor]] | None = None) -> Tensor:
        """[T, D] -> [T, D]; when `maps` is given, this layer's probabilities (per protein [H, n, n]) are appended."""
        qkv = self.project(x)
        if maps is None:
            mixed = packed_attention(qkv, layout)
        else:
            mixed, layer_maps = explicit_attention(qkv, layout)
            maps.append(layer_maps)
        return self.out(mixed.flatten(1))

    def project(self, x: Tensor) -> Tensor:
        """[T, D] -> [T, 3, H, d]: queries, keys and values, the first two normalised where the family does so."""
        qkv = self.qkv(x)
        if self.normalised:
            query, key, value = qkv.chunk(3, dim=-1)
            qkv = torch.cat((self.query_norm(query), self.key_norm(key), value), dim=-1)
        return qkv.view(x.shape[0], 3, self.heads, -1)
