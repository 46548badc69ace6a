"""The edge of every program: exit codes and log formats."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from configs.errors import UserError
from configs.program import run_program, set_up_logging

ROOT = Path(__file__).parents[3]


def test_a_user_error_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    def app() -> None:
        raise UserError("first part\n   second part")

    with pytest.raises(SystemExit) as stop:
        run_program(app)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: first part second part\n"


def test_logs_are_json_lines_when_asked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SAPLM_LOG", "json")
    set_up_logging()
    logging.getLogger("pretrain").info("step %d", 3)
    row = json.loads(capsys.readouterr().err)
    assert (row["level"], row["logger"], row["message"]) == ("info", "pretrain", "step 3")


@pytest.mark.parametrize("program", ["data_pipeline", "pretrain", "eval", "cluster"])
def test_every_program_prints_its_help_with_an_example(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", program, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"python -m {program}" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["data_pipeline", "build", "configs/data/demos.yaml"],
        ["pretrain", "train", "configs/pretrain/demo_align.yaml", "optimiser.steps=3"],
        ["eval", "run", "runs/none", "configs/eval/demo.yaml"],
        ["cluster", "run", "configs/campaign/demo.yaml", "rot=x"],
    ],
)
def test_a_users_mistake_ends_with_exit_code_2_and_one_line(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stderr.strip().splitlines()
    assert (done.returncode, len(lines)) == (2, 1), done.stderr
    assert lines[0].startswith("error: ")
