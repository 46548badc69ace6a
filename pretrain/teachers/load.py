"""Opening the teacher that a config names."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor

from configs.errors import UserError
from configs.teacher import GearNetConfig, TeacherConfig
from pretrain.checkpoints import open_checkpoint
from pretrain.teachers.protocol import Teacher
from pretrain.tensor_files import hash_file

if TYPE_CHECKING:
    from pretrain.teachers.gearnet import GearNetTeacher

GEARNET_PREFIX = "gearnet."
STATE_DICT_SUFFIXES = (".pth", ".pt", ".safetensors")
NAMED_AT_MOST = 3
"""Keys that an error message names."""


def load_teacher(config: TeacherConfig) -> Teacher:
    """The frozen teacher, ready to embed.

    Raises:
        UserError: no weights named, none there, or weights of something else.
    """
    if config.weights is None:
        gearnet = "a checkpoint or run folder of stage `teacher`, or a file of a published state dict"
        what = "the .npz of the MPNN encoder" if config.kind == "mpnn" else gearnet
        raise UserError(f"teacher.weights is not set for a {config.kind} teacher: name {what}")
    if config.kind == "mpnn":
        from pretrain.teachers.mpnn import load_mpnn

        return load_mpnn(config.weights)
    if config.weights.suffix in STATE_DICT_SUFFIXES and not config.weights.is_dir():
        state = read_state_dict(config.weights)
        return _gearnet(config, config.gearnet, state, hash_file(config.weights))
    return _of_checkpoint(config, config.weights)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors by name of a .safetensors file, or of a .pth or .pt file that holds nothing but them.

    Raises:
        UserError: no such file, or not such a file.
    """
    if not path.is_file():
        raise UserError(f"teacher.weights {path}: no such file; name one that exists")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # weights_only: the file may come from anywhere; only tensors and plain containers are unpickled.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        detail = " ".join(str(error).split())[:120]
        raise UserError(f"teacher.weights {path}: not a file of tensors ({detail}); name a state dict") from None
    if not isinstance(state, Mapping) or not all(isinstance(each, Tensor) for each in state.values()):
        what = f"a mapping of {', '.join(map(str, list(state)[:3]))}" if isinstance(state, Mapping) else type(state)
        raise UserError(f"teacher.weights {path}: holds {what}; wanted is a bare state dict of tensors by name")
    return dict(state)


def _of_checkpoint(config: TeacherConfig, path: Path) -> "GearNetTeacher":
    checkpoint = open_checkpoint(path)
    theirs = checkpoint.config
    if theirs.stage != "teacher":
        raise UserError(f"teacher.weights {path}: a checkpoint of stage {theirs.stage!r}; name one of `teacher`")
    if theirs.teacher.kind != config.kind:
        raise UserError(
            f"teacher.weights {path}: a {theirs.teacher.kind} but teacher.kind is {config.kind}; make them equal"
        )
    state = {
        name.removeprefix(GEARNET_PREFIX): tensor
        for name, tensor in checkpoint.weights().items()
        if name.startswith(GEARNET_PREFIX)
    }
    return _gearnet(config, theirs.teacher.gearnet, state, checkpoint.weights_sha256)


def _gearnet(config: TeacherConfig, shape: GearNetConfig, state: Mapping[str, Tensor], sha256: str) -> "GearNetTeacher":
    # torch-geometric takes seconds to import: only programs that open a GearNet pay for it.
    from pretrain.teachers.gearnet import GearNet, GearNetTeacher

    network = GearNet(shape, config.kind == "gearnet_edge")
    _check_state(config, state, network.state_dict())
    network.load_state_dict(state)
    return GearNetTeacher(network, sha256, config.gearnet.representation)


def _check_state(config: TeacherConfig, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Exactly the wanted names and shapes, or a UserError that says what differs and what to change."""
    where = f"teacher.weights {config.weights}"
    shape = _shape_of(state)
    if shape is not None and shape != _shape_of(wanted):
        kind, layers, width = shape
        raise UserError(
            f"{where}: a {kind} of {layers} layers x {width}; set teacher.kind={kind} teacher.gearnet.layers={layers}"
            f" teacher.gearnet.width={width}"
        )
    missing, foreign = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or foreign:
        parts = [
            f"{len(names)} {what} ({', '.join(names[:NAMED_AT_MOST])}{', ...' if len(names) > NAMED_AT_MOST else ''})"
            for what, names in (("missing", missing), ("not of this network", foreign))
            if names
        ]
        raise UserError(f"{where}: not the state dict of a {config.kind}: keys {' and '.join(parts)}; name another one")
    for name, tensor in wanted.items():
        if state[name].shape != tensor.shape:
            raise UserError(
                f"{where}: {name} has shape {list(state[name].shape)}, a {config.kind} has {list(tensor.shape)};"
                " name other weights"
            )


def _shape_of(state: Mapping[str, Tensor]) -> tuple[str, int, int] | None:
    """Kind, layers and width of a GearNet's state dict; None where it has not even a first layer."""
    layers = 0
    while f"layers.{layers}.self_loop.weight" in state:
        layers += 1
    if not layers:
        return None
    kind = "gearnet_edge" if "edge_layers.0.linear.weight" in state else "gearnet"
    return kind, layers, len(state[f"layers.{layers - 1}.self_loop.weight"])
