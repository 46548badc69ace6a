"""How a trunk runs on a device, as the engine's config says: attention backend, recomputation, compilation."""

import os
import shutil

import torch
from torch import nn

from configs.engine import EngineConfig
from configs.errors import UserError
from pretrain.model.attention import choose_backend
from pretrain.model.encoder import Encoder

_COMPILERS = ("c++", "g++", "clang++")


def apply_execution(model: nn.Module, engine: EngineConfig, device: torch.device) -> None:
    """Make every trunk in `model` run as `engine` says, on `device`; call it before a parallel wrapper sees the model.

    Parameters and their names stay as they are.

    Raises:
        UserError: what is asked for cannot be had with this device, precision or ZeRO stage.
    """
    dtype = torch.bfloat16 if engine.precision == "bf16" else torch.float32
    for encoder in (module for module in model.modules() if isinstance(module, Encoder)):
        choose_backend(engine.attention, device, dtype, encoder.shape.head_width)
        encoder.attention = engine.attention
        encoder.checkpointing = engine.activation_checkpointing
        if engine.compile:
            _check_compiler(engine, device)
            for layer in encoder.layers:
                # Unlike torch.compile(layer), which would wrap it, this leaves all names as they are. Packs differ in
                # tokens, so nothing may be compiled for one number of them.
                layer.compile(dynamic=True)


def _check_compiler(engine: EngineConfig, device: torch.device) -> None:
    if engine.zero_stage == 3:
        raise UserError(
            "engine.compile is true with engine.zero_stage 3, whose gathering of parameters cannot be compiled;"
            " use engine.zero_stage 0, 1 or 2, or engine.compile=false"
        )
    named = os.environ.get("CXX")
    if device.type == "cpu" and not any(map(shutil.which, [named] if named else _COMPILERS)):
        raise UserError(
            f"engine.compile is true but there is no C++ compiler ({named or ', '.join(_COMPILERS)}); install one or"
            " use engine.compile=false"
        )
