"""The commands: exit codes, tables and help."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from configs.errors import UserError
from eval.cli import app
from tests.unit.eval.makers import train_config, write_checkpoint, write_test_shards


def invoke(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "160"})


@pytest.fixture
def run_and_config(tmp_path: Path) -> tuple[Path, Path]:
    write_test_shards(tmp_path / "shards")
    config = train_config(tmp_path / "runs", tmp_path / "shards")
    for step in (10, 20):
        write_checkpoint(config, step, seed=step)
    path = tmp_path / "eval.yaml"
    path.write_text(yaml.safe_dump({"data": {"shards": str(tmp_path / "shards")}, "bootstrap_samples": 100}))
    return config.runs / config.name, path


def test_run_and_release_end_with_a_folder_and_a_table(run_and_config: tuple[Path, Path], tmp_path: Path) -> None:
    run, config = run_and_config
    result = invoke("run", run, config, "tasks=[threedi, threedi_majority, pseudo_perplexity]")
    assert result.exit_code == 0, result.output
    for text in ("step 10", "step 20", "3Di accuracy, own head", "pseudo-perplexity", "report.html"):
        assert text in result.output
    released = invoke("release", run, run / "eval", "-o", tmp_path / "out")
    assert released.exit_code == 0, released.output
    assert "EsmForMaskedLM" in released.output
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_misspelled_key_is_a_user_error(run_and_config: tuple[Path, Path]) -> None:
    run, config = run_and_config
    result = invoke("run", run, config, "head_epoch=3")
    assert isinstance(result.exception, UserError)
    assert "head_epochs" in str(result.exception)


def test_following_a_failed_run_ends_with_exit_code_1(run_and_config: tuple[Path, Path]) -> None:
    run, config = run_and_config

    def fail(path: Path) -> None:
        (run / "status.json").write_text('{"state": "failed", "step": 20, "total_steps": 40, "detail": "disk full"}')

    import threading

    timer = threading.Timer(0.5, fail, [run])
    timer.start()
    result = invoke("run", run, config, "tasks=[threedi_majority]", "poll_seconds=0.05", "--follow")
    timer.join()
    assert result.exit_code == 1
    assert "failed at step 20 of 40: disk full" in result.output


@pytest.mark.parametrize("command", ["run", "release"])
def test_help_shows_an_example(command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert f"python -m eval {command}" in " ".join(result.output.split())


def test_the_table_says_in_short_why_a_task_was_skipped_and_where_the_rest_stands(
    run_and_config: tuple[Path, Path], tmp_path: Path
) -> None:
    run, config = run_and_config
    chosen = ("tasks=[threedi_majority, fluorescence]", f"benchmarks.root={tmp_path}", "-o", tmp_path / "out")
    result = invoke("run", run / "checkpoints" / "step_00000020", config, *chosen)
    assert result.exit_code == 0, result.output
    flat = " ".join(result.output.split())
    assert "dataset 'fluorescence': not in" in flat
    assert "looked for" not in flat
    assert "report.html has the whole reason" in flat
    assert "looked for" in (tmp_path / "out" / "report.html").read_text()
