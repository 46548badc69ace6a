"""Linear layers whose matrix products run in oneDNN on CPUs: float32, and bfloat16 without gradients.

torch hands float32 products to MKL, which leaves half of the vector width of AMD's AVX-512 CPUs unused: on such a CPU
oneDNN took 0.42 to 0.48 of MKL's time for the forward and the input gradient of ESM-2's layers (8M, 35M; 2,048 tokens)
and 0.5 to 0.65 for the weight gradient. For bfloat16 torch calls oneDNN itself but writes the bias into the output
first: without that 0.92 of the time (8M, 1,280 tokens), to the same bits. Elsewhere (other devices and types, torch
without oneDNN) this is `F.linear`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def multiplies_bf16() -> bool:
    """Whether this CPU has instructions for products of bfloat16, and oneDNN is there to use them."""
    return HAS_ONEDNN and _has("avx512_bf16")


def has_matrix_units() -> bool:
    """Whether this CPU has AMX."""
    return _has("amx_tile")


def _has(instructions: str) -> bool:
    """Whether torch knows the CPU to have them; older versions do not say."""
    return bool(getattr(torch.cpu, "get_capabilities", dict)().get(instructions))


class Linear(nn.Linear):
    """`nn.Linear` with the products of this module; adapters and wrappers that know nn.Linear know it too."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[..., outputs] of x [..., inputs] and weight [outputs, inputs]."""
    if not fits_onednn(x, weight):
        return F.linear(x, weight, bias)
    return _OnednnLinear.apply(x, weight, bias) if torch.is_grad_enabled() else product(x, weight, bias)


def fits_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether the product of these goes to oneDNN; never while tracing, where compilers know torch's own better."""
    return (
        HAS_ONEDNN
        and x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype
        and (x.dtype == torch.float32 or _half_without_gradients(x))
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _half_without_gradients(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16 and not torch.is_grad_enabled() and multiplies_bf16()


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a [..., k] @ b [n, k].T + bias [n], float32 or bfloat16 on the CPU, by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")


class _OnednnLinear(torch.autograd.Function):
    """x @ weight.T + bias and its gradients."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        return (
            product(gradient, weight.t()) if needs_x else None,
            weight_gradient(rows, x.reshape(-1, x.shape[-1])) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
        )


def weight_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """gradient [T, outputs].T @ x [T, inputs]; oneDNN copies its first factor transposed, so that is the narrower."""
    if gradient.shape[1] <= x.shape[1]:
        return product(gradient.t(), x.t())
    return product(x.t(), gradient.t()).t().contiguous()
