"""Command line of `python -m cluster`."""

import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from cluster.jobs import connect, default_address, follow, job_details, job_log, list_jobs, stop_job
from cluster.programs import resolve_call
from configs.campaign import CampaignConfig
from configs.loading import load_config
from configs.program import EXIT_USER_ERROR

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

EXIT_JOB_FAILED = 1
PIPE_WIDTH = 200
"""Columns of the list of jobs where no terminal says how many there are."""
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Send programs to a Ray cluster, watch and stop them; or run the whole road here.",
)
Address = Annotated[
    str,
    typer.Option(help="Dashboard of the cluster; default: RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265."),
]
Job = Annotated[str, typer.Argument(help="Id, as `list` shows it.")]


@app.command(
    epilog="Examples: `python -m cluster run configs/campaign/demo.yaml`; "
    "`python -m cluster run configs/campaign/demo.yaml structures=pdbs root=work`"
)
def run(
    campaign: Annotated[Path, typer.Argument(help="YAML file of the campaign.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value ...", show_default=False)] = None,
    again: Annotated[bool, typer.Option("--again", help="Run every stage, also those that are done.")] = False,
) -> None:
    """Run dependent stages, skip those already done, and end with a table of what came out.

    A stage's output is in <root>/logs/<stage>.log. Exit code: 0 when every stage ended well, 2 when one ended with a
    user's error, else 1.
    """
    from cluster.campaign import run_campaign
    from cluster.summary import print_summary

    settings = load_config(CampaignConfig, campaign, overrides or ())
    outcome = run_campaign(settings, again)
    if outcome.exit_code == 0 and settings.summary is not None:
        print_summary(settings, outcome.seconds)
    raise typer.Exit(outcome.exit_code)


@app.command(
    context_settings={"ignore_unknown_options": True},
    epilog="Examples: `python -m cluster submit data_pipeline build configs/data/demo.yaml output=/data/shards`; "
    "`python -m cluster submit pretrain train configs/pretrain/demo_align.yaml --address http://head:8265 --no-wait`",
)
def submit(
    arguments: Annotated[list[str], typer.Argument(help="PROGRAM CONFIG [key.sub=value ...], as after `python -m`.")],
    address: Address = "",
    wait: Annotated[bool, typer.Option(help="Follow the log and end with the job's status.")] = True,
    python: Annotated[str | None, typer.Option(help="Interpreter on the cluster's nodes.")] = None,
) -> None:
    """Send a program to a cluster as a job that runs a copy of this repository.

    Relative paths of the config, defaults included, are sent as absolute ones: artifacts stand where they would without
    a cluster, given a file system that its nodes share. Exit code: 0 when the job succeeded, 2 when it ended with a
    user's error, else 1.
    """
    from cluster.submit import package, send

    call = resolve_call(arguments, Path.cwd())
    address = address or default_address()
    client = connect(address)
    job_package = package(call, client.get_address(), python)
    job = send(client, job_package)
    typer.echo(f"job {job}: {call.program.name} at {client.get_address()}, commit {job_package.metadata['commit']}")
    if wait:
        raise typer.Exit(_follow_to_end(client, job))
    typer.echo(f"follow it: python -m cluster logs {job} --follow --address {client.get_address()}")


@app.command("list", epilog="Example: `python -m cluster list --address http://head:8265`")
def list_(address: Address = "") -> None:
    """Jobs of a cluster, oldest first."""
    table = Table(box=None, pad_edge=False)
    for column in ("job", "status", "program", "config", "commit", "started", "seconds"):
        table.add_column(column, overflow="fold", no_wrap=column != "config")
    for job in list_jobs(connect(address or default_address())):
        facts = job.metadata or {}
        table.add_row(
            job.submission_id,
            job.status.value,
            facts.get("program", "-"),
            facts.get("config", "-"),
            _short_commit(facts.get("commit", "-")),
            datetime.fromtimestamp(job.start_time / 1000).strftime("%m-%d %H:%M:%S") if job.start_time else "-",
            _seconds(job),
        )
    console = Console()
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    console.print(table)


@app.command(epilog="Example: `python -m cluster logs raysubmit_abc --follow`")
def logs(
    job: Job,
    address: Address = "",
    follow_log: Annotated[
        bool, typer.Option("--follow", "-f", help="Until the job ends; exit code as submit.")
    ] = False,
) -> None:
    """Print a job's log."""
    client = connect(address or default_address())
    job_details(client, job)
    if follow_log:
        raise typer.Exit(_follow_to_end(client, job))
    typer.echo(job_log(client, job), nl=False)


@app.command(epilog="Example: `python -m cluster stop raysubmit_abc`")
def stop(job: Job, address: Address = "") -> None:
    """Stop a job and wait until it has ended."""
    details = stop_job(connect(address or default_address()), job)
    typer.echo(f"job {job}: {details.status.value}")


def _follow_to_end(client: object, job: str) -> int:
    try:
        details = follow(client, job, _write)
    except KeyboardInterrupt:
        typer.echo(f"\njob {job} goes on; `python -m cluster stop {job}` ends it", err=True)
        raise
    typer.echo(f"job {job}: {details.status.value}" + ("" if details.status.value == "SUCCEEDED" else _reason(details)))
    if details.status.value == "SUCCEEDED":
        return 0
    return EXIT_USER_ERROR if details.driver_exit_code == EXIT_USER_ERROR else EXIT_JOB_FAILED


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _reason(details: "JobDetails") -> str:
    """The first line of the cluster's message about a job that did not succeed."""
    lines = (details.message or "").splitlines()
    return f" ({lines[0].partition(', last available logs')[0]})" if lines else ""


def _short_commit(commit: str) -> str:
    head, dash, dirty = commit.partition("-")
    return head[:10] + dash + dirty


def _seconds(job: "JobDetails") -> str:
    if not (job.start_time and job.end_time):
        return "-"
    return f"{(job.end_time - job.start_time) / 1000:.0f}"
