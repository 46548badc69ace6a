"""Command line of `python -m eval`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from configs.evaluate import EvalConfig, metric_label
from configs.loading import load_config
from eval.follow import RunFailed
from eval.results import Results
from eval.tables import format_estimate

EXIT_RUN_FAILED = 1
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Checkpoint -> results -> release.",
)


@app.callback()
def _programs() -> None:
    """Checkpoint -> results -> release."""


@app.command(
    epilog="Examples:  python -m eval run runs/align configs/eval/demo.yaml --follow  |  "
    "python -m eval run runs/align/checkpoints/step_00000500 configs/eval/demo.yaml data.max_test_chains=50"
)
def run(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder, or a run folder: each in it.")],
    config: Annotated[Path, typer.Argument(help="YAML file of the evaluation.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value ...", show_default=False)] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Evaluate new checkpoints until the run ends.")] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder of results and report; default: <run>/eval.")
    ] = None,
) -> None:
    """Evaluate checkpoints: results.json with confidence intervals, and report.html."""
    from eval.runner import evaluate_target, target_of

    settings = load_config(EvalConfig, config, overrides or [])
    target = target_of(checkpoint, output)
    try:
        results = evaluate_target(target, settings, follow)
    except RunFailed as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_RUN_FAILED) from None
    console = Console()
    console.print(results_table(results))
    console.print(f"results  {target.output}/step_*/results.json", soft_wrap=True)
    console.print(f"report   {target.output / 'report.html'}", soft_wrap=True)


@app.command(
    epilog="Examples:  python -m eval release runs/align runs/align/eval -o release  |  "
    "python -m eval release runs/align/checkpoints/step_00000500 runs/align/eval/step_00000500 -o release "
    "--repo my-lab/my-model --push"
)
def release(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder, or a run folder: its last good checkpoint.")],
    results: Annotated[Path, typer.Argument(help="results.json of that checkpoint, or a folder that holds it.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
    repo: Annotated[str | None, typer.Option(help="Repository on the hub: ORG/NAME.")] = None,
    push: Annotated[bool, typer.Option("--push", help="Upload the folder to --repo.")] = False,
    license_name: Annotated[str, typer.Option("--license", help="Licence of the weights.")] = "apache-2.0",
) -> None:
    """Write a verified folder that `transformers` loads: weights, tokenizer, heads, card with results."""
    from eval.release import check_push, push_release, write_release

    if push:
        check_push(repo)
    written = write_release(checkpoint, results, output, repo, license_name)
    console = Console()
    size = f"{written.num_files} files, {written.num_bytes / 2**20:.1f} MiB"
    console.print(f"release  {written.folder} ({size})", soft_wrap=True)
    console.print(f"verified {written.verified}", soft_wrap=True)
    if push:
        console.print(f"uploaded {push_release(written.folder, repo)}", soft_wrap=True)


def results_table(results: list[Results]) -> Table:
    """Metrics with intervals: the only checkpoint, or the first and the last."""
    shown = results if len(results) < 2 else [results[0], results[-1]]
    table = Table(title=f"{shown[-1].run}: metrics with 95 % confidence intervals", title_justify="left")
    table.add_column("metric")
    for one in shown:
        table.add_column(f"step {one.step}", justify="right")
    names = list(dict.fromkeys((r.task, r.metric) for one in shown for r in one.results))
    for task, metric in names:
        table.add_row(metric_label(task, metric), *(format_estimate(one.find(task, metric)) for one in shown))
    for skipped in shown[-1].skipped:
        table.add_row(skipped.task, *[""] * (len(shown) - 1), f"skipped: {skipped.reason}")
    return table
