"""Low-rank adapters on a frozen trunk: W x + (alpha / rank) B A x, with B zero at the start (Hu et al. 2021)."""

import re
from collections.abc import Mapping

from torch import Tensor

from configs.trunk import LoraConfig
from pretrain.model.encoder import Encoder

_MODULES = {"qkv": "attention.qkv", "out": "attention.out", "up": "ffn.up", "down": "ffn.down"}
_BASE = ".base_layer."
_FACTOR = re.compile(r"\.lora_([AB])\.default\.weight$")
"""Names that peft gives: `layers.0.ffn.up.base_layer.weight`, `layers.0.ffn.up.lora_A.default.weight`."""


def apply_lora(trunk: Encoder, config: LoraConfig) -> None:
    """Freeze a trunk whose weights are loaded and put adapters on the configured matrices of every layer.

    The adapters are all that trains in the trunk, and it computes what it did before until they have learnt. Works on
    the meta device too. Other parameters keep their names, but the adapted matrices become `<name>.base_layer`.
    """
    # peft takes seconds to import, and only such runs need it.
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    settings = PeftConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=[_MODULES[target] for target in config.targets],
    )
    trunk.requires_grad_(False)
    inject_adapter_in_model(settings, trunk)


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is that of an adapter's factor."""
    return _FACTOR.search(name) is not None


def merge_adapters(weights: Mapping[str, Tensor], config: LoraConfig | None) -> dict[str, Tensor]:
    """Weights under a plain trunk's names, adapters added: W + (alpha / rank) B A.

    Args:
        weights: parameters and buffers by name, as a checkpoint of a run with `trunk.lora` holds them; not changed.
        config: the run's adapters; without, the weights are given back as they are.
    """
    if config is None:
        return dict(weights)
    merged = {name.replace(_BASE, "."): tensor for name, tensor in weights.items() if not is_adapter(name)}
    for name, down in weights.items():
        if (factor := _FACTOR.search(name)) and factor[1] == "A":
            matrix = f"{name[: factor.start()]}.weight"
            up = weights[name.replace(".lora_A.", ".lora_B.")]
            merged[matrix] = merged[matrix] + (config.alpha / config.rank) * (up @ down)
    return merged
