"""The DeepSpeed configuration of a run: generated from its config, with the user's file laid over it."""

import json
from typing import Any

import torch

from configs.errors import UserError
from configs.train import TrainConfig

OWNED_SECTIONS = ("optimizer", "scheduler", "fp16", "bf16")
"""Parts of a DeepSpeed file that the run's own config decides."""


def deepspeed_settings(config: TrainConfig) -> dict[str, Any]:
    """The DeepSpeed configuration: generated, then the user's file laid over it.

    Raises:
        UserError: the file cannot be read, or contradicts the run's own config.
    """
    engine, on_gpu = config.engine, torch.cuda.is_available()
    no_own_norm = engine.zero_stage == 0 and engine.precision == "fp32"
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": config.data.pools_per_step,
        "train_batch_size": config.data.pools_per_step * engine.num_workers,
        # The default is 1.0, so switching it off has to be said.
        "gradient_clipping": 0.0 if no_own_norm else config.optimizer.clip,
        "steps_per_print": None,
        "bf16": {"enabled": engine.precision == "bf16"},
        "zero_optimization": {
            "stage": engine.zero_stage,
            "overlap_comm": on_gpu,
            "contiguous_gradients": True,
            "reduce_bucket_size": 50_000_000,
            "allgather_bucket_size": 50_000_000,
            "stage3_prefetch_bucket_size": 50_000_000,
            "stage3_param_persistence_threshold": 100_000,
            "sub_group_size": 1_000_000_000,
        },
    }
    if engine.deepspeed is None:
        return settings
    path = engine.deepspeed
    try:
        given = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"engine.deepspeed {path}: cannot be read ({error.strerror}); name a JSON file") from None
    except ValueError as error:
        raise UserError(f"engine.deepspeed {path}: not valid JSON ({error})") from None
    if not isinstance(given, dict):
        raise UserError(f"engine.deepspeed {path}: holds a {type(given).__name__}; allowed: a mapping")
    return lay_over(settings, given, path, config)


def lay_over(settings: dict[str, Any], given: dict[str, Any], path: object, config: TrainConfig) -> dict[str, Any]:
    """The user's DeepSpeed keys over the generated ones; what the run's config decides must agree with it."""
    fixed = {
        "train_micro_batch_size_per_gpu": (settings["train_micro_batch_size_per_gpu"], "one pool share at a time"),
        "gradient_accumulation_steps": (settings["gradient_accumulation_steps"], "data.pools_per_step"),
        "train_batch_size": (settings["train_batch_size"], "data.pools_per_step x engine.num_workers"),
        "gradient_clipping": (config.optimizer.clip, "optimizer.clip"),
    }
    given = {key: value for key, value in given.items() if value != "auto"}
    for section in OWNED_SECTIONS:
        if section in given:
            raise UserError(
                f"engine.deepspeed {path}: section {section!r} is decided by the run's config"
                " (optimizer.*, engine.precision); remove it from the file"
            )
    for key, (value, source) in fixed.items():
        if key in given and given.pop(key) != value:
            raise UserError(f"engine.deepspeed {path}: {key} must be {value} ({source}); change it or remove it")
    zero = {key: value for key, value in given.pop("zero_optimization", {}).items() if value != "auto"}
    stage = zero.pop("stage", config.engine.zero_stage)
    if stage != config.engine.zero_stage:
        raise UserError(
            f"engine.deepspeed {path}: zero_optimization.stage {stage} but engine.zero_stage is"
            f" {config.engine.zero_stage}; make them equal"
        )
    return {**settings, **given, "zero_optimization": {**settings["zero_optimization"], **zero}}
