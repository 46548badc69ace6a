"""What the service refuses to start with, in one line each, and its command."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from configs.errors import UserError
from configs.loading import dump_config
from eval.service.commands import register
from eval.service.server import _only_service, serve
from tests.unit.eval.service.makers import STAND_IN, serve_config


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"host": "0.0.0.0"}, "other machines could reach it, and token_file is not set"),
        ({"cpus": [4095]}, "cpus: [4095] cannot be used"),
        ({"token_file": "nowhere"}, "token_file nowhere: cannot be read"),
    ],
)
def test_settings_that_cannot_hold_are_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as refused:
        serve(serve_config(tmp_path, **changes), STAND_IN)
    assert says in str(refused.value)


def test_a_second_service_over_one_folder_is_refused(tmp_path: Path) -> None:
    config = serve_config(tmp_path)
    config.folder.mkdir()
    with _only_service(config.folder), pytest.raises(UserError, match="another service uses it"):
        serve(config, STAND_IN)


def test_a_port_that_is_taken_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="set port=0"):
        serve(serve_config(tmp_path, port=taken.getsockname()[1]), STAND_IN)


def test_the_command_reads_a_configuration_with_overrides(tmp_path: Path) -> None:
    app = typer.Typer()
    register(app)
    app.command()(lambda: None)
    path = tmp_path / "serve.yaml"
    path.write_text(dump_config(serve_config(tmp_path)))
    found = CliRunner().invoke(app, ["serve", str(path), f"cpus=[{max(os.sched_getaffinity(0)) + 4000}]"])
    assert isinstance(found.exception, UserError)
    assert "cannot be used" in str(found.exception)
    assert "Examples" in CliRunner().invoke(app, ["serve", "--help"]).output
