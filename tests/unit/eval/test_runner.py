"""Evaluating runs: real checkpoints and shards, small."""

import json
import logging
import threading
import time
from pathlib import Path

import pytest

from configs.errors import UserError
from configs.evaluate import EvalConfig, EvalDataConfig
from configs.train import TrainConfig
from data_pipeline.reader import ShardReader
from eval import evaluation
from eval.follow import RunFailed, follow_run, read_status
from eval.results import read_results
from eval.runner import evaluate_target, target_of
from tests.unit.eval.makers import train_config, write_checkpoint, write_test_shards

FAST = ("threedi", "threedi_majority")


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    write_test_shards(tmp_path / "shards")
    return train_config(tmp_path / "runs", tmp_path / "shards")


def settings(config: TrainConfig, **changes: object) -> EvalConfig:
    content = {"data": EvalDataConfig(shards=config.data.shards), "tasks": FAST, "bootstrap_samples": 100}
    return EvalConfig(**{**content, "poll_seconds": 0.02, **changes})


def set_status(config: TrainConfig, state: str, **more: object) -> None:
    run = config.runs / config.name
    run.mkdir(parents=True, exist_ok=True)
    (run / "status.json").write_text(json.dumps({"state": state, "step": 5, "total_steps": 20, "pid": 1, **more}))


def test_a_run_folder_means_every_complete_checkpoint(config: TrainConfig) -> None:
    run = write_checkpoint(config, 10, seed=1).parent.parent
    write_checkpoint(config, 20, seed=2)
    (run / "checkpoints" / "step_00000030").mkdir()
    found = evaluate_target(target_of(run, None), settings(config), follow=False)
    assert [results.step for results in found] == [10, 20]
    assert read_results(run / "eval" / "step_00000020") == found[1]
    assert found[0].weights_sha256 != found[1].weights_sha256
    assert (run / "eval" / "report.html").is_file()


def test_one_checkpoint_writes_to_its_run_or_where_it_is_told(config: TrainConfig, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(config, 10)
    assert target_of(checkpoint, None).output == checkpoint.parent.parent / "eval"
    found = evaluate_target(target_of(checkpoint, tmp_path / "out"), settings(config), follow=False)
    assert read_results(tmp_path / "out" / "step_00000010") == found[0]
    assert not (checkpoint.parent.parent / "eval").exists()


def test_results_of_the_same_weights_and_protocol_are_kept(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = target_of(write_checkpoint(config, 10), None)
    first = evaluate_target(target, settings(config), follow=False)
    loads = []
    monkeypatch.setattr(evaluation, "open_model", loads.append)
    again = evaluate_target(target, settings(config, poll_seconds=5.0), follow=False)
    assert again == first
    assert loads == []
    monkeypatch.undo()
    other = evaluate_target(target, settings(config, seed=1), follow=False)
    assert other[0].protocol_sha256 != first[0].protocol_sha256
    write_checkpoint(config, 10, seed=9)
    replaced = evaluate_target(target, settings(config, seed=1), follow=False)
    assert replaced[0].weights_sha256 != other[0].weights_sha256


def test_a_damaged_checkpoint_of_a_run_is_named_and_left_out(
    config: TrainConfig, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = write_checkpoint(config, 10)
    write_checkpoint(config, 20)
    weights = damaged / "weights-00000.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 255
    weights.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        found = evaluate_target(target_of(config.runs / config.name, None), settings(config), follow=False)
    assert [results.step for results in found] == [20]
    assert "step_00000010" in caplog.text
    with pytest.raises(UserError, match="damaged"):
        evaluate_target(target_of(damaged, None), settings(config), follow=False)


def test_a_skipped_task_is_recorded_with_its_reason(tmp_path: Path) -> None:
    write_test_shards(tmp_path / "shards")
    config = train_config(tmp_path / "runs", tmp_path / "shards", structure=0.0)
    found = evaluate_target(target_of(write_checkpoint(config, 10), None), settings(config), follow=False)
    assert [(s.task, "no 3Di head" in s.reason) for s in found[0].skipped] == [("threedi", True)]
    assert {r.task for r in found[0].results} == {"threedi_majority"}


def test_the_split_a_checkpoint_was_trained_on_is_refused(config: TrainConfig) -> None:
    with ShardReader(config.data.shards) as reader:
        path = write_checkpoint(config, 10, data_sha256=reader.manifest_sha256)
    swapped = EvalDataConfig(shards=config.data.shards, split="train", fit_split="test")
    with pytest.raises(UserError, match="was trained on"):
        evaluate_target(target_of(path, None), settings(config, data=swapped), follow=False)
    assert evaluate_target(target_of(path, None), settings(config), follow=False)[0].step == 10


def test_an_empty_run_is_a_user_error(config: TrainConfig) -> None:
    with pytest.raises(UserError, match="no complete checkpoint"):
        evaluate_target(target_of(config.runs / config.name, None), settings(config), follow=False)


def test_following_evaluates_what_appears_until_the_run_has_finished(config: TrainConfig) -> None:
    run = config.runs / config.name

    def train() -> None:
        for step in (10, 20):
            time.sleep(0.2)
            set_status(config, "running")
            write_checkpoint(config, step, seed=step)
        set_status(config, "finished")

    trainer = threading.Thread(target=train)
    trainer.start()
    found = evaluate_target(target_of(run, None), settings(config), follow=True)
    trainer.join()
    assert [results.step for results in found] == [10, 20]


def test_following_a_failed_run_evaluates_its_checkpoints_and_then_fails(config: TrainConfig) -> None:
    run = config.runs / config.name
    write_checkpoint(config, 10)
    timer = threading.Timer(0.3, lambda: set_status(config, "failed", detail="out of memory"))
    set_status(config, "running")
    timer.start()
    with pytest.raises(RunFailed, match="failed at step 5 of 20: out of memory"):
        evaluate_target(target_of(run, None), settings(config), follow=True)
    assert read_results(run / "eval" / "step_00000010").step == 10


def test_an_old_failure_does_not_end_following_a_continued_run(config: TrainConfig) -> None:
    run = config.runs / config.name
    set_status(config, "failed")
    write_checkpoint(config, 10)
    time.sleep(0.05)  # so that the old failure is older than the start
    seen: list[str] = []

    def evaluate(path: Path) -> None:
        seen.append(path.name)
        if len(seen) == 1:
            write_checkpoint(config, 20)
            set_status(config, "finished")

    follow_run(run, evaluate, poll_seconds=0.01, stall_seconds=30.0)
    assert seen == ["step_00000010", "step_00000020"]


def test_following_goes_on_past_a_checkpoint_that_cannot_be_evaluated(
    config: TrainConfig, caplog: pytest.LogCaptureFixture
) -> None:
    run = config.runs / config.name
    for step in (10, 20):
        write_checkpoint(config, step)
    set_status(config, "finished")
    seen: list[str] = []

    def evaluate(path: Path) -> None:
        seen.append(path.name)
        if path.name.endswith("10"):
            raise UserError("checkpoint step 10: damaged")

    follow_run(run, evaluate, poll_seconds=0.01, stall_seconds=30.0)
    assert len(seen) == 2
    assert "damaged" in caplog.text


def test_following_gives_up_on_a_run_without_a_sign_of_life(config: TrainConfig) -> None:
    set_status(config, "running")
    with pytest.raises(RunFailed, match="no sign of life"):
        follow_run(config.runs / config.name, lambda path: None, poll_seconds=0.01, stall_seconds=0.1)


def test_a_status_file_that_is_not_json_counts_as_unknown(tmp_path: Path) -> None:
    assert read_status(tmp_path) == {}
    (tmp_path / "status.json").write_text("{")
    assert read_status(tmp_path) == {}


def test_following_one_checkpoint_is_refused(config: TrainConfig) -> None:
    with pytest.raises(UserError, match="needs a run folder"):
        evaluate_target(target_of(write_checkpoint(config, 10), None), settings(config), follow=True)
