"""Command line of `python -m eval`."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from configs.evaluate import EvalConfig
from configs.labels import is_lower_better, metric_label
from configs.loading import load_config
from eval.comparison import Comparison
from eval.follow import RunFailed
from eval.results import Results, headline
from eval.service.commands import register as register_service
from eval.tables import format_difference, format_estimate, format_p, verdict
from eval.tool_commands import register as register_tools

EXIT_FAILED = 1
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Checkpoint -> results -> release; a service for all checkpoints; tools from sequence.",
)


@app.callback()
def _programs() -> None:
    """Checkpoint -> results -> release."""


@app.command(
    epilog="Examples:  python -m eval run runs/align configs/eval/demo.yaml --follow  |  "
    "python -m eval run runs/align/checkpoints/step_00000500 configs/eval/suite.yaml benchmarks.root=benchmarks  |  "
    "python -m eval run hf:facebook/esm2_t6_8M_UR50D configs/eval/suite.yaml benchmarks.root=benchmarks"
)
def run(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="A checkpoint folder; a run folder: each in it; a transformers folder, hf:ORG/NAME or "
            "callable:module:function: any other model."
        ),
    ],
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
        raise typer.Exit(EXIT_FAILED) from None
    console = Console()
    console.print(results_table(results))
    console.print(f"results  {target.output}/step_*/results.json", soft_wrap=True)
    console.print(f"report   {target.output / 'report.html'}", soft_wrap=True)
    failed = [f"{one.run} step {one.step}, {task.task}: {task.reason}" for one in results for task in one.failed]
    for line in failed:
        typer.echo(f"error: {line}", err=True)
    if failed:
        raise typer.Exit(EXIT_FAILED)


@app.command(
    epilog="Example:  python -m eval compare runs/align/eval/step_00000100 runs/align/eval/step_00000500 "
    "--json comparison.json"
)
def compare(
    first: Annotated[Path, typer.Argument(help="Folder of an evaluation: the one that holds results.json.")],
    second: Annotated[Path, typer.Argument(help="Another one, of the same tasks and settings.")],
    samples: Annotated[int, typer.Option(min=100, help="Bootstrap samples.")] = 4000,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all numbers there.")] = None,
) -> None:
    """Second minus first, paired over the same examples, with p-values corrected for the number of metrics (Holm)."""
    from eval.comparison import compare as compare_folders

    found = compare_folders(first, second, samples)
    if json_file is not None:
        json_file.write_text(json.dumps({name: asdict(one) for name, one in found.items()}, indent=1) + "\n")
    Console().print(comparison_table(found))


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


register_tools(app)
register_service(app)


def comparison_table(found: Mapping[str, Comparison]) -> Table:
    """A row for each metric; those that no model moves are left out."""
    table = Table(title="second - first, with 95 % confidence intervals", title_justify="left")
    for name in ("metric", "first", "second", "difference", "p (Holm)", ""):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for one in found.values():
        if one.is_test:
            digits = 2 if is_lower_better(one.metric) else 3
            values = (f"{one.first:.{digits}f}", f"{one.second:.{digits}f}")
            label = metric_label(one.task, one.metric)
            table.add_row(label, *values, format_difference(one), format_p(one.p_holm), verdict(one))
    return table


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
    if shown[-1].skipped:
        table.caption = "report.html has the whole reason of each task that was skipped"
        table.caption_justify = "left"
    for skipped in shown[-1].skipped:
        table.add_row(skipped.task, *[""] * (len(shown) - 1), f"skipped: {headline(skipped.reason)}")
    return table
