"""The packed trunk: independence of proteins, states, maps, gradients, parameters."""

import pytest
import torch
from esm.model.esm2 import ESM2
from torch import Tensor

from configs.trunk import AMPLIFY_SIZES, ESM2_SIZES, TrunkConfig
from pretrain.model.attention import rotate
from pretrain.model.encoder import Encoder, token_dropout_scale
from pretrain.model.shape import TrunkShape, trunk_shape
from tests.parity.trunks import masked_proteins, pack, scrambled_encoder

SHAPES = [TrunkShape("esm2", 3, 48, 4), TrunkShape("amplify", 3, 48, 4)]
FAMILIES = pytest.mark.parametrize("shape", SHAPES, ids=["esm2", "amplify"])
# Unequal, equal neighbours (one batched call), a protein of one residue.
LENGTHS = (31, 12, 12, 1, 50, 12)


@FAMILIES
def test_packed_proteins_equal_one_by_one_in_any_order_with_their_gradients(shape: TrunkShape) -> None:
    encoder = scrambled_encoder(shape)
    proteins = masked_proteins(shape.family, LENGTHS)
    weight = torch.randn(1, 33, generator=torch.Generator().manual_seed(2))[:, : len(shape.alphabet)]

    def run(parts: list[list[Tensor]]) -> tuple[Tensor, dict[str, Tensor]]:
        """Hidden states of all proteins, and the gradients of a loss summed over all tokens."""
        encoder.zero_grad()
        states = []
        for part in parts:
            states.append(encoder(pack(part)))
            (encoder.lm_logits(states[-1]).log_softmax(-1) * weight).sum().div(sum(map(len, proteins))).backward()
        return torch.cat(states).detach(), {name: p.grad.clone() for name, p in encoder.named_parameters()}

    alone, wanted = run([[protein] for protein in proteins])
    for order in (proteins, proteins[::-1]):
        together, found = run([order])
        expected = alone if order is proteins else torch.cat(alone.split([len(p) for p in proteins])[::-1])
        # Same sums over the same rows; only the matrix products' blocking differs.
        torch.testing.assert_close(together, expected, atol=1e-5, rtol=1e-5)
        for name, gradient in found.items():
            # Relative to the parameter's largest gradient: sums of terms of either sign over all tokens.
            assert wanted[name].abs().max() > 1e-4, name
            assert (gradient - wanted[name]).abs().max() <= 1e-5 * max(1.0, wanted[name].abs().max()), name


@FAMILIES
@torch.no_grad()
def test_attention_maps_are_those_of_every_layer_and_give_the_same_states(shape: TrunkShape) -> None:
    encoder = scrambled_encoder(shape)
    packed = pack(masked_proteins(shape.family, LENGTHS))
    maps = encoder.attention_maps(packed)
    assert [tuple(m.shape) for m in maps] == [(shape.layers * shape.heads, n, n) for n in packed.lengths]
    # Probabilities: rows sum to 1 up to fp32 rounding.
    assert all(torch.allclose(m.sum(-1), torch.ones(m.shape[:2]), atol=1e-5) for m in maps)
    states = encoder.layer_states(packed)
    assert len(states) == shape.layers + 1
    assert torch.equal(states[-1], encoder(packed))


def test_rotation_depends_on_the_distance_of_positions_only() -> None:
    table = Encoder(SHAPES[0]).rotary
    x = torch.randn(2, 1, 12, generator=torch.Generator().manual_seed(1))

    def product(i: int, j: int) -> Tensor:
        a, b = rotate(x, torch.view_as_real(table(torch.tensor([i, j]))))
        return (a * b).sum()

    assert abs(product(3, 10) - product(103, 110)) < 1e-5  # angles of 100 radians in fp32
    assert abs(product(3, 10) - product(3, 12)) > 1e-2


def test_token_dropout_counts_each_protein_by_itself() -> None:
    mask = SHAPES[0].alphabet.mask_id
    tokens = torch.tensor([0, 5, mask, 2, 0, 5, 6, 2])
    scale = token_dropout_scale(tokens, (4, 4), mask)
    kept = 0.88 / (1 - 1 / 4)
    torch.testing.assert_close(scale, torch.tensor([kept, kept, 0, kept, 0.88, 0.88, 0.88, 0.88]))


@FAMILIES
def test_every_parameter_gets_a_gradient_equal_to_finite_differences(shape: TrunkShape) -> None:
    encoder = scrambled_encoder(TrunkShape(shape.family, 1, 16, 2)).double()
    packed = pack(masked_proteins(shape.family, (6, 6, 3)))
    targets = torch.randint(4, 20, packed.tokens.shape, generator=torch.Generator().manual_seed(0))

    def loss() -> Tensor:
        logits = encoder.lm_logits(encoder(packed))
        return torch.nn.functional.cross_entropy(logits, targets)

    loss().backward()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            step = 1e-3
            parameter.add_(step * direction)
            above = loss()
            parameter.sub_(2 * step * direction)
            below = loss()
            parameter.add_(step * direction)
        expected, got = (above - below) / (2 * step), (parameter.grad * direction).sum()
        # Rotation and RMSNorm compute in fp32: about 1e-7 / step of noise, plus the third order term.
        assert abs(expected - got) < 2e-3 * max(1.0, abs(expected)), name


def test_the_language_head_shares_the_embedding_and_trains_it() -> None:
    encoder = Encoder(SHAPES[0])
    assert encoder.lm_head.weight is encoder.embedding.weight
    assert "lm_head.weight" not in dict(encoder.named_parameters())
    rows = torch.randn(4, 48, generator=torch.Generator().manual_seed(0))
    encoder.lm_logits(rows).square().sum().backward()
    assert encoder.embedding.weight.grad.abs().sum() > 0


@FAMILIES
def test_bf16_cast_keeps_exact_rotary_angles(shape: TrunkShape) -> None:
    encoder = Encoder(shape)
    exact = encoder.rotary(torch.arange(3000))
    assert torch.equal(encoder.to(torch.bfloat16).rotary(torch.arange(3000)), exact)
    packed = pack(masked_proteins(shape.family))
    assert encoder(packed).dtype == torch.bfloat16


def test_published_sizes_have_as_many_parameters_as_the_published_models() -> None:
    def count(model: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in model.parameters())

    for name, size in (ESM2_SIZES | AMPLIFY_SIZES).items():
        with torch.device("meta"):
            ours = count(Encoder(trunk_shape(TrunkConfig(model=name))))
            if name in ESM2_SIZES:
                fair_esm = ESM2(*size)
                expected = count(fair_esm) - count(fair_esm.contact_head)
        if name in AMPLIFY_SIZES:
            layers, width, _ = size
            inner = {640: 1712, 960: 2560}[width]
            expected = layers * (4 * width**2 + 3 * width * inner + 2 * width) + 2 * 27 * width + 27 + width
        assert ours == expected, name
