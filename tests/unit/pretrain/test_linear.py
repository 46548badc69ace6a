"""Linear layers on oneDNN against float64 products."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.model import linear as module
from pretrain.model.linear import Linear, fits_onednn, linear, multiplies_bf16

# (rows, inputs, outputs): either side the wider, one row, one output, sizes of no round number.
SIZES = pytest.mark.parametrize("size", [(50, 24, 96), (50, 96, 24), (1, 33, 17), (257, 40, 1), (300, 320, 960)])


def tensors(size: tuple[int, int, int], dtype: torch.dtype) -> list[Tensor]:
    rows, inputs, outputs = size
    generator = torch.Generator().manual_seed(0)
    shapes = [(rows, inputs), (outputs, inputs), (outputs,)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def gradients(output: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.dtype)
    return torch.autograd.grad((output * weight).sum(), leaves)


@SIZES
@pytest.mark.parametrize("bias", [True, False])
def test_products_and_gradients_equal_those_in_float64(size: tuple[int, int, int], bias: bool) -> None:
    leaves, exact = (tensors(size, dtype)[: 2 + bias] for dtype in (torch.float32, torch.float64))
    if not module.HAS_ONEDNN:
        pytest.skip("this build of torch has no oneDNN")
    assert fits_onednn(*leaves[:2])
    output, expected = linear(*leaves), F.linear(*exact)
    pairs = [(output, expected), *zip(gradients(output, leaves), gradients(expected, exact), strict=True)]
    for ours, theirs in pairs:
        assert ours.dtype == torch.float32
        assert ours.is_contiguous()
        # Sums of up to 960 products of order 1: fp32 rounding relative to the largest.
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max().clamp(min=1)


def test_rows_in_more_dimensions_and_gradients_that_are_not_asked_for() -> None:
    x, weight, bias = tensors((12, 24, 96), torch.float32)
    grouped = linear(x.detach().view(3, 4, 24), weight, bias.detach())
    torch.testing.assert_close(grouped, F.linear(x, weight, bias).view(3, 4, 96), atol=1e-5, rtol=0)
    grouped.sum().backward()
    assert x.grad is None
    assert bias.grad is None
    assert weight.grad is not None


def test_other_types_and_tracing_take_torchs_own_product() -> None:
    for dtype in (torch.float64, torch.bfloat16):
        x, weight, bias = tensors((5, 8, 16), dtype)
        assert not fits_onednn(x, weight)
        assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    x, weight, bias = tensors((5, 8, 16), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight, bias).dtype == torch.bfloat16
    assert linear(x[:0], weight, bias).shape == (0, 16)


@pytest.mark.skipif(not multiplies_bf16(), reason="this CPU has no instructions for products of bfloat16")
@pytest.mark.parametrize("biased", [True, False])
def test_bfloat16_without_gradients_is_torchs_product_bit_by_bit(biased: bool) -> None:
    x, weight, bias = tensors((70, 96, 64), torch.bfloat16)
    with torch.no_grad():
        assert fits_onednn(x, weight)
        ours = linear(x, weight, bias if biased else None)
        assert torch.equal(ours, F.linear(x, weight, bias if biased else None))
    assert not ours.requires_grad


def test_bfloat16_is_left_to_torch_where_the_cpu_does_not_multiply_it(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, _ = tensors((5, 8, 16), torch.bfloat16)
    with torch.no_grad():
        for capabilities in ({"avx512_bf16": False}, {}):
            monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
            assert not fits_onednn(x, weight)
        monkeypatch.delattr(torch.cpu, "get_capabilities")
        assert not fits_onednn(x, weight)


def test_the_layer_is_an_nn_linear_with_its_names() -> None:
    layer = Linear(8, 16)
    assert isinstance(layer, nn.Linear)
    assert list(layer.state_dict()) == ["weight", "bias"]
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))
