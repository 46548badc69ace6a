"""The trunk's layers as units of ZeRO-3."""

from pathlib import Path

import pytest
from deepspeed.utils import z3_leaf_module
from torch import nn

from configs.trunk import LoraConfig
from pretrain.deepspeed_settings import prepare_for_zero
from pretrain.model.encoder import Encoder
from pretrain.model.lora import apply_lora
from pretrain.model.shape import TrunkShape
from tests.unit.pretrain.training import make_config


@pytest.fixture(autouse=True)
def own_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' own process keeps its allocator as it is."""
    monkeypatch.setattr("pretrain.deepspeed_settings.return_freed_memory", lambda: None)


def units(trunk: nn.Module) -> int:
    return sum(z3_leaf_module(module) for module in trunk.modules())


@pytest.mark.parametrize(("stage", "expected"), [(3, 2), (2, 0), (0, 0)])
def test_each_layer_is_gathered_as_one_at_stage_3_alone(tmp_path: Path, stage: int, expected: int) -> None:
    trunk = Encoder(TrunkShape("esm2", 2, 32, 4))
    prepare_for_zero(trunk, make_config(tmp_path, engine__zero_stage=stage))
    assert units(trunk) == expected


def test_layers_with_frozen_parts_are_left_as_they_are(tmp_path: Path) -> None:
    trunk = Encoder(TrunkShape("esm2", 2, 32, 4))
    apply_lora(trunk, LoraConfig(rank=2))
    prepare_for_zero(trunk, make_config(tmp_path, engine__zero_stage=3))
    assert units(trunk) == 0


def test_a_model_without_a_trunk_is_none_of_its_business(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    prepare_for_zero(model, make_config(tmp_path, engine__zero_stage=3))
    assert units(model) == 0
