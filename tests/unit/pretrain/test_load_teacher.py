"""Teachers from checkpoints of ours, published state dicts and safetensors files; anything else is refused by name."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from configs.errors import UserError
from configs.loading import dump_config
from configs.teacher import GearNetConfig, TeacherConfig
from pretrain.checkpoints import Share, save
from pretrain.run_folder import run_path
from pretrain.stages.teacher import TeacherStage
from pretrain.teachers.gearnet import GearNet, GearNetTeacher
from pretrain.teachers.load import load_teacher
from tests.unit.pretrain.chains import make_chain
from tests.unit.pretrain.training import make_config, write_task

SHAPE = GearNetConfig(layers=2, width=8)
CHAIN = make_chain(30, 1)


def network(edge_messages: bool) -> GearNet:
    torch.manual_seed(0)
    return GearNet(SHAPE, edge_messages)


def write_state(path: Path, state: object) -> Path:
    """As published files are written; tests alone do so here."""
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("kind", ["gearnet", "gearnet_edge"])
@pytest.mark.parametrize("name", ["bare.pth", "bare.pt", "bare.safetensors"])
def test_a_bare_state_dict_gives_the_embeddings_of_its_network(kind: str, name: str, tmp_path: Path) -> None:
    expected = network(kind == "gearnet_edge")
    path = write_state(tmp_path / name, expected.state_dict())
    teacher = load_teacher(TeacherConfig(kind=kind, weights=path, gearnet=SHAPE))
    assert teacher.kind == kind
    np.testing.assert_array_equal(teacher.embed(CHAIN), GearNetTeacher(expected, "").embed(CHAIN))


def test_a_checkpoint_brings_its_own_shape_and_must_be_of_the_kind(tmp_path: Path) -> None:
    write_task(tmp_path, 8)
    shape = {"layers": 2, "width": 16}
    given = {"stage": "teacher", "trunk": None, "teacher__kind": "gearnet_edge", "teacher__gearnet": shape}
    config = make_config(tmp_path, **given)
    model = TeacherStage(config).model
    share = Share({name: tensor.detach() for name, tensor in model.state_dict().items()}, {})
    save(run_path(config), 1, dump_config(config), {"step": 1, "optimizer_steps": 1}, share)
    teacher = load_teacher(TeacherConfig(kind="gearnet_edge", weights=run_path(config)))
    assert teacher.width == 16
    np.testing.assert_array_equal(teacher.embed(CHAIN), GearNetTeacher(model.gearnet, "").embed(CHAIN))
    with pytest.raises(UserError, match=r"a gearnet_edge but teacher\.kind is gearnet"):
        load_teacher(TeacherConfig(kind="gearnet", weights=run_path(config)))


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        ({"kind": "gearnet"}, {}, "set teacher.kind=gearnet_edge teacher.gearnet.layers=2 teacher.gearnet.width=8"),
        ({"gearnet": GearNetConfig(layers=3, width=8)}, {}, "a gearnet_edge of 2 layers x 8; set"),
        ({}, {"layers.0.linear.bias": None}, r"keys 1 missing \(layers.0.linear.bias\)"),
        ({}, {"mlp.weight": torch.zeros(2)}, r"keys 1 not of this network \(mlp.weight\)"),
        ({}, {"layers.1.linear.bias": torch.zeros(3)}, r"layers.1.linear.bias has shape \[3\], a gearnet_edge has"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused_with_the_remedy(
    config: dict, change: dict, message: str, tmp_path: Path
) -> None:
    state = {**network(True).state_dict(), **change}
    path = write_state(tmp_path / "x.pth", {name: each for name, each in state.items() if each is not None})
    with pytest.raises(UserError, match=message):
        load_teacher(TeacherConfig(**{"kind": "gearnet_edge", "gearnet": SHAPE, "weights": path, **config}))


def test_files_that_are_no_state_dict_are_user_errors(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("not tensors")
    (tmp_path / "text.safetensors").write_text("not tensors")
    write_state(tmp_path / "nested.pth", {"model": {"x": torch.zeros(1)}})
    messages = {
        "text.pth": "not a file of tensors",
        "text.safetensors": "not a file of tensors",
        "nested.pth": "a mapping of model; wanted is a bare state dict",
        "missing.pth": "no such file",
    }
    for name, message in messages.items():
        with pytest.raises(UserError, match=message):
            load_teacher(TeacherConfig(weights=tmp_path / name))


@pytest.mark.parametrize("kind", ["gearnet", "gearnet_edge", "mpnn"])
def test_a_teacher_without_weights_is_a_user_error(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"teacher\.weights is not set"):
        load_teacher(TeacherConfig(kind=kind))
    with pytest.raises(UserError, match="missing"):
        load_teacher(TeacherConfig(kind=kind, weights=tmp_path / "missing"))
