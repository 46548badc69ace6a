"""The AMPLIFY trunk against a plain float64 forward written from the published parameter names."""

import math
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from pretrain.model.encoder import Encoder
from pretrain.model.export import to_amplify
from pretrain.model.shape import TrunkShape
from pretrain.model.weights import load_trunk_weights
from tests.parity.trunks import SMALL_AMPLIFY, masked_proteins, pack

# fp32 against float64, logits of order 1, 4 layers.
LOGITS = 1e-5


def published_state(shape: TrunkShape, seed: int) -> dict[str, Tensor]:
    """Random weights under the published names and shapes."""
    generator = torch.Generator().manual_seed(seed)
    # Two thirds of 4 x 128, up to a multiple of 8.
    width, inner = shape.width, 344

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator) * columns**-0.5

    def vector(size: int, centre: float) -> Tensor:
        return centre + 0.3 * torch.randn(size, generator=generator)

    state = {"encoder.weight": matrix(27, width), "layer_norm_2.weight": vector(width, 1.0)}
    state |= {"decoder.weight": matrix(27, width), "decoder.bias": vector(27, 0.0)}
    for i in range(shape.layers):
        at = f"transformer_encoder.{i}"
        state |= {f"{at}.{name}.weight": matrix(width, width) for name in ("q", "k", "v", "wo")}
        state |= {f"{at}.ffn.w12.weight": matrix(2 * inner, width), f"{at}.ffn.w3.weight": matrix(width, inner)}
        state |= {f"{at}.{name}.weight": vector(width, 1.0) for name in ("attention_norm", "ffn_norm")}
    return state


def float64_forward(state: dict[str, Tensor], shape: TrunkShape, tokens: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Last layer's output [n, D], logits [n, 27] and per layer attention [H, n, n] of one protein, loops and all."""
    w = {name: tensor.double() for name, tensor in state.items()}
    d, n = shape.width // shape.heads, len(tokens)

    def rms(x: Tensor, name: str) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * w[name]

    def turn(x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        for position in range(n):
            for j in range(d // 2):
                angle = position * 10000.0 ** (-2 * j / d)
                a, b = x[position, 2 * j], x[position, 2 * j + 1]
                out[position, 2 * j] = a * math.cos(angle) - b * math.sin(angle)
                out[position, 2 * j + 1] = a * math.sin(angle) + b * math.cos(angle)
        return out

    x, attention = w["encoder.weight"][tokens], []
    for i in range(shape.layers):
        at = f"transformer_encoder.{i}"
        y = rms(x, f"{at}.attention_norm.weight")
        q, k, v = (y @ w[f"{at}.{name}.weight"].T for name in "qkv")
        heads, maps = [], []
        for h in range(shape.heads):
            rows = slice(h * d, (h + 1) * d)
            probabilities = (turn(q[:, rows]) @ turn(k[:, rows]).T / math.sqrt(d)).softmax(-1)
            maps.append(probabilities)
            heads.append(probabilities @ v[:, rows])
        attention.append(torch.stack(maps))
        x = x + torch.cat(heads, dim=1) @ w[f"{at}.wo.weight"].T
        gate, up = (rms(x, f"{at}.ffn_norm.weight") @ w[f"{at}.ffn.w12.weight"].T).chunk(2, dim=-1)
        x = x + (gate * gate.sigmoid() * up) @ w[f"{at}.ffn.w3.weight"].T
    return x, rms(x, "layer_norm_2.weight") @ w["decoder.weight"].T + w["decoder.bias"], attention


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@torch.no_grad()
def test_packed_trunk_equals_the_float64_forward(suffix: str, tmp_path: Path) -> None:
    shape, state = SMALL_AMPLIFY, published_state(SMALL_AMPLIFY, seed=0)
    path = tmp_path / f"amplify{suffix}"
    if suffix == ".pt":
        torch.save(state, path)
    else:
        safetensors.torch.save_file(state, path)
    encoder = Encoder(shape).eval()
    load_trunk_weights(encoder, str(path), "custom")

    proteins = masked_proteins("amplify", lengths=(20, 20, 9))
    packed = pack(proteins)
    hidden = encoder(packed)
    logits, maps = encoder.lm_logits(hidden), encoder.attention_maps(packed)
    expected = [float64_forward(state, shape, tokens) for tokens in proteins]
    expected_hidden, expected_logits = (torch.cat([row[i] for row in expected]) for i in (0, 1))
    assert expected_logits.std() > 0.3, "logits too flat to compare"
    assert (logits - expected_logits).abs().max() <= LOGITS
    assert (hidden - expected_hidden).abs().max() <= LOGITS * max(1, expected_hidden.abs().max())
    for ours, (_, _, theirs) in zip(maps, expected, strict=True):
        assert (ours - torch.cat(theirs)).abs().max() <= LOGITS


def test_published_keys_return_bit_for_bit(tmp_path: Path) -> None:
    state = published_state(SMALL_AMPLIFY, seed=1)
    safetensors.torch.save_file(state, tmp_path / "amplify.safetensors")
    encoder = Encoder(SMALL_AMPLIFY)
    load_trunk_weights(encoder, str(tmp_path / "amplify.safetensors"), "custom")
    exported = to_amplify(encoder)
    assert exported.keys() == state.keys()
    assert all(torch.equal(exported[name], state[name]) for name in state)
