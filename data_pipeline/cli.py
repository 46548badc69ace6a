"""Command line of the data pipeline."""

import os
from pathlib import Path
from typing import Annotated

import typer

from configs.build import BuildConfig
from configs.loading import dump_config, load_config

app = typer.Typer(
    help="Protein structures -> verified training shards.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
EXIT_DAMAGED = 1


@app.command(
    epilog="Examples: `python -m data_pipeline build configs/data/demo.yaml`; "
    "`python -m data_pipeline build configs/data/demo.yaml source.kind=files source.path=pdbs output=data/shards`"
)
def build(
    config: Annotated[Path, typer.Argument(help="YAML file of the build.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value, e.g. split.seed=3")] = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the resolved config and end.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Parse a sample; predict time, disk and memory of the whole.")
    ] = False,
) -> None:
    """Turn structures into shards; continues an interrupted build, does nothing when up to date.

    Relative paths are relative to the working directory; inside a Ray job that is the uploaded working tree, so a job
    names absolute paths. RAY_ADDRESS names a running Ray cluster; without it a local one is started.
    """
    settings = load_config(BuildConfig, config, overrides or ())
    if print_config:
        typer.echo(dump_config(settings), nl=False)
        return
    # Ray and the parsers load only when there is work.
    if dry_run:
        from data_pipeline.estimate import dry_run as run_dry
        from data_pipeline.report import print_dry_run

        print_dry_run(run_dry(settings, settings.num_workers or os.cpu_count() or 1))
        return
    from data_pipeline.build import run_build
    from data_pipeline.report import print_build

    print_build(run_build(settings), settings.output)


@app.command(epilog="Example: `python -m data_pipeline audit data/shards`")
def audit(
    shards: Annotated[Path, typer.Argument(help="Folder with manifest.json.")],
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one for each CPU.")] = None,
) -> None:
    """Verify every hash, count, index and sample, derived columns too; print statistics; exit code 1 on damage."""
    from data_pipeline.audit import audit as run_audit
    from data_pipeline.report import print_audit

    report = run_audit(shards, workers or os.cpu_count() or 1)
    print_audit(report, shards)
    if report.damage:
        raise typer.Exit(EXIT_DAMAGED)
