"""The first layer of masked copies from that of their wild type, against the layer run on each copy."""

import pytest
import torch
from torch import Tensor

from eval import shared_layer
from eval.models.checkpoint_model import pack
from eval.shared_layer import SharedLayer
from pretrain.model.encoder import Encoder
from pretrain.model.shape import TrunkShape

FAMILIES = pytest.mark.parametrize("family", ["esm2", "amplify", "esmc"])
PLACES = torch.tensor([1, 5, 30, 38])


def make_encoder(family: str, sharpness: float) -> Encoder:
    """Random, float64; queries are `sharpness` times as long."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = Encoder(TrunkShape(family, 2, 32, 4)).double().eval().requires_grad_(False)
    attention = encoder.layers[0].attention
    if attention.normalised:
        attention.query_norm.weight.mul_(sharpness)
    else:
        attention.qkv.weight[:32].mul_(sharpness)
    return encoder


def make_tokens(encoder: Encoder) -> Tensor:
    return torch.from_numpy(encoder.shape.alphabet.encode("MKTAYIAKQRQISFVKSHFSRQMKTAYIAKQRQISFVKSHF"[:40]))


def by_the_layer(encoder: Encoder, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Residual stream [m, n, D] and attention's output [m, n, H, d] of each copy in a pass over all of them."""
    masked = [tokens.index_fill(0, place, encoder.shape.alphabet.mask_id) for place in PLACES.split(1)]
    mixed: list[Tensor] = []
    out = encoder.layers[0].attention.out
    hook = out.register_forward_pre_hook(lambda _, inputs: mixed.append(inputs[0]))
    streams = encoder.layer_states(pack(masked, tokens.device))[0]
    hook.remove()
    count, n = len(PLACES), len(tokens)
    return streams.view(count, n, -1), mixed[0].view(count, n, encoder.layers[0].attention.heads, -1)


@FAMILIES
@pytest.mark.parametrize("sharpness", [1.0, 60.0], ids=["flat", "peaked"])
def test_copies_are_as_in_a_pass_over_each(family: str, sharpness: float) -> None:
    encoder = make_encoder(family, sharpness)
    tokens = make_tokens(encoder)
    shared = SharedLayer.of(encoder, tokens)
    streams, mixed = by_the_layer(encoder, tokens)
    torch.testing.assert_close(shared.streams(PLACES), streams, atol=1e-7, rtol=0)
    # Angles of the rotation are float32.
    torch.testing.assert_close(shared.attended(PLACES), mixed, atol=1e-5, rtol=0)


def test_rows_that_attend_to_little_else_are_computed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = make_encoder("esm2", 2000.0)
    tokens = make_tokens(encoder)
    shared = SharedLayer.of(encoder, tokens)
    probabilities = (shared.query @ shared.key[:, PLACES].transpose(1, 2) - shared.log_sums[..., None]).exp()
    assert (probabilities > 1 - 1e-12).any(), "no row of this model would lose all digits"
    _, mixed = by_the_layer(encoder, tokens)
    torch.testing.assert_close(shared.attended(PLACES), mixed, atol=1e-4, rtol=0)
    monkeypatch.setattr(shared_layer, "_SOUND_SHARE", 2.0)
    assert not torch.allclose(shared.attended(PLACES), mixed, atol=1e-4, rtol=0)


def test_memory_of_rows_computed_anew_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = make_encoder("esm2", 1.0)
    tokens = make_tokens(encoder)
    shared, rows = SharedLayer.of(encoder, tokens), []
    honest = SharedLayer._anew
    monkeypatch.setattr(SharedLayer, "_anew", lambda self, at, row: rows.append(len(row)) or honest(self, at, row))
    monkeypatch.setattr(shared_layer, "_SOUND_SHARE", -1.0)
    _, mixed = by_the_layer(encoder, tokens)
    torch.testing.assert_close(shared.attended(PLACES), mixed, atol=1e-5, rtol=0)
    assert rows == [len(tokens)] * len(PLACES)
