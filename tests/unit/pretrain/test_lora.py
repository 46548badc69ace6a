"""Low-rank adapters: an unchanged start, what trains, and merging."""

import pytest
import torch

from configs.engine import OptimizerConfig
from configs.errors import UserError
from configs.loading import validate
from configs.losses import LossConfig
from configs.trunk import LoraConfig, TrunkConfig
from pretrain.model.alignment import AlignmentModel
from pretrain.model.encoder import Encoder
from pretrain.model.lora import apply_lora, is_adapter, merge_adapters
from pretrain.model.parameter_groups import param_groups
from pretrain.model.shape import TrunkShape
from pretrain.model.weights import assign
from tests.parity.trunks import masked_proteins, pack, scrambled_encoder

SHAPES = [TrunkShape(family, 2, 32, 4) for family in ("esm2", "amplify", "esmc")]
BOTH = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.family)
LORA = LoraConfig(rank=3, alpha=5.0)
MERGED = 1e-5
"""Logits of order 1 from float32 sums in another order, over 2 layers."""


def adapted(shape: TrunkShape, lora: LoraConfig = LORA) -> Encoder:
    """A trunk whose adapters have learnt something."""
    encoder = scrambled_encoder(shape)
    apply_lora(encoder, lora)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if is_adapter(name):
                parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
    return encoder


@BOTH
@torch.no_grad()
def test_a_trunk_with_fresh_adapters_computes_exactly_what_it_did(shape: TrunkShape) -> None:
    encoder = scrambled_encoder(shape)
    packed = pack(masked_proteins(shape.family))
    before = encoder.lm_logits(encoder(packed))
    apply_lora(encoder, LORA)
    assert torch.equal(encoder.lm_logits(encoder(packed)), before)


@BOTH
@torch.no_grad()
def test_merged_weights_in_a_plain_trunk_give_the_adapted_trunks_answers(shape: TrunkShape) -> None:
    encoder, plain = adapted(shape), scrambled_encoder(shape)
    packed = pack(masked_proteins(shape.family))
    start = plain.lm_logits(plain(packed))
    expected = encoder.lm_logits(encoder(packed))
    assert (expected - start).abs().max() > 0.1, "adapters that do nothing prove nothing"
    weights = dict(encoder.named_parameters()) | dict(encoder.named_buffers())
    assign(plain, merge_adapters(weights, LORA), "test")
    assert (plain.lm_logits(plain(packed)) - expected).abs().max() <= MERGED
    # Contacts are read from the same adapted matrices.
    for ours, theirs in zip(plain.attention_maps(packed), encoder.attention_maps(packed), strict=True):
        assert (ours - theirs).abs().max() <= MERGED


def test_merging_names_scales_and_leaves_its_input_alone() -> None:
    down, up, matrix = torch.ones(2, 3), torch.full((4, 2), 0.5), torch.zeros(4, 3)
    weights = {
        "trunk.layers.0.ffn.up.base_layer.weight": matrix,
        "trunk.layers.0.ffn.up.lora_A.default.weight": down,
        "trunk.layers.0.ffn.up.lora_B.default.weight": up,
        "threedi_head.out.weight": torch.ones(1),
    }
    merged = merge_adapters(weights, LoraConfig(rank=2, alpha=8.0))
    assert merged.keys() == {"trunk.layers.0.ffn.up.weight", "threedi_head.out.weight"}
    # 8 / 2 times two products of 0.5.
    assert torch.equal(merged["trunk.layers.0.ffn.up.weight"], torch.full((4, 3), 4.0))
    assert not matrix.any()
    assert merge_adapters(merged, None) == merged


@BOTH
def test_only_adapters_and_heads_train(shape: TrunkShape) -> None:
    model = AlignmentModel(shape, LossConfig(), teacher_width=7)
    apply_lora(model.trunk, LORA)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    in_trunk = {name for name in trained if name.startswith("trunk.")}
    # Two factors on each of four matrices in each layer.
    assert len(in_trunk) == 2 * 4 * shape.layers
    assert all(is_adapter(name) for name in in_trunk)
    heads = {name for name, _ in model.named_parameters() if not name.startswith("trunk.")}
    assert trained - in_trunk == heads


def test_targets_choose_the_matrices() -> None:
    encoder = Encoder(SHAPES[0])
    apply_lora(encoder, LoraConfig(rank=2, targets=("qkv", "down")))
    matrices = {name.split(".lora_")[0] for name, _ in encoder.named_parameters() if is_adapter(name)}
    assert matrices == {f"layers.{i}.{name}" for i in range(2) for name in ("attention.qkv", "ffn.down")}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_every_adapter_and_nothing_frozen(checkpointing: bool) -> None:
    encoder = adapted(SHAPES[0])
    # The embedding is frozen, so the first layer's input needs no gradient: recomputation must not take that as an end.
    encoder.checkpointing = checkpointing
    packed = pack(masked_proteins("esm2"))
    encoder.lm_logits(encoder(packed)).square().mean().backward()
    for name, parameter in encoder.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == is_adapter(name), name


def test_adapters_learn_at_the_trunks_rate_without_decay() -> None:
    model = AlignmentModel(SHAPES[0], LossConfig(), teacher_width=7)
    apply_lora(model.trunk, LORA)
    groups = {group["name"]: group for group in param_groups(model, OptimizerConfig(trunk_lr=2e-4, head_lr=1e-3))}
    assert groups.keys() == {"trunk_adapters", "heads_matrices", "heads_vectors"}
    assert (groups["trunk_adapters"]["lr"], groups["trunk_adapters"]["weight_decay"]) == (2e-4, 0.0)
    assert len(groups["trunk_adapters"]["params"]) == 16


def test_adapters_need_no_memory_to_be_counted() -> None:
    with torch.device("meta"):
        encoder = Encoder(SHAPES[0])
        apply_lora(encoder, LORA)
    trained = sum(parameter.numel() for parameter in encoder.parameters() if parameter.requires_grad)
    # Rank 3 times inputs plus outputs of the four matrices, in each of two layers.
    assert trained == 2 * 3 * ((32 + 96) + (32 + 32) + (32 + 128) + (128 + 32))


@pytest.mark.parametrize(
    ("trunk", "message"),
    [
        ({"lora": {}}, r"trunk\.weights is not set; name a source of weights, or leave out trunk\.lora"),
        ({"lora": {"targets": []}, "weights": "x.pt"}, r"lora\.targets"),
        ({"lora": {"targets": ["qkv", "embedding"]}, "weights": "x.pt"}, r"lora\.targets\.1"),
        ({"lora": {"rank": 0}, "weights": "x.pt"}, r"lora\.rank"),
    ],
)
def test_settings_that_cannot_work_are_refused(trunk: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate(TrunkConfig, {"model": "esm2_t6_8M_UR50D", **trunk}, "test")
