"""`--dry-run` against what is really made."""

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from configs.loading import dump_config
from configs.train import TrainConfig
from pretrain.cli import app
from pretrain.estimate import estimate
from pretrain.memory_estimate import Memory, Sizes, predict_memory, saved_bytes
from pretrain.model.shape import TrunkShape, trunk_shape
from pretrain.stages.align import AlignStage
from tests.unit.pretrain.training import make_config, write_task


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("estimate")
    write_task(folder)
    return folder


def test_parameters_and_pools_are_those_of_the_real_stage(task: Path) -> None:
    config = make_config(task)
    found, stage = estimate(config), AlignStage(config)
    assert found.trunk_parameters == sum(p.numel() for p in stage.model.trunk.parameters())
    assert found.trunk_parameters + found.head_parameters == sum(p.numel() for p in stage.model.parameters())
    assert found.pools_per_epoch == stage.pools_per_epoch


def predicted(config: TrainConfig, trained: int = 1000) -> Memory:
    """Of a model with a thousand parameters."""
    return predict_memory(config, trunk_shape(config.trunk), Sizes(1000, trained, 100), 64, reference=0)


@pytest.mark.parametrize(
    ("stage", "precision", "workers", "bytes_per_parameter"),
    [
        (0, "fp32", 4, 4 + 4 + 8),
        (0, "bf16", 4, 2 + 2 + 12),
        (1, "bf16", 4, 2 + 2 + 12 / 4),
        (2, "bf16", 4, 2 + 2 / 4 + 12 / 4),
        (3, "bf16", 4, (2 + 2 + 12) / 4),
        (3, "fp32", 2, (4 + 4 + 12) / 2),
    ],
)
def test_state_is_divided_as_the_zero_stage_divides_it(
    task: Path, stage: int, precision: str, workers: int, bytes_per_parameter: float
) -> None:
    config = make_config(
        task,
        data__packs_per_pool=4,
        engine__zero_stage=stage,
        engine__precision=precision,
        engine__num_workers=workers,
    )
    assert predicted(config).state == 1000 * bytes_per_parameter


def test_frozen_parameters_have_neither_gradients_nor_moments(task: Path) -> None:
    config = make_config(task, engine__zero_stage=3)
    assert predicted(config, trained=100).state == 1000 * 4 + 100 * (4 + 12)


def test_adapters_leave_the_trunk_frozen(task: Path) -> None:
    whole = estimate(make_config(task))
    adapted = estimate(make_config(task, trunk__lora={"rank": 2}, trunk__weights="hub"))
    assert whole.trained_parameters == whole.trunk_parameters + whole.head_parameters
    assert adapted.trained_parameters < 0.5 * whole.trained_parameters
    assert adapted.trunk_parameters > whole.trunk_parameters
    # No weight gradients of the frozen matrices: 4 of 6 operations, and attention's.
    assert 4 / 6 < adapted.step_flops / whole.step_flops < 0.95


def test_a_snapshot_counts_only_where_one_is_written_beside_the_training(task: Path) -> None:
    assert predicted(make_config(task, checkpoint__every=5)).snapshot == 1000 * 12
    assert predicted(make_config(task, checkpoint__every=10)).snapshot == 0
    assert predicted(make_config(task, checkpoint__asynchronous=False)).snapshot == 0


def test_recomputed_activations_are_not_kept(task: Path) -> None:
    deep = {"trunk__layers": 24}
    kept = estimate(make_config(task, **deep))
    recomputed = estimate(make_config(task, engine__activation_checkpointing=True, **deep))
    # One layer of 24 whole, and of the others only what goes in: 1 of some 16 values, and gradients in passing.
    assert recomputed.memory.activations < 0.25 * kept.memory.activations
    assert recomputed.step_flops == pytest.approx(4 / 3 * kept.step_flops)


def test_a_large_trunk_is_never_whole_on_one_worker(tmp_path: Path) -> None:
    settings = {"data__packs_per_pool": 2, "engine__num_workers": 2}
    small = estimate(make_config(tmp_path, trunk={"model": "esm2_t12_35M_UR50D"}, **settings))
    large = estimate(make_config(tmp_path, trunk={"model": "esm2_t36_3B_UR50D"}, **settings))
    assert small.memory.gathered == 4 * (small.trunk_parameters + small.head_parameters)
    assert large.memory.gathered < 0.15 * 4 * large.trunk_parameters


@pytest.mark.parametrize(("family", "layers", "width", "heads"), [("esm2", 12, 480, 20), ("amplify", 24, 640, 10)])
def test_kept_activations_are_those_of_a_real_forward_pass(family: str, layers: int, width: int, heads: int) -> None:
    per_unit = saved_bytes(TrunkShape(family, layers, width, heads), torch.float32) / 4
    # The input of each matrix product and norm at least, and all that is ever computed at most.
    assert 10 < per_unit < 32
    assert saved_bytes(TrunkShape(family, layers, width, heads), torch.bfloat16) / 4 < 0.7 * per_unit


@pytest.mark.parametrize(
    ("teacher", "derive", "width"),
    [
        ({"kind": "mpnn"}, {}, 64),
        ({"kind": "gearnet"}, {}, 512),
        ({"kind": "gearnet_edge", "gearnet": {"width": 128, "representation": "concat"}}, {}, 6 * 128),
        ({"kind": "gearnet", "column": "pca"}, {"form": "pca", "pca_width": 32}, 32),
    ],
)
def test_projections_have_the_width_of_what_the_teacher_will_give(
    tmp_path: Path, teacher: dict[str, Any], derive: dict[str, Any], width: int
) -> None:
    base = estimate(make_config(tmp_path, teacher={"kind": "mpnn"}))
    found = estimate(make_config(tmp_path, teacher=teacher, derive=derive))
    assert found.head_parameters - base.head_parameters == (width - 64) * 16


def test_every_further_teacher_has_projections_of_its_own(tmp_path: Path) -> None:
    one = estimate(make_config(tmp_path, teacher={"kind": "mpnn"}))
    two = estimate(make_config(tmp_path, teacher={"kind": "mpnn"}, more_teachers=[{"kind": "mpnn"}]))
    assert two.head_parameters - one.head_parameters == (64 + 1) * 16 + (32 + 1) * 16 + 1


def test_the_published_sizes_can_be_estimated_without_their_weights_or_data(tmp_path: Path) -> None:
    config = make_config(tmp_path, trunk={"model": "esm2_t33_650M_UR50D", "weights": "hub"})
    found = estimate(config)
    assert 650e6 < found.trunk_parameters < 653e6
    assert found.pools_per_epoch is None


def test_a_dry_run_prints_the_figures_and_trains_nothing(task: Path) -> None:
    file = task / "tiny.yaml"
    file.write_text(dump_config(make_config(task)))
    shown = CliRunner().invoke(app, ["train", str(file), "--dry-run"])
    assert shown.exit_code == 0, shown.output
    assert "trunk parameters" in shown.output
    assert "memory per worker" in shown.output
    assert "GFLOP/s" in shown.output
    assert not (task / "runs").exists()


def test_print_config_gives_yaml_that_holds_every_default(task: Path) -> None:
    file = task / "tiny.yaml"
    file.write_text(dump_config(make_config(task)))
    shown = CliRunner().invoke(app, ["train", str(file), "optimizer.steps=3", "--print-config"])
    assert shown.exit_code == 0
    assert "steps: 3" in shown.output
    assert "max_logit_scale: 100.0" in shown.output
