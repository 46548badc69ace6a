"""Tiled InfoNCE: tiles, precision, exclusion and empty pools."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.distributed import Rows
from pretrain.losses import contrast, exclusion
from pretrain.losses.contrast import contrast_losses
from pretrain.losses.exclusion import Exclude, Exclusion


def unit_rows(n: int, width: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, width, generator=generator, dtype=torch.float64), dim=-1).to(dtype)


def dense_losses(sequence, structure, scale, exclude: Exclude) -> tuple[torch.Tensor, torch.Tensor]:
    logits = scale * sequence @ structure.T
    excluded = torch.zeros(len(logits), len(logits), dtype=torch.bool)
    same_chain = exclude.chain[:, None] == exclude.chain[None, :]
    if exclude.same_cluster:
        excluded |= (exclude.cluster[:, None] == exclude.cluster[None, :]) & ~same_chain
    if exclude.own_chain:
        excluded |= same_chain
    logits = logits.masked_fill(excluded.fill_diagonal_(False), -math.inf)
    target = torch.arange(len(logits))
    return tuple(F.cross_entropy(x, target, reduction="none") for x in (logits, logits.T))


def chains(lengths: list[int], clusters: list[int], same_cluster: bool = True, own_chain: bool = False) -> Exclude:
    chain = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return Exclude(chain, torch.tensor(clusters)[chain], same_cluster, own_chain)


def gradients(losses, weights, leaves) -> list[torch.Tensor]:
    total = sum((loss * weight).sum() for loss, weight in zip(losses, weights, strict=True))
    return torch.autograd.grad(total, leaves)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 25), min_size=1, max_size=8),
    tile=st.integers(16, 40),
    num_clusters=st.integers(1, 4),
    same_cluster=st.booleans(),
    own_chain=st.booleans(),
    dense=st.booleans(),
    keep=st.booleans(),
    seed=st.integers(0, 9),
)
def test_any_tile_size_chains_and_exclusion_equal_the_dense_loss(
    lengths: list[int],
    tile: int,
    num_clusters: int,
    same_cluster: bool,
    own_chain: bool,
    dense: bool,
    keep: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    n = sum(lengths)
    clusters = torch.randint(0, num_clusters, (len(lengths),), generator=generator).tolist()
    exclude = chains(lengths, clusters, same_cluster, own_chain)
    sequence, structure = (unit_rows(n, 5, seed + k).requires_grad_() for k in (1, 2))
    scale = torch.tensor(11.0, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(2, n, generator=generator, dtype=torch.float64).round()
    leaves = [sequence, structure, scale]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contrast, "KEPT_BYTES", 2**26 if keep else 0)
        patch.setattr(exclusion, "DENSE_BLOCKS", 0 if dense else 10**9)
        ours = contrast_losses(*leaves, exclude, tile)
        got = gradients((ours.sequence_to_structure, ours.structure_to_sequence), weights, leaves)
    plain = dense_losses(*leaves, exclude)
    expected = gradients(plain, weights, leaves)
    # float64 sums of at most 200 terms in another order
    torch.testing.assert_close(ours.sequence_to_structure, plain[0], rtol=0, atol=1e-11)
    torch.testing.assert_close(ours.structure_to_sequence, plain[1], rtol=0, atol=1e-11)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_many_short_homologous_chains_are_compared_rather_than_written_block_by_block() -> None:
    built = Exclusion(chains([2] * 40, [k % 2 for k in range(40)]), Rows.alone(80))
    tile = torch.ones(80, 80)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "__setitem__", lambda *_: pytest.fail("a block was written by itself"))
        built.clear(tile, 0, 0)
    # Of 40 x 40 pairs of chains half are of one cluster; the 40 pairs of a chain with itself stay.
    assert (tile == 0).sum() == (800 - 40) * 4


def test_a_chain_met_twice_is_no_negative_of_itself_but_its_own_run_is() -> None:
    # The same protein twice, end to end: one cluster, two chains.
    exclude = chains([3, 2, 2], [5, 5, 6])
    tile = torch.ones(7, 7)
    Exclusion(exclude, Rows.alone(7)).clear(tile, 0, 0)
    expected = torch.ones(7, 7)
    expected[:3, 3:5] = expected[3:5, :3] = 0
    assert torch.equal(tile, expected)


@pytest.mark.parametrize("scale", [14.3, 63.0, 100.0, 600.0])
@pytest.mark.parametrize("opposite", [False, True])
def test_float32_stays_close_to_float64_at_any_allowed_scale(scale: float, opposite: bool) -> None:
    n = 300
    sequence, structure = unit_rows(n, 16, 1), unit_rows(n, 16, 2)
    if opposite:
        # Every similarity is near -1: the smallest exponentials there can be.
        axis = unit_rows(1, 16, 3)
        sequence, structure = F.normalize(axis + 0.05 * sequence, dim=-1), F.normalize(-axis + 0.05 * structure, dim=-1)
    exclude = chains([20] * 15, list(range(15)), own_chain=True)
    weights = torch.full((2, n), 1 / n, dtype=torch.float64)
    results = []
    for dtype in (torch.float32, torch.float64):
        # Rounded to float32 first: the comparison is of the computation, not of the inputs.
        leaves = [x.float().to(dtype).requires_grad_() for x in (sequence, structure, torch.tensor(scale))]
        ours = contrast_losses(*leaves, exclude, tile=64)
        both = (ours.sequence_to_structure, ours.structure_to_sequence)
        results.append([*both, *gradients(both, weights.to(dtype), leaves)])
    for got, expected in zip(*results, strict=True):
        assert torch.isfinite(got).all()
        # A float32 similarity is off by 1e-7, so a loss by scale * 1e-7.
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=max(3e-5, scale * 3e-7))


def test_without_a_negative_nothing_is_pushed_away() -> None:
    sequence = unit_rows(6, 4, 1).requires_grad_()
    structure = unit_rows(6, 4, 2)
    exclude = chains([4, 2], [0, 0], own_chain=True)
    losses = contrast_losses(sequence, structure, torch.tensor(14.0), exclude)
    (gradient,) = torch.autograd.grad(losses.sequence_to_structure.sum(), sequence)
    # Without a negative the positive has probability one: rounding of exp and log is all that is left.
    assert losses.sequence_to_structure.abs().max() < 1e-12
    assert gradient.abs().max() < 1e-12


def test_a_pool_without_residues_gives_empty_losses_and_zero_gradients() -> None:
    sequence, structure = (torch.zeros(0, 4, requires_grad=True) for _ in range(2))
    scale = torch.tensor(14.0, requires_grad=True)
    nothing = torch.zeros(0, dtype=torch.int64)
    losses = contrast_losses(sequence, structure, scale, Exclude(nothing, nothing, same_cluster=True, own_chain=False))
    (losses.sequence_to_structure.sum() + losses.structure_to_sequence.sum()).backward()
    assert losses.hit.shape == (0,)
    assert sequence.grad.shape == (0, 4)
    assert scale.grad.item() == 0.0


def test_a_hit_is_a_positive_above_every_negative() -> None:
    sequence = torch.eye(3)
    structure = torch.eye(3)[[0, 2, 1]]
    losses = contrast_losses(sequence, structure, torch.tensor(14.0))
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
            exclude = chains([128] * (n // 128), [0] * (n // 128))
            losses = contrast_losses(*leaves, torch.tensor(14.0), exclude, tile=128)
            (losses.sequence_to_structure.sum() + losses.structure_to_sequence.sum()).backward()
        return max(seen)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contrast, "KEPT_BYTES", 0)
        small, large = (largest_tensor(n) for n in sizes)
    # A tile is 16,384 numbers, the projections of 2,048 residues as many; a full matrix would be 4 million.
    assert small == large == 128 * 128
