"""The GPU benchmark where there is no GPU: its refusal, its packs, and one step of its variants on the CPU."""

import sys

import pytest
import torch

from tests.benchmarks import gpu

TOKENS = 256


def test_without_cuda_it_ends_with_code_2_and_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    assert gpu.main() == 2
    assert capsys.readouterr().err.startswith("error: no CUDA device")


def test_padded_batches_and_packs_hold_the_same_chains() -> None:
    packed, padded = (gpu.make_packs(8, 2048, on) for on in (False, True))
    for packs in (packed, padded):
        assert all(len(each.tokens) == sum(each.lengths) for each, _ in packs)
    assert sorted(n for _, real in packed for n in real) == sorted(n for _, real in padded for n in real)
    assert all(each.lengths == real for each, real in packed)
    assert all(len(set(each.lengths)) == 1 and each.lengths[0] == max(real) for each, real in padded)
    assert sum(len(each.tokens) for each, _ in padded) > sum(len(each.tokens) for each, _ in packed)


def test_operations_are_those_that_pytorch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from configs.trunk import TrunkConfig
    from pretrain.model.encoder import Encoder
    from pretrain.model.shape import trunk_shape

    shape = trunk_shape(TrunkConfig(model=gpu.MODELS["8M"]))
    ((packed, _), *_) = gpu.make_packs(1, TOKENS, padded=False)
    # In float64 all products are torch's own, which its counter knows; attention is written out by the maps.
    encoder = Encoder(shape).double()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder.attention_maps(packed)
        encoder.lm_logits(torch.zeros(30, shape.width, dtype=torch.float64))
    assert counter.get_total_flops() == gpu.forward_flops(shape, packed.lengths, 30)


@pytest.mark.parametrize("variant", ["base", "padded", "checkpointing"])
def test_every_variant_runs_on_the_cpu(variant: str) -> None:
    figures = gpu.measure(gpu.MODELS["8M"], variant, torch.device("cpu"), 1, TOKENS)
    assert figures["tokens_per_second"] > 0
    assert figures["flops_per_second"] > 0
    assert figures["real_token_fraction"] == 1 or variant == "padded"
