"""Figures of how well a step uses the machine."""

import mmap
from pathlib import Path

import pytest
import torch

from data_pipeline.reader import ShardReader
from pretrain.memory import peak_resident_bytes, resident_bytes
from pretrain.model.encoder import Encoder
from pretrain.model.shape import TrunkShape
from pretrain.sampler import Position
from pretrain.stages.align import AlignStage
from pretrain.throughput import Meter, matrix_elements, matrix_flops, neighbours_of_a_token, open_meter, token_flops
from tests.unit.pretrain.training import make_config, write_task


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("throughput")
    write_task(folder)
    return folder


def test_a_step_at_the_peak_with_full_packs_uses_everything() -> None:
    meter = Meter(budget_tokens=1000, token_flops=10.0, peak_flops=5000.0, peak_name="mfu", on_gpu=False)
    found = meter.figures(num_tokens=1000, seconds=2.0)
    assert found["token_utilisation"] == found["mfu"] == 1.0
    assert meter.figures(num_tokens=500, seconds=2.0)["mfu"] == 0.5


def test_operations_are_those_that_torch_counts() -> None:
    shape, n = TrunkShape("esm2", 2, 32, 4), 50
    trunk = Encoder(shape)
    hidden = torch.randn(n, 32, requires_grad=True)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        for layer in trunk.layers:
            for linear in (layer.attention.qkv, layer.attention.out, layer.ffn.up):
                torch.nn.functional.linear(hidden, linear.weight).sum().backward()
            inner = hidden.repeat(1, 4).detach().requires_grad_()
            torch.nn.functional.linear(inner, layer.ffn.down.weight).sum().backward()
            heads = hidden.view(n, 4, 8).transpose(0, 1)
            (heads @ heads.transpose(1, 2) @ heads).sum().backward()
    assert token_flops(shape, matrix_elements(trunk), n) * n == counter.get_total_flops()


def test_frozen_matrices_cost_no_gradients_of_their_own() -> None:
    trunk = Encoder(TrunkShape("esm2", 2, 32, 4))
    every = matrix_elements(trunk)
    frozen = matrix_elements(trunk.requires_grad_(False))
    assert every.every == every.trainable == frozen.every == 2 * 12 * 32 * 32
    assert frozen.trainable == 0


def test_a_token_has_the_neighbours_of_its_own_protein(task: Path) -> None:
    config = make_config(task, data__max_residues=30)
    with ShardReader(task / "shards") as reader:
        lengths = [min(int(n), 30) + 2 for n in reader.index("train").residues]
        assert neighbours_of_a_token(reader, config) == pytest.approx(
            sum(n * n for n in lengths) / sum(lengths), rel=1e-12
        )


def test_a_runs_meter_gives_sound_figures_for_its_real_pools(task: Path) -> None:
    config = make_config(task)
    stage = AlignStage(config)
    meter = open_meter(config, stage.model)
    fed = next(stage.batches(Position(), 0, 1))
    found = meter.figures(fed.num_tokens, seconds=1.0)
    assert set(found) == {"token_utilisation", "gemm_fraction", "memory_gib"}
    # Packs of such short chains are nearly full, and never more than that.
    assert 0.7 < found["token_utilisation"] <= 1.0
    assert found["gemm_fraction"] >= 0
    assert found["memory_gib"] == pytest.approx(peak_resident_bytes() / 2**30, abs=0.1)


def test_a_stage_without_a_trunk_has_its_memory_alone(task: Path) -> None:
    config = make_config(task, stage="teacher", trunk=None)
    assert set(open_meter(config, torch.nn.Linear(2, 2)).figures(10, 1.0)) == {"memory_gib"}


def test_resident_memory_is_what_was_touched_and_its_peak_stays() -> None:
    before = resident_bytes()
    # Not from the allocator, which may hand out what the process has freed and kept.
    with mmap.mmap(-1, 64 << 20) as block:
        block.write(bytes(len(block)))
        # The block itself, give or take what else the process does.
        assert resident_bytes() - before > 0.9 * len(block)
        assert peak_resident_bytes() >= before + 0.9 * len(block)


def test_a_timed_product_is_faster_than_a_million_operations_a_second() -> None:
    assert matrix_flops(32, 64, "fp32", seconds=0.01) > 1e6
