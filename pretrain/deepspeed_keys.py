"""Which keys a DeepSpeed file may have: DeepSpeed itself passes over what it does not know at the top level."""

import importlib
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from configs.errors import UserError

_NAMED_IN = (
    "deepspeed.runtime.constants",
    "deepspeed.runtime.config",
    "deepspeed.runtime.zero.config",
    "deepspeed.runtime.data_pipeline.constants",
    "deepspeed.runtime.activation_checkpointing.config",
    "deepspeed.autotuning.constants",
    "deepspeed.comm.constants",
    "deepspeed.profiling.constants",
    "deepspeed.runtime.swap_tensor.constants",
)
"""DeepSpeed reads its sections by constants of these modules."""
_UNNAMED = (
    "flops_profiler",
    "tensorboard",
    "wandb",
    "csv_monitor",
    "comet",
    "compile",
    "timers",
    "hybrid_engine",
    "tensor_parallel",
)
"""Sections that it reads by their bare names."""


def known_keys() -> set[str]:
    """Every string that DeepSpeed may look for at the top level of its file."""
    found = set(_UNNAMED)
    for name in _NAMED_IN:
        constants = vars(importlib.import_module(name)).items()
        found |= {value for key, value in constants if key.isupper() and isinstance(value, str)}
    return found


def refuse_unknown(given: dict[str, Any], path: object) -> None:
    """Check the keys of a user's file, sections of ZeRO included.

    Raises:
        UserError: a key that DeepSpeed would pass over in silence, or a value it cannot take; names it.
    """
    known = known_keys()
    for key in given:
        if key not in known:
            near = get_close_matches(key, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else "; remove it"
            raise UserError(f"engine.deepspeed {path}: DeepSpeed has no key {key!r}{hint}")
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    try:
        DeepSpeedZeroConfig(**given.get("zero_optimization", {}))
    except (ValidationError, TypeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        where = ".".join(["zero_optimization", *map(str, first["loc"])])
        raise UserError(f"engine.deepspeed {path}: {where}: {first['msg']}; see DeepSpeed's documentation") from None
