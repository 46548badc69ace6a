"""The DeepSpeed configuration of a run: generated from its config, with the user's file laid over it."""

import json
from typing import Any

import torch
from torch import nn

from configs.errors import UserError
from configs.train import TrainConfig
from pretrain.deepspeed_keys import refuse_unknown
from pretrain.memory import return_freed_memory

BUCKET_ELEMENTS = 50_000_000
"""Of gradients that are averaged together, and of parameters that the optimizer updates together: both are copied, so
it bounds what a step holds beside the state (0.2 GB in float32)."""
PREFETCH_ELEMENTS = 20_000_000
"""Parameters gathered ahead of their use: a layer of a 650M trunk, most of a 35M one."""
REUSE_ELEMENTS = 200_000_000
"""A layer stays whole until its backward pass when fewer parameters than this come after it: trunks up to 150M are
gathered once in a step, of larger ones all but the last layers twice."""
PERSISTENT_ELEMENTS = 10_000
"""Smaller parameters (norms, biases) are whole on every worker: the cost of gathering them is that of a message."""

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
        # With state on the CPU, torch's fused AdamW serves: DeepSpeed's own would be compiled at start.
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": engine.precision == "bf16"},
        "zero_optimization": {
            "stage": engine.zero_stage,
            "overlap_comm": on_gpu,
            # Gloo's takes its input in pieces that are copied before and after; it adds up the whole bucket in place.
            "reduce_scatter": on_gpu,
            "contiguous_gradients": True,
            "reduce_bucket_size": BUCKET_ELEMENTS,
            "allgather_bucket_size": BUCKET_ELEMENTS,
            "stage3_prefetch_bucket_size": PREFETCH_ELEMENTS,
            "stage3_max_reuse_distance": REUSE_ELEMENTS,
            "stage3_max_live_parameters": REUSE_ELEMENTS,
            "stage3_param_persistence_threshold": PERSISTENT_ELEMENTS,
            "sub_group_size": BUCKET_ELEMENTS,
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


def prepare_for_zero(model: nn.Module, config: TrainConfig) -> None:
    """Make each layer of the trunk one unit of ZeRO-3, gathered by one message and with one pair of hooks.

    To be called before DeepSpeed wraps the model. Other stages, and a model without a trunk, stay as they are. On CPUs
    what is freed while the model is divided goes back to the system; `keep_freed_memory` belongs after it.
    """
    if not torch.cuda.is_available():
        return_freed_memory()
    if config.engine.zero_stage != 3:
        return
    from deepspeed.utils import set_z3_leaf_modules

    from pretrain.model.layers import Layer

    layers = [module for module in model.modules() if isinstance(module, Layer)]
    # DeepSpeed fails in the backward pass of a unit that is frozen in part, as with adapters.
    if layers and all(parameter.requires_grad for layer in layers for parameter in layer.parameters()):
        set_z3_leaf_modules(model, [Layer])


def lay_over(settings: dict[str, Any], given: dict[str, Any], path: object, config: TrainConfig) -> dict[str, Any]:
    """The user's DeepSpeed keys over the generated ones; what the run's config decides must agree with it."""
    fixed = {
        "train_micro_batch_size_per_gpu": (settings["train_micro_batch_size_per_gpu"], "one pool share at a time"),
        "gradient_accumulation_steps": (settings["gradient_accumulation_steps"], "data.pools_per_step"),
        "train_batch_size": (settings["train_batch_size"], "data.pools_per_step x engine.num_workers"),
        "gradient_clipping": (config.optimizer.clip, "optimizer.clip"),
    }
    refuse_unknown(given, path)
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
