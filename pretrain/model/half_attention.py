"""Softmax attention in bfloat16 on CPUs that multiply bfloat16 in vector units but not in matrix units (AMX).

On these torch's fused kernel is slower in bfloat16 than in float32. Here oneDNN multiplies in bfloat16 and takes the
exponential in the same pass: sigmoid(x) = exp(x) / (1 + exp(x)) is exp(x) to float32's precision where x < -17, and
by Cauchy and Schwarz every score of a query q is at least 17 below zero after |q| max|k| + 17 is taken from it, which
softmax does not see. A row of ones among the values gives the denominators. Scores and sums are float32 inside the
products; probabilities are rounded to bfloat16, as in torch's kernel. Forward only.
"""

import torch
from torch import Tensor

from pretrain.model.linear import has_matrix_units, multiplies_bf16

_MARGIN = 17.0
"""exp(-17) is 2 ** -24.5."""
_SMALLEST_SUM = 1e-30
"""Of exp(score - bound) over a row: below, terms that count would leave the range of floats."""
_FEWEST_PRODUCTS = 1.25e6
"""n^2 d from which two calls of oneDNN for each head cost less than torch's kernel in float32: 280 tokens at d = 16,
140 at d = 64."""


def helps(x: Tensor) -> bool:
    """Whether attention without gradients of x is faster here than in torch's own kernel."""
    suits = x.dtype == torch.bfloat16 and x.device.type == "cpu" and not torch.compiler.is_compiling()
    return suits and multiplies_bf16() and not has_matrix_units()


def half_attention(qkv: Tensor, rotary: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """[T, H, d] of packed proteins.

    Args:
        qkv: bfloat16 [T, 3, H, d], queries and keys not rotated.
        rotary: float32 [T, d / 2, 2], cosine and sine of every position's angles.
        lengths: of the proteins in it.
    """
    scale = qkv.new_tensor((qkv.shape[-1] ** -0.5, 1.0), dtype=torch.float32)[:, None, None]
    factors = torch.view_as_complex(rotary)[:, None, None] * scale
    output = torch.empty_like(qkv[:, 0])
    begin = 0
    for length in lengths:
        rows = slice(begin, begin + length)
        turned = qkv[rows, :2].float()
        torch.view_as_complex(turned.unflatten(-1, (-1, 2))).mul_(factors[rows])
        worth = length**2 * qkv.shape[-1] >= _FEWEST_PRODUCTS
        found = _by_sigmoid(turned, qkv[rows, 2]) if worth else None
        output[rows] = _fused(turned, qkv[rows, 2]) if found is None else found
        begin = rows.stop
    return output


def _by_sigmoid(turned: Tensor, value: Tensor) -> Tensor | None:
    """[n, H, d] of one protein's queries and keys, float32 [n, 2, H, d]; None where exponentials underflow."""
    n, _, heads, width = turned.shape
    # A product with ones is faster than torch's reduction of short rows.
    norms = (turned.square() @ turned.new_ones(width)).sqrt()
    bias = (norms[:, 0] * norms[:, 1].amax(0) + _MARGIN).to(value.dtype).t().contiguous().neg_()
    queries, keys = turned.to(value.dtype).permute(1, 2, 0, 3).contiguous()
    values = value.new_ones(heads, width + 1, n)
    values[:, :width] = value.permute(1, 2, 0)
    sums = torch.empty_like(values)
    for query, key, less, own, into in zip(queries, keys, bias, values, sums, strict=True):
        # Keys by queries, so that what is taken from a query's scores is the bias of its column.
        exponentials = torch.ops.mkldnn._linear_pointwise(key, query, less, "sigmoid", [], "")
        torch.mm(own, exponentials, out=into)
    denominators = sums[:, width:]
    if denominators.amin() < _SMALLEST_SUM:
        return None
    return (sums[:, :width] / denominators).permute(2, 0, 1)


def _fused(turned: Tensor, value: Tensor) -> Tensor:
    """[n, H, d] of the same by torch's kernel in float32."""
    parts = (x.transpose(0, 1)[None] for x in (*turned.unbind(1), value.float()))
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*parts, scale=1.0)[0][0].transpose(0, 1)
