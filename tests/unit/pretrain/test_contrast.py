"""Tiled InfoNCE: tiles, precision, exclusion and empty pools."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.losses import contrast
from pretrain.losses.contrast import contrast_losses


def unit_rows(n: int, width: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, width, generator=generator, dtype=torch.float64), dim=-1).to(dtype)


def dense_losses(sequence, structure, scale, groups) -> tuple[torch.Tensor, torch.Tensor]:
    logits = scale * sequence @ structure.T
    same = groups[:, None] == groups[None, :]
    same.fill_diagonal_(False)
    logits = logits.masked_fill(same, -math.inf)
    target = torch.arange(len(logits))
    return tuple(F.cross_entropy(x, target, reduction="none") for x in (logits, logits.T))


def gradients(losses, weights, leaves) -> list[torch.Tensor]:
    total = sum((loss * weight).sum() for loss, weight in zip(losses, weights, strict=True))
    return torch.autograd.grad(total, leaves)


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 70),
    tile=st.integers(16, 40),
    num_groups=st.integers(1, 9),
    shuffled=st.booleans(),
    keep=st.booleans(),
    seed=st.integers(0, 9),
)
def test_any_tile_size_and_grouping_equals_the_dense_loss(
    n: int, tile: int, num_groups: int, shuffled: bool, keep: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    groups = torch.randint(0, num_groups, (n,), generator=generator)
    if not shuffled:
        groups = groups.sort().values
    sequence, structure = (unit_rows(n, 5, seed + k).requires_grad_() for k in (1, 2))
    scale = torch.tensor(11.0, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(2, n, generator=generator, dtype=torch.float64).round()
    leaves = [sequence, structure, scale]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contrast, "KEPT_BYTES", 2**26 if keep else 0)
        ours = contrast_losses(*leaves, groups, tile)
        got = gradients((ours.sequence_to_structure, ours.structure_to_sequence), weights, leaves)
    dense = dense_losses(*leaves, groups)
    expected = gradients(dense, weights, leaves)
    # float64 sums of at most 70 terms in another order
    torch.testing.assert_close(ours.sequence_to_structure, dense[0], rtol=0, atol=1e-11)
    torch.testing.assert_close(ours.structure_to_sequence, dense[1], rtol=0, atol=1e-11)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("scale", [14.3, 63.0, 100.0])
@pytest.mark.parametrize("opposite", [False, True])
def test_float32_stays_within_1e_5_of_float64_at_any_allowed_scale(scale: float, opposite: bool) -> None:
    n = 300
    sequence, structure = unit_rows(n, 16, 1), unit_rows(n, 16, 2)
    if opposite:
        # Every similarity is near -1: the smallest exponentials there can be.
        axis = unit_rows(1, 16, 3)
        sequence, structure = F.normalize(axis + 0.05 * sequence, dim=-1), F.normalize(-axis + 0.05 * structure, dim=-1)
    groups = torch.arange(n) // 20
    weights = torch.full((2, n), 1 / n, dtype=torch.float64)
    results = []
    for dtype in (torch.float32, torch.float64):
        # Rounded to float32 first: the comparison is of the computation, not of the inputs.
        leaves = [x.float().to(dtype).requires_grad_() for x in (sequence, structure, torch.tensor(scale))]
        ours = contrast_losses(*leaves, groups, tile=64)
        both = (ours.sequence_to_structure, ours.structure_to_sequence)
        results.append([*both, *gradients(both, weights.to(dtype), leaves)])
    for got, expected in zip(*results, strict=True):
        assert torch.isfinite(got).all()
        # A float32 similarity is off by 1e-7, so a loss by scale * 1e-7.
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=3e-5)


def test_residues_of_a_group_do_not_push_each_other_away() -> None:
    sequence = unit_rows(6, 4, 1).requires_grad_()
    structure = unit_rows(6, 4, 2)
    groups = torch.zeros(6, dtype=torch.int64)
    losses = contrast_losses(sequence, structure, torch.tensor(14.0), groups)
    (gradient,) = torch.autograd.grad(losses.sequence_to_structure.sum(), sequence)
    # Without a negative the positive has probability one: rounding of exp and log is all that is left.
    assert losses.sequence_to_structure.abs().max() < 1e-12
    assert gradient.abs().max() < 1e-12


def test_a_pool_without_residues_gives_empty_losses_and_zero_gradients() -> None:
    sequence, structure = (torch.zeros(0, 4, requires_grad=True) for _ in range(2))
    scale = torch.tensor(14.0, requires_grad=True)
    losses = contrast_losses(sequence, structure, scale, torch.zeros(0, dtype=torch.int64))
    (losses.sequence_to_structure.sum() + losses.structure_to_sequence.sum()).backward()
    assert losses.hit.shape == (0,)
    assert sequence.grad.shape == (0, 4)
    assert scale.grad.item() == 0.0


def test_a_hit_is_a_positive_above_every_negative() -> None:
    sequence = torch.eye(3)
    structure = torch.eye(3)[[0, 2, 1]]
    losses = contrast_losses(sequence, structure, torch.tensor(14.0), None)
    assert losses.hit.tolist() == [True, False, False]


def test_memory_grows_linearly_with_residues() -> None:
    sizes, width = (512, 2048), 8

    def largest_tensor(n: int) -> int:
        seen = []

        class Watch(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                result = func(*args, **(kwargs or {}))
                results = result if isinstance(result, tuple) else (result,)
                seen.extend(x.numel() for x in results if isinstance(x, torch.Tensor))
                return result

        leaves = [unit_rows(n, width, k, torch.float32).requires_grad_() for k in (1, 2)]
        with Watch():
            losses = contrast_losses(*leaves, torch.tensor(14.0), torch.arange(n) // 100, tile=128)
            (losses.sequence_to_structure.sum() + losses.structure_to_sequence.sum()).backward()
        return max(seen)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contrast, "KEPT_BYTES", 0)
        small, large = (largest_tensor(n) for n in sizes)
    # A tile is 16,384 numbers, the projections of 2,048 residues as many; a full matrix would be 4 million.
    assert small == large == 128 * 128
