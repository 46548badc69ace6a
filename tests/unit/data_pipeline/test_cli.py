"""Commands of the data pipeline: what they print and how they end."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from configs.program import run_program
from data_pipeline.cli import app
from tests.unit.data_pipeline.samples import write_small_shards

CONFIG = "output: out\nsource: {kind: files, path: structures}\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "build.yaml"
    path.write_text(CONFIG)
    return path


def exit_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        run_program(lambda: app(arguments))
    code = end.value.code
    assert isinstance(code, int)
    return code, capsys.readouterr().err


def test_help_shows_examples() -> None:
    for command in ("build", "audit"):
        shown = CliRunner().invoke(app, [command, "--help"])
        assert shown.exit_code == 0
        assert f"python -m data_pipeline {command}" in shown.output


def test_print_config_shows_what_overrides_made_of_it(config: Path) -> None:
    shown = CliRunner().invoke(app, ["build", str(config), "split.seed=3", "--print-config"])
    assert shown.exit_code == 0
    assert "seed: 3" in shown.output


def test_a_misspelled_key_ends_with_2_and_a_hint(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, told = exit_of(["build", str(config), "split.sead=3"], capsys)
    assert code == 2
    assert "did you mean 'seed'?" in told


def test_a_missing_source_ends_with_2_and_one_line(
    config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    settings = [f"source.path={tmp_path / 'nothing'}", f"output={tmp_path / 'out'}"]
    code, told = exit_of(["build", str(config), *settings], capsys)
    assert code == 2
    assert len(told.strip().splitlines()) == 1
    assert "no such file or folder" in told


def test_audit_ends_with_0_on_sound_1_on_damaged_and_2_on_no_shards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "shards"
    write_small_shards(folder)
    sound = CliRunner().invoke(app, ["audit", str(folder)])
    assert sound.exit_code == 0
    assert "every hash, count, index and sample is right" in sound.output
    shard = folder / "train-000000.tar"
    shard.write_bytes(shard.read_bytes()[:-1])
    damaged = CliRunner().invoke(app, ["audit", str(folder)])
    assert damaged.exit_code == 1
    assert "DAMAGED train-000000.tar" in damaged.output
    code, told = exit_of(["audit", str(tmp_path / "nothing")], capsys)
    assert code == 2
    assert "no such folder" in told
