"""Starting a run: refusals before any worker starts, Ray Train with two workers, and what ends a run."""

from pathlib import Path
from typing import Any

import pytest

from configs.errors import UserError
from pretrain.checkpoints import list_checkpoints, open_checkpoint
from pretrain.launch import check, train
from pretrain.run_folder import METRICS, claim, read_metrics, read_status, run_path
from pretrain.tracking import read_progress
from tests.unit.pretrain.test_checkpoints import save_as
from tests.unit.pretrain.training import make_config, run_training, write_task


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launch")
    write_task(folder)
    return folder


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data__shards": "nowhere"}, "shards nowhere: no such folder"),
        ({"data__split": "test"}, "'test'.*allowed: train"),
        ({"teacher__column": "other"}, "derived column 'other'"),
        ({"teacher__column": None, "teacher__weights": "nowhere"}, "teacher.weights nowhere: not there"),
        ({"trunk__weights": "nowhere.pt"}, "trunk.weights nowhere.pt: no such file"),
        ({"selection": {"mode": "large", "reference": "nowhere"}}, "nowhere: no such folder"),
        ({"engine__deepspeed": "nowhere.json"}, r"engine.deepspeed nowhere\.json: cannot be read"),
    ],
)
def test_what_is_missing_is_named_before_any_worker_starts(task: Path, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(make_config(task, name="refused", **overrides))
    assert not run_path(make_config(task, name="refused")).exists()


def test_no_cluster_at_the_address_is_said_at_once(task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Other tests of the session may have connected this process to their cluster.
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    config = make_config(
        task, name="no_cluster", engine__launcher="ray", engine__address="127.0.0.1:9", engine__num_workers=2
    )
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9: no Ray cluster answers"):
        train(config)
    assert read_status(run_path(config))["state"] == "failed"


def test_the_shards_manifest_is_named_by_its_hash(task: Path) -> None:
    assert len(check(make_config(task))) == 64


def test_a_finished_run_tells_the_tracker_what_it_lacks(tmp_path: Path) -> None:
    config = make_config(tmp_path, tracking__mlflow=True, optimizer__steps=2)
    claim(config).close()
    (run_path(config) / METRICS).write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    save_as(run_path(config), 2, state={"data_sha256": "abc"})
    assert train(config) == 0
    told = read_progress(run_path(config))
    assert told.logged_step == 2
    assert list(told.models) == ["step_00000002"]


def test_two_ray_workers_train_to_the_end_and_a_second_start_has_nothing_to_do(task: Path, ray_cluster: str) -> None:
    config = make_config(
        task,
        name="ray",
        engine__launcher="ray",
        engine__num_workers=2,
        engine__address=ray_cluster,
        optimizer__steps=4,
        checkpoint__every=2,
    )
    assert train(config) == 0
    folder = run_path(config)
    assert read_status(folder)["state"] == "finished"
    assert [row["step"] for row in read_metrics(folder / METRICS)] == [1, 2, 3, 4]
    assert [path.name for path in list_checkpoints(folder)] == ["step_00000002", "step_00000004"]
    assert open_checkpoint(folder).state["written_by"]["world_size"] == 2
    assert not list((folder / "ray_train").rglob("*.safetensors")), "Ray holds no second copy"
    assert train(config) == 0


def test_damage_that_a_ray_worker_meets_ends_as_the_user_error_it_is(task: Path, ray_cluster: str) -> None:
    folder = task / "damaged"
    write_task(folder)
    for shard in (folder / "shards").glob("train-*.tar"):
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
    config = make_config(folder, engine__launcher="ray", engine__address=ray_cluster, engine__max_failures=0)
    with pytest.raises(UserError, match=r"train-000000.tar: damaged"):
        train(config)
    status = read_status(run_path(config))
    assert status["state"] == "failed"
    assert "damaged" in status["detail"]


def test_a_cluster_that_is_too_small_is_refused(task: Path, ray_cluster: str) -> None:
    config = make_config(
        task,
        name="too_small",
        engine__launcher="ray",
        engine__address=ray_cluster,
        engine__num_workers=2,
        engine__cpus_per_worker=500,
    )
    with pytest.raises(UserError, match=r"2 workers need 1000 CPU, the Ray cluster has"):
        train(config)


def test_the_command_trains_without_a_compiler_and_builds_nothing(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    config = make_config(task, name="command", optimizer__steps=2)
    run_training(config, task, path=str(tmp_path))
    assert read_status(run_path(config))["state"] == "finished"
    assert not (tmp_path / "extensions").exists()
