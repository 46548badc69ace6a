"""`--dry-run` against what is really made."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from configs.loading import dump_config
from pretrain.cli import app
from pretrain.estimate import estimate, state_bytes
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
    engine = make_config(
        task,
        data__packs_per_pool=4,
        engine__zero_stage=stage,
        engine__precision=precision,
        engine__num_workers=workers,
    ).engine
    assert state_bytes(1000, engine) == 1000 * bytes_per_parameter


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
