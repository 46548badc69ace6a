"""Attention over packed proteins: every backend against the one written out, gradients, and who chooses."""

import itertools

import pytest
import torch
from torch import Tensor

from configs.errors import UserError
from pretrain.model import attention
from pretrain.model.attention import (
    Layout,
    RotaryTable,
    choose_backend,
    explicit_attention,
    packed_attention,
    rotate,
)

HEADS, WIDTH = 3, 8
# Runs of equal neighbours, lone ones, one token.
LENGTHS = (5, 7, 7, 7, 1, 5)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def make_qkv(dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(sum(LENGTHS), 3, HEADS, WIDTH, generator=generator, dtype=dtype)


def make_layout(backend: str = "sdpa") -> Layout:
    return Layout.of(LENGTHS, RotaryTable(WIDTH), CPU, backend)


def gradient(output: Tensor, qkv: Tensor) -> Tensor:
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)
    return torch.autograd.grad((output * weight).sum(), qkv)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_attention_run_by_run_equals_the_one_written_out_with_its_gradients(dtype: torch.dtype) -> None:
    qkv = make_qkv(dtype).requires_grad_()
    expected, _ = explicit_attention(qkv, make_layout())
    # A copy, as queries and keys are rotated where they lie.
    output = packed_attention(qkv.clone(), make_layout())
    # Rotary angles are float32 in either; sums of at most 8 terms of order 1.
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(output, expected, atol=tolerance, rtol=0)
    torch.testing.assert_close(gradient(output, qkv), gradient(expected, qkv), atol=5 * tolerance, rtol=0)


def test_the_gradient_of_attention_is_that_of_finite_differences() -> None:
    qkv = make_qkv(torch.float64)[:13].requires_grad_()
    layout = Layout.of((6, 3, 3, 1), RotaryTable(WIDTH), CPU)
    assert torch.autograd.gradcheck(lambda x: packed_attention(x.clone(), layout), qkv)


def test_bf16_attention_rotates_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention.half_attention, "helps", lambda _: False)
    qkv = make_qkv(torch.bfloat16)
    rotated = rotate(qkv[:, :2].float(), make_layout().rotary).bfloat16()
    packed_attention(qkv, make_layout())
    assert torch.equal(qkv[:, :2], rotated)


def test_positions_begin_anew_in_every_protein() -> None:
    table = RotaryTable(WIDTH)
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    assert torch.equal(torch.view_as_complex(make_layout().rotary), table(positions))


@pytest.fixture
def plain_varlen(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """In place of the kernel: the same signature over plain softmax, and a path that a CPU tensor takes to it."""
    calls: list[tuple] = []

    def kernel(query: Tensor, key: Tensor, value: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int) -> Tensor:
        calls.append((cu_q, cu_k, max_q, max_k))
        assert query.shape == key.shape == value.shape
        assert all(t.stride(-1) == 1 for t in (query, key, value))
        outputs = []
        for begin, end in itertools.pairwise(cu_q.tolist()):
            q, k, v = (t[begin:end].transpose(0, 1) for t in (query, key, value))
            outputs.append((q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).softmax(-1) @ v)
        return torch.cat([output.transpose(0, 1) for output in outputs])

    monkeypatch.setattr(attention, "varlen_attn", kernel)
    return calls


def test_the_varlen_kernel_gets_rotated_queries_and_the_bounds_of_all_proteins(plain_varlen: list[tuple]) -> None:
    layout, qkv = make_layout("varlen"), make_qkv().requires_grad_()
    expected, _ = explicit_attention(qkv, layout)
    output = attention._attend(rotate(qkv[:, :2], layout.rotary), qkv[:, 2], layout)
    ((cu_q, cu_k, max_q, max_k),) = plain_varlen
    assert cu_q.tolist() == [0, 5, 12, 19, 26, 27, 32]
    assert cu_q.dtype == torch.int32
    assert cu_k is cu_q is layout.cu_seqlens
    assert max_q == max_k == 7
    # The same softmax; sums of at most 8 terms of order 1.
    torch.testing.assert_close(output, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(gradient(output, qkv), gradient(expected, qkv), atol=5e-6, rtol=0)


def test_attention_protein_by_protein_outside_the_cpu_equals_the_one_written_out() -> None:
    layout, qkv = make_layout(), make_qkv()
    output = attention._attend(rotate(qkv[:, :2], layout.rotary), qkv[:, 2], layout)
    torch.testing.assert_close(output, explicit_attention(qkv, layout)[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("asked", "device", "dtype", "width", "capability", "chosen"),
    [
        ("auto", CPU, torch.float32, 64, (0, 0), "sdpa"),
        ("auto", CPU, torch.bfloat16, 64, (0, 0), "sdpa"),
        ("auto", CUDA, torch.float32, 64, (9, 0), "sdpa"),
        ("auto", CUDA, torch.bfloat16, 64, (9, 0), "varlen"),
        ("auto", CUDA, torch.bfloat16, 64, (7, 5), "sdpa"),
        ("auto", CUDA, torch.bfloat16, 20, (9, 0), "sdpa"),
        ("sdpa", CUDA, torch.bfloat16, 64, (9, 0), "sdpa"),
        ("varlen", CUDA, torch.bfloat16, 16, (8, 0), "varlen"),
    ],
)
def test_auto_takes_varlen_where_its_kernel_runs(
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
    device: torch.device,
    dtype: torch.dtype,
    width: int,
    capability: tuple[int, int],
    chosen: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert choose_backend(asked, device, dtype, width) == chosen


@pytest.mark.parametrize(
    ("device", "dtype", "width", "capability", "said"),
    [
        (CPU, torch.bfloat16, 64, (0, 0), "the device is 'cpu'"),
        (CUDA, torch.float32, 64, (9, 0), "engine.precision=bf16"),
        (CUDA, torch.bfloat16, 20, (9, 0), "heads are 20 wide"),
        (CUDA, torch.bfloat16, 512, (9, 0), "heads are 512 wide"),
        (CUDA, torch.bfloat16, 64, (7, 5), "compute capability 7.5"),
    ],
)
def test_varlen_that_cannot_be_had_is_a_users_error(
    monkeypatch: pytest.MonkeyPatch,
    device: torch.device,
    dtype: torch.dtype,
    width: int,
    capability: tuple[int, int],
    said: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    with pytest.raises(UserError, match=said) as raised:
        choose_backend("varlen", device, dtype, width)
    assert "engine.attention=sdpa" in str(raised.value)


def test_log_sums_are_of_the_denominators_and_alike_on_every_device() -> None:
    query, key, value = make_qkv(torch.float64).permute(1, 2, 0, 3)
    scores = query @ key.transpose(1, 2) * WIDTH**-0.5
    for found in (attention.attention_with_log_sums(query, key, value), attention._written_out(query, key, value)):
        torch.testing.assert_close(found[0], scores.softmax(-1) @ value)
        torch.testing.assert_close(found[1], scores.logsumexp(-1))
