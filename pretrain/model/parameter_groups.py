"""Optimizer groups: learning rates of trunk and heads, weight decay on matrices only."""

from typing import Any

from torch import nn

from configs.engine import OptimizerConfig
from pretrain.model.lora import is_adapter


def param_groups(model: nn.Module, optimizer: OptimizerConfig) -> list[dict[str, Any]]:
    """Groups of trainable parameters for a torch optimizer; empty groups are left out.

    The trunk (its language head included) gets `trunk_lr`, everything else `head_lr`. Weight decay acts on matrices
    (embedding included); vectors and scalars (biases, norms, the logit scale) are not decayed, since shrinking them
    regularises nothing. Low-rank adapters get `trunk_lr` and no decay: it would pull the trunk back to the published
    weights, not towards 0. Each group holds `params`, `lr`, `weight_decay` and `name`.
    """
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = "trunk" if name.startswith("trunk.") else "heads"
        adapter = is_adapter(name)
        decayed = parameter.ndim >= 2 and not adapter
        label = "trunk_adapters" if adapter else f"{part}_{'matrices' if decayed else 'vectors'}"
        settings = {
            "params": [],
            "lr": optimizer.trunk_lr if part == "trunk" else optimizer.head_lr,
            "weight_decay": optimizer.weight_decay if decayed else 0.0,
            "name": label,
        }
        groups.setdefault(label, settings)["params"].append(parameter)
    return list(groups.values())
