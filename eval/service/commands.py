"""The command `serve` of `python -m eval`."""

from pathlib import Path
from typing import Annotated

import typer

from configs.loading import load_config
from configs.service import ServeConfig


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command(
        epilog="Examples:  python -m eval serve configs/service/demo.yaml 'watch.runs=[runs]'  |  "
        "python -m eval serve configs/service/demo.yaml executor=process port=0 'cpus=[1]'"
    )(serve)


def serve(
    config: Annotated[Path, typer.Argument(help="YAML file of the service.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value ...", show_default=False)] = None,
) -> None:
    """Watch runs, evaluate each new checkpoint once, and serve results: web page and HTTP API."""
    from eval.service.server import serve as serve_until_told

    raise typer.Exit(serve_until_told(load_config(ServeConfig, config, overrides or [])))
