"""How a trunk is made to run: recomputation, compilation, attention backend; the same losses and names in every way."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from configs.engine import EngineConfig
from configs.errors import UserError
from pretrain.model import execution
from pretrain.model.encoder import Encoder
from pretrain.model.execution import apply_execution
from pretrain.model.shape import TrunkShape
from tests.parity.trunks import masked_proteins, pack, scramble
from tests.unit.pretrain.training import ROOT, write_task

SHAPES = [TrunkShape("esm2", 4, 48, 4), TrunkShape("amplify", 4, 48, 4)]
FAMILIES = pytest.mark.parametrize("shape", SHAPES, ids=["esm2", "amplify"])
CPU = torch.device("cpu")
LENGTHS = ((31, 12, 12, 1, 50), (8, 8, 40))
"""Two packs of other sizes, so that nothing can be made for one of them."""


def make_model(shape: TrunkShape, **engine: object) -> nn.Module:
    """A trunk inside a model, as the stages have it."""
    model = nn.ModuleDict({"trunk": Encoder(shape)})
    scramble(model, seed=0)
    apply_execution(model, EngineConfig(**engine), CPU)
    return model


def run(model: nn.Module) -> tuple[list[float], dict[str, Tensor], int]:
    """Losses of both packs, gradients of their sum, and the bytes that the first forward keeps for backward."""
    trunk, losses, kept = model["trunk"], [], {}

    def count(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    kept_bytes = 0
    for lengths in LENGTHS:
        packed = pack(masked_proteins(trunk.shape.family, lengths))
        targets = torch.randint(4, 20, packed.tokens.shape, generator=torch.Generator().manual_seed(0))
        with saved_tensors_hooks(count, lambda tensor: tensor):
            loss = nn.functional.cross_entropy(trunk.lm_logits(trunk(packed)), targets)
        kept_bytes = kept_bytes or sum(kept.values())
        loss.backward()
        losses.append(loss.item())
    return losses, {name: parameter.grad for name, parameter in model.named_parameters()}, kept_bytes


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        difference = (found[name] - gradient).abs().max()
        assert difference <= tolerance * max(1.0, gradient.abs().max()), name


@FAMILIES
def test_recomputed_activations_give_the_same_losses_and_gradients_from_less_memory(shape: TrunkShape) -> None:
    losses, gradients, kept = run(make_model(shape))
    again, found, kept_less = run(make_model(shape, activation_checkpointing=True))
    # The same sums in the same order.
    assert again == pytest.approx(losses, abs=1e-6)
    assert_same(found, gradients, 1e-6)
    # Parameters and the head's part stay.
    assert kept_less < 0.5 * kept


def test_recomputation_under_zero3_on_two_ranks_gives_the_same_steps_from_less_memory(tmp_path: Path) -> None:
    write_task(tmp_path)
    (tmp_path / "partition_all.json").write_text('{"zero_optimization": {"stage3_param_persistence_threshold": 0}}')
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.unit.pretrain.zero3_steps", str(tmp_path)],
            cwd=ROOT,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
        found = json.loads(output.splitlines()[-1])
        kept, recomputed = found["False"], found["True"]
        # The same sums in the same order on every rank; losses are near 7, norms near 10.
        assert recomputed["loss"] == pytest.approx(kept["loss"], abs=1e-6)
        assert recomputed["grad_norm"] == pytest.approx(kept["grad_norm"], rel=1e-6)
        assert len(set(kept["loss"])) == len(kept["loss"]), "the steps must change the weights"
        assert all(less < 0.7 * all_ for less, all_ in zip(recomputed["kept_bytes"], kept["kept_bytes"], strict=True))


@pytest.mark.long
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="compiling for a CPU needs C++")
@FAMILIES
def test_compiled_layers_give_the_same_losses_under_the_same_names(shape: TrunkShape) -> None:
    losses, gradients, _ = run(make_model(shape))
    model = make_model(shape, compile=True, zero_stage=1)
    assert list(model.state_dict()) == list(make_model(shape).state_dict())
    torch._dynamo.utils.counters.clear()
    found_losses, found, _ = run(model)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "nothing was compiled"
    # Fused sums in another order, over 4 layers.
    assert found_losses == pytest.approx(losses, abs=1e-5)
    assert_same(found, gradients, 1e-5)
    assert not any("_orig_mod" in name for name in found)


def test_compilation_is_asked_of_every_layer_and_changes_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(execution, "_check_compiler", lambda *_: None)
    monkeypatch.setattr(nn.Module, "compile", lambda module, **settings: compiled.append((module, settings)))
    model = make_model(SHAPES[0], compile=True, zero_stage=1)
    assert compiled == [(layer, {"dynamic": True}) for layer in model["trunk"].layers]


def test_what_cannot_be_had_is_a_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"engine\.zero_stage 3"):
        make_model(SHAPES[0], compile=True, zero_stage=3)
    with pytest.raises(UserError, match=r"engine\.attention is varlen, but the device is 'cpu'"):
        make_model(SHAPES[0], attention="varlen", precision="bf16")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="no C\\+\\+ compiler \\(no-such-compiler\\)"):
        make_model(SHAPES[0], compile=True, zero_stage=1)


def test_a_model_without_a_trunk_is_left_alone() -> None:
    model = nn.Linear(3, 4)
    apply_execution(model, EngineConfig(activation_checkpointing=True, zero_stage=1, compile=True), CPU)
    assert list(model.state_dict()) == ["weight", "bias"]
