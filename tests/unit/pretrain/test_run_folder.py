"""The run folder: who may continue a run, and what its small files hold."""

import json
import resource
from pathlib import Path

import pytest

from configs.errors import UserError
from configs.loading import load_config
from configs.train import TrainConfig
from pretrain.run_folder import (
    METRICS,
    STOP,
    RunFolder,
    claim,
    is_finished,
    read_metrics,
    read_status,
    refuse_other_config,
    run_path,
)
from tests.unit.pretrain.test_checkpoints import save_as
from tests.unit.pretrain.training import make_config


def test_a_run_continues_with_changes_that_do_not_change_what_is_learnt(tmp_path: Path) -> None:
    before = make_config(tmp_path)
    for change in (
        {"engine__num_workers": 2, "engine__zero_stage": 1},
        {"checkpoint__keep": 3},
        {"tracking__mlflow": True},
        {"optimizer__steps": 11},
    ):
        now = make_config(tmp_path, **change)
        assert now != before
        refuse_other_config(tmp_path, before, now)


@pytest.mark.parametrize(
    ("key", "value"), [("seed", 1), ("optimizer.steps", 9), ("optimizer.clip", 0.5), ("data.pack_tokens", 256)]
)
def test_a_change_of_what_is_learnt_is_refused_with_both_values(tmp_path: Path, key: str, value: object) -> None:
    now = make_config(tmp_path, **{key.replace(".", "__"): value})
    with pytest.raises(UserError, match=rf"begun with {key}=.*, now {key}={value}"):
        refuse_other_config(tmp_path, make_config(tmp_path), now)


def test_claiming_writes_the_resolved_config_and_excludes_a_second_program(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    with claim(config):
        assert load_config(TrainConfig, run_path(config) / "config.yaml") == config
        with pytest.raises(UserError, match="another program is training it"):
            claim(config)
    claim(config).close()


def test_a_run_is_finished_when_its_last_checkpoint_is_complete(tmp_path: Path) -> None:
    config = make_config(tmp_path, optimizer__steps=10)
    claim(config).close()
    save_as(run_path(config), 5)
    assert not is_finished(config)
    last = save_as(run_path(config), 10)
    assert is_finished(config)
    with pytest.raises(UserError, match="seed"):
        is_finished(make_config(tmp_path, seed=4))
    (last / "manifest.json").unlink()
    assert not is_finished(config)


def test_rows_past_the_checkpoint_and_torn_rows_are_dropped_on_resume(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, total_steps=9)
    (tmp_path / METRICS).write_text("".join(json.dumps({"step": s, "loss": 1.5}) + "\n" for s in (1, 2, 3)) + '{"st')
    run.begin(2)
    run.log({"step": 3, "loss": 2.5})
    run.end("finished", 3)
    rows = [(row["step"], row["loss"]) for row in read_metrics(tmp_path / METRICS)]
    assert rows == [(1, 1.5), (2, 1.5), (3, 2.5)]


def test_status_follows_the_run_and_names_its_process(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, total_steps=9)
    assert read_status(tmp_path) == {}
    run.begin(4)
    status = read_status(tmp_path)
    assert (status["state"], status["step"], status["total_steps"]) == ("running", 4, 9)
    assert status["pid"] > 0
    run.end("failed", 6, "RuntimeError: worker 1 lost")
    status = read_status(tmp_path)
    assert (status["state"], status["step"], status["detail"]) == ("failed", 6, "RuntimeError: worker 1 lost")


def test_only_rank_zero_writes_and_a_stop_request_is_seen_once(tmp_path: Path) -> None:
    silent = RunFolder(tmp_path, total_steps=9, rank=1)
    silent.begin(0)
    silent.log({"step": 1})
    silent.end("finished", 1)
    assert list(tmp_path.iterdir()) == []
    run = RunFolder(tmp_path, total_steps=9)
    (tmp_path / STOP).touch()
    assert run.stop_requested
    run.begin(0)
    assert not run.stop_requested, "an old request must not stop the next attempt"
    run.terminated = True
    assert run.stop_requested
    run.end("stopped", 0)


def test_rows_that_a_full_disk_refuses_wait_and_are_written_whole_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunFolder(tmp_path, total_steps=9)
    run.begin(0)
    run.log({"step": 1, "loss": 1.5})
    ceiling = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    # Room for a part of the next row: the kernel writes that much and no more.
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / METRICS).stat().st_size + 5, ceiling))
    try:
        run.log({"step": 2, "loss": 2.5})
        run.log({"step": 3, "loss": 3.5})
        assert [row["step"] for row in read_metrics(tmp_path / METRICS)] == [1]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (ceiling, ceiling))
    run.end("finished", 3)
    assert [row["loss"] for row in read_metrics(tmp_path / METRICS)] == [1.5, 2.5, 3.5]
    assert len([record for record in caplog.records if "rows wait in memory" in record.message]) == 1
