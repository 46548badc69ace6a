"""Between a DeepSpeed engine and full tensors by name, for every ZeRO stage, precision and world size.

DeepSpeed keeps float32 parameters and Adam's moments in flat, partitioned buffers whose layout depends on stage and
world. A checkpoint holds none of that: each parameter and moment is put together whole, and cut again on the way back.
"""

from collections.abc import Iterator
from typing import Any

import torch
from deepspeed.utils import (
    safe_get_local_fp32_param,
    safe_get_local_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from configs.errors import UserError
from pretrain.checkpoints import Checkpoint
from pretrain.snapshot import Piece

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state beside its step counter, which is the same for every parameter and stands in state.json."""


def pieces_of(engine: Any, rank: int, world_size: int) -> Iterator[Piece]:
    """What this rank holds of every parameter, moment and buffer, in the same order on all ranks; no communication.

    Values are the live tensors. Tensors that every rank holds whole (stage 0, frozen ones, buffers) are given by the
    rank that owns them.
    """
    _link_moments(engine.optimizer)
    masters = _master_copies(engine)
    named = dict(engine.module.named_parameters())
    owners = _owners([getattr(p, "ds_numel", p.numel()) for p in named.values()], world_size)
    for owner, (name, parameter) in zip(owners, named.items(), strict=True):
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        on_every_rank = id(parameter) in masters or not (parameter.requires_grad or hasattr(parameter, "ds_id"))
        for moment in (None, *(MOMENTS if parameter.requires_grad else ())):
            start, values = _held(engine, parameter, masters, moment)
            if on_every_rank and rank != owner:
                values = None
            kind, key = ("weights", name) if moment is None else ("optimizer", f"{name}:{moment}")
            yield Piece(kind, key, owner, shape, torch.float32, start, values)
    for name, buffer in persistent_buffers(engine.module):
        values = buffer.reshape(-1) if rank == 0 else None
        yield Piece("weights", name, 0, tuple(buffer.shape), buffer.dtype, 0, values)


def _owners(sizes: list[int], world_size: int) -> list[int]:
    """A rank for each size, such that all ranks have much the same to write: the largest first, to the least laden."""
    laden, owners = [0] * world_size, [0] * len(sizes)
    for number in sorted(range(len(sizes)), key=lambda each: -sizes[each]):
        owners[number] = laden.index(min(laden))
        laden[owners[number]] += sizes[number]
    return owners


def _held(
    engine: Any, parameter: nn.Parameter, masters: dict[int, Tensor], moment: str | None
) -> tuple[int, Tensor | None]:
    """Start and flat values of this rank's part of a parameter's float32 copy, or of one of its moments."""
    if id(parameter) in masters:
        master = masters[id(parameter)]
        return 0, (master if moment is None else _adam(engine).state[master][moment]).reshape(-1)
    if hasattr(parameter, "ds_id"):
        size = parameter.ds_tensor.numel()
        start = min(size * engine.optimizer._get_param_partition_rank(parameter), parameter.ds_numel)
        if not parameter.requires_grad:
            values = parameter.ds_tensor
        elif moment is None:
            values = safe_get_local_fp32_param(parameter)
        else:
            values = safe_get_local_optimizer_state(parameter, moment)
        # The last ranks' parts are padded.
        return start, values.reshape(-1)[: parameter.ds_numel - start]
    if not parameter.requires_grad:
        return 0, parameter.reshape(-1)
    fragment = parameter._hp_mapping
    if fragment is None:
        return 0, None
    return fragment.lp_fragment_address.start, fragment.get_hp_fragment(moment).reshape(-1)


def restore_optimizer(engine: Any, checkpoint: Checkpoint) -> None:
    """Put float32 parameters, moments and the step counter of a checkpoint into a fresh engine.

    The module must already hold the checkpoint's weights (see `load_weights`): this sets what DeepSpeed keeps beside
    them, in full precision. Every rank reads all tensors, one at a time, and takes its part.
    """
    create_optimizer_state(engine, checkpoint.state["optimizer_steps"])
    masters = _master_copies(engine)
    parameters = {name: p for name, p in engine.module.named_parameters() if p.requires_grad}
    for name, value in checkpoint.tensors("weights"):
        if name in parameters:
            _set(engine, parameters[name], masters, None, value)
    missing = {f"{name}:{moment}" for name in parameters for moment in MOMENTS}
    for key, value in checkpoint.tensors("optimizer"):
        name, _, moment = key.rpartition(":")
        if name in parameters:
            _set(engine, parameters[name], masters, moment, value)
            missing.discard(key)
    if missing:
        raise UserError(f"checkpoint {checkpoint.path}: no optimizer state for {sorted(missing)[0]}; take another one")


def load_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Load parameters and buffers into a module that is not yet wrapped.

    Raises:
        UserError: the checkpoint belongs to a model of another shape.
    """
    try:
        model.load_state_dict(_with_tied_names(model, checkpoint.weights()), strict=True)
    except RuntimeError as error:
        problem = " ".join(str(error).split())[:300]
        raise UserError(f"checkpoint {checkpoint.path} does not fit the configured model: {problem}") from None


def persistent_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers that belong to the weights (BatchNorm statistics, say)."""
    kept = module.state_dict(keep_vars=True).keys()
    yield from ((name, buffer) for name, buffer in module.named_buffers() if name in kept)


def _with_tied_names(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A parameter with two names is saved under the first; give it back under both."""
    first_name = {id(parameter): name for name, parameter in model.named_parameters()}
    every_name = model.named_parameters(remove_duplicate=False)
    tied = {name: first_name[id(p)] for name, p in every_name if first_name[id(p)] != name}
    return weights | {name: weights[first] for name, first in tied.items() if first in weights}


def _set(engine: Any, parameter: nn.Parameter, masters: dict[int, Tensor], moment: str | None, value: Tensor) -> None:
    """Set one parameter's float32 copy (`moment` None) or one of its moments from the full tensor."""
    if id(parameter) in masters:
        master = masters[id(parameter)]
        target = master.data if moment is None else _adam(engine).state[master][moment]
        target.copy_(value)
    elif hasattr(parameter, "ds_id"):
        part = _partition(parameter, value, engine.optimizer)
        if moment is None:
            safe_set_local_fp32_param(parameter, part)
        else:
            safe_set_local_optimizer_state(parameter, part, moment)
    else:
        parameter.set_full_hp_param(value, moment)


def _partition(parameter: nn.Parameter, value: Tensor, optimizer: Any) -> Tensor:
    """This rank's slice of a full tensor, padded as ZeRO-3 pads it.

    `safe_set_full_fp32_param` does not pad, and so fails for every tensor that the world size does not divide.
    """
    size = parameter.ds_tensor.numel()
    begin = size * optimizer._get_param_partition_rank(parameter)
    part = value.flatten()[begin : begin + size]
    return torch.nn.functional.pad(part, (0, size - part.numel()))


def _adam(engine: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside DeepSpeed's wrapper, or itself where there is none (stage 0, fp32)."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def _master_copies(engine: Any) -> dict[int, Tensor]:
    """id(parameter) -> its whole float32 tensor, for the stages that do not partition; empty for ZeRO-1 to 3."""
    optimizer = engine.optimizer
    if isinstance(optimizer, torch.optim.Optimizer):
        return {id(p): p for group in optimizer.param_groups for p in group["params"]}
    if hasattr(optimizer, "fp32_groups"):
        pairs = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
        return {id(p): master for low, full in pairs for p, master in zip(low, full, strict=True)}
    return {}


def _flat_buffers(optimizer: Any) -> list[Tensor]:
    """The float32 tensors that the torch optimizer really updates on this rank."""
    for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
        if hasattr(optimizer, name):
            return list(getattr(optimizer, name))
    return [tensor for group in _adam_groups(optimizer) for tensor in group]


def _adam_groups(optimizer: Any) -> list[list[Tensor]]:
    if hasattr(optimizer, "fp32_groups"):
        return optimizer.fp32_groups
    return [group["params"] for group in optimizer.param_groups]


def create_optimizer_state(engine: Any, steps: int) -> None:
    """Adam's state with moments of zero and its counter at `steps`, in the place of whatever is there.

    Torch makes it lazily; DeepSpeed's stage 0 in bf16 makes it by an update of its own, so its counter is one ahead.
    """
    adam = _adam(engine)
    fused = adam.defaults.get("fused")
    for tensor in _flat_buffers(engine.optimizer):
        counter = torch.tensor(float(steps), device=tensor.device if fused else "cpu")
        adam.state[tensor] = {"step": counter, **{moment: torch.zeros_like(tensor) for moment in MOMENTS}}
    _link_moments(engine.optimizer)


def _link_moments(optimizer: Any) -> None:
    """Tell ZeRO-1 and 2 where each parameter's moments lie; they look once, after stepping the first of the groups."""
    if hasattr(optimizer, "_hp_optimizer_states_linked"):
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()
