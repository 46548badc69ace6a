"""bfloat16 attention through exponentials made by sigmoids, against float64."""

import pytest
import torch
from torch import Tensor

from pretrain.model import attention, half_attention
from pretrain.model.attention import Layout, RotaryTable, packed_attention
from pretrain.model.linear import multiplies_bf16

HEADS, WIDTH = 3, 16
LENGTHS = (40, 7, 130)
pytestmark = pytest.mark.skipif(not multiplies_bf16(), reason="this CPU has no instructions for products of bfloat16")


def make_qkv(scale: float = 1.0) -> Tensor:
    qkv = torch.randn(sum(LENGTHS), 3, HEADS, WIDTH, generator=torch.Generator().manual_seed(0))
    qkv[:, 0] *= scale
    return qkv.bfloat16()


def layout() -> Layout:
    return Layout.of(LENGTHS, RotaryTable(WIDTH), torch.device("cpu"))


def error(found: Tensor, qkv: Tensor) -> float:
    exact = packed_attention(qkv.double(), layout())
    return float((found.double() - exact).abs().max())


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short proteins too go through sigmoids."""
    monkeypatch.setattr(half_attention, "_FEWEST_PRODUCTS", 0)


@pytest.mark.parametrize("scale", [0.01, 1.0, 6.0], ids=["flat", "usual", "peaked"])
@pytest.mark.parametrize("by_sigmoid", [True, False])
def test_attention_is_as_exact_as_bfloat16_allows(
    scale: float, by_sigmoid: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(half_attention, "_FEWEST_PRODUCTS", 0 if by_sigmoid else float("inf"))
    qkv = make_qkv(scale)
    before = qkv.clone()
    found = half_attention.half_attention(qkv, layout().rotary, LENGTHS)
    assert found.dtype == torch.bfloat16
    assert torch.equal(qkv, before)
    # Queries and keys are rounded after rotation: scores of up to 6 * 16 / 4 are off by their 2 ** -9.
    assert error(found, qkv) <= 0.02 * max(1.0, scale)


@pytest.mark.usefixtures("everywhere")
def test_rows_whose_exponentials_underflow_are_computed_by_torch() -> None:
    qkv = make_qkv()
    # Queries that oppose every key but for a small part: no score is near the product of the norms.
    qkv[:, 1] = qkv[:, 1].abs() + 20
    qkv[:, 0] = -qkv[:, 0].abs() - 20
    plain = layout().rotary.clone()
    plain[..., 0], plain[..., 1] = 1, 0
    turned = torch.stack((qkv[:40, 0].float() * WIDTH**-0.5, qkv[:40, 1].float()), dim=1)
    assert half_attention._by_sigmoid(turned, qkv[:40, 2]) is None
    found = half_attention.half_attention(qkv, plain, LENGTHS)[:40].double()
    query, key, value = qkv[:40].double().permute(1, 2, 0, 3)
    exact = ((query @ key.transpose(1, 2) * WIDTH**-0.5).softmax(-1) @ value).transpose(0, 1)
    assert float((found - exact).abs().max()) <= 0.02


@pytest.mark.usefixtures("everywhere")
def test_not_a_number_stays_in_its_protein() -> None:
    qkv = make_qkv()
    qkv[41, 1] = float("nan")
    found = half_attention.half_attention(qkv, layout().rotary, LENGTHS)
    assert found[40:47].isnan().all()
    assert found[:40].isfinite().all()
    assert found[47:].isfinite().all()


def test_it_is_taken_without_gradients_in_bfloat16_on_cpus_without_matrix_units(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = []
    monkeypatch.setattr(attention.half_attention, "half_attention", lambda qkv, *_: taken.append(qkv.dtype) or qkv)
    for capabilities, expected in (
        ({"avx512_bf16": True, "amx_tile": False}, True),
        ({"avx512_bf16": True, "amx_tile": True}, False),
        ({"avx512_bf16": False}, False),
        ({}, False),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert half_attention.helps(make_qkv()) == expected
        assert not half_attention.helps(make_qkv().float())
        taken.clear()
        with torch.no_grad():
            packed_attention(make_qkv(), layout())
            packed_attention(make_qkv().float(), layout())
        packed_attention(make_qkv().requires_grad_() * 1, layout())
        assert taken == [torch.bfloat16] * expected
