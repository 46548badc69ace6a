"""DeepSpeed's configuration: what is generated, and what a user's file may say."""

import json
from pathlib import Path
from typing import Any

import pytest

from configs.errors import UserError
from configs.train import TrainConfig
from pretrain.deepspeed_settings import deepspeed_settings
from pretrain.worker import at_world_size
from tests.unit.pretrain.training import make_config


def with_file(folder: Path, content: Any, **overrides: Any) -> TrainConfig:
    file = folder / "deepspeed.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return make_config(folder, engine__deepspeed=str(file), **overrides)


def test_generated_settings_say_everything_that_decides_the_update(tmp_path: Path) -> None:
    settings = deepspeed_settings(
        make_config(tmp_path, data__pools_per_step=3, engine__num_workers=2, optimizer__clip=0.5)
    )
    assert settings["gradient_accumulation_steps"] == 3
    assert settings["train_batch_size"] == 6
    assert settings["gradient_clipping"] == 0.5
    assert settings["zero_optimization"]["stage"] == 3
    assert "optimizer" not in settings


def test_no_clipping_is_said_aloud(tmp_path: Path) -> None:
    assert deepspeed_settings(make_config(tmp_path, optimizer__clip=0.0))["gradient_clipping"] == 0.0


def test_a_user_s_file_is_laid_over_and_auto_means_generated(tmp_path: Path) -> None:
    given = {
        "zero_optimization": {"stage3_param_persistence_threshold": 5, "stage": "auto", "zero_hpz_partition_size": 2},
        "gradient_clipping": "auto",
        "wall_clock_breakdown": True,
    }
    settings = deepspeed_settings(with_file(tmp_path, given))
    assert settings["zero_optimization"]["stage3_param_persistence_threshold"] == 5
    assert settings["zero_optimization"]["zero_hpz_partition_size"] == 2
    assert settings["zero_optimization"]["stage"] == 3
    assert settings["gradient_clipping"] == 1.0
    assert settings["wall_clock_breakdown"] is True


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train_batch_size": 64}, "train_batch_size must be 1 .data.pools_per_step"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps must be 1"),
        ({"gradient_clipping": 2.0}, r"gradient_clipping must be 1.0 .optimizer.clip"),
        ({"optimizer": {"type": "Adam"}}, "section 'optimizer' is decided by the run's config"),
        ({"bf16": {"enabled": True}}, "section 'bf16' is decided by the run's config"),
        ({"zero_optimization": {"stage": 1}}, "stage 1 but engine.zero_stage is 3"),
        ({"zero_optimisation": {"stage": 3}}, "no key 'zero_optimisation'; did you mean 'zero_optimization'"),
        ({"zero_optimization": {"stage3_prefetch": 1}}, r"zero_optimization\.stage3_prefetch: Extra inputs are not"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "disk"}}},
            r"offload_optimizer\.device: Input should be",
        ),
        ("not json", "not valid JSON"),
        ([1], "holds a list"),
    ],
)
def test_a_contradiction_is_named_with_its_remedy(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        deepspeed_settings(with_file(tmp_path, content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.json: cannot be read"):
        deepspeed_settings(make_config(tmp_path, engine__deepspeed=str(tmp_path / "nowhere.json")))


def test_offload_and_zero_plus_plus_pass_through(tmp_path: Path) -> None:
    given = {
        "zero_hpz_partition_size": 8,
        "zero_quantized_weights": True,
        "zero_quantized_gradients": True,
        "offload_optimizer": {"device": "cpu"},
        "offload_param": {"device": "cpu"},
    }
    settings = deepspeed_settings(with_file(tmp_path, {"zero_optimization": given}))["zero_optimization"]
    assert {key: settings[key] for key in given} == given


@pytest.mark.parametrize(("fewest", "fits"), [(1, True), (2, True), (3, False)])
def test_fewer_workers_than_wanted_may_not_be_more(tmp_path: Path, fewest: int, fits: bool) -> None:
    settings = {"engine__num_workers": 2, "engine__min_workers": fewest}
    if fits:
        here = at_world_size(make_config(tmp_path, **settings), fewest)
        assert deepspeed_settings(here)["train_batch_size"] == fewest
    else:
        with pytest.raises(UserError, match=r"engine.min_workers 3 is more than engine.num_workers 2"):
            make_config(tmp_path, **settings)
