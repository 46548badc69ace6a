"""Closing tables of build and audit, for people."""

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from data_pipeline.audit import AuditReport, SplitCounts
from data_pipeline.build import BuildOutcome
from data_pipeline.estimate import DryRun
from data_pipeline.manifest import REJECTS_NAME, Manifest, split_order
from data_pipeline.structure.chain import THREEDI_STATES
from data_pipeline.structure.parse import REASONS

TOP_STATES = 3


def print_build(outcome: BuildOutcome, output: Path, console: Console | None = None) -> None:
    """Chains kept and dropped by reason, chains per split, seconds by stage."""
    console = console or Console()
    manifest = outcome.manifest
    if outcome.up_to_date:
        console.print(f"up to date: {manifest.kept} chains in {output}", highlight=False)
        return
    console.print(_reasons_table(manifest))
    console.print(_splits_table(manifest))
    for line in _leakage_lines(manifest):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    console.print(_seconds_table(outcome))
    rate = manifest.chains / outcome.seconds
    resumed = f", {outcome.resumed_batches} batches resumed" if outcome.resumed_batches else ""
    console.print(
        f"{manifest.kept} of {manifest.chains} chains kept in {outcome.seconds:.1f} s ({rate:.1f} chains/s{resumed}); "
        f"shards in {output}, drops listed in {output / REJECTS_NAME}",
        highlight=False,
        soft_wrap=True,
    )


def print_dry_run(found: DryRun, console: Console | None = None) -> None:
    """What the sample showed and what the whole build will take."""
    console = console or Console()
    costs, whole = found.costs, found.prediction
    dropped = ", ".join(f"{count} {reason}" for reason, count in found.reasons.most_common()) or "none"
    table = Table(title=f"Dry run: {found.sampled} of {whole.entries} entries parsed", title_justify="left")
    table.add_column("prediction for the whole")
    table.add_column("", justify="right")
    rows = {
        "chains kept (before duplicates)": f"{whole.chains:,.0f}",
        "residues": f"{whole.residues:,.0f}",
        f"time with {whole.workers} workers": _duration(whole.hours),
        "CPU time of the workers": _duration(whole.core_hours),
        "shards": _size(whole.shard_bytes),
        "disk at the peak (shards and spool)": _size(whole.peak_disk_bytes),
        "memory of the driver's lists": _size(whole.driver_bytes),
        "memory of the workers and Ray": _size(whole.worker_bytes),
        "measured: parsing, microseconds per residue": f"{costs.parse_seconds * 1e6:.1f}",
        "measured: shards, bytes per residue": f"{costs.shard_bytes:.0f}",
        "dropped in the sample": dropped,
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
    console.print(
        "Linear in residues; clustering by MMseqs2 or k-mers and the download of remote files come on top.",
        highlight=False,
        soft_wrap=True,
    )


def _duration(hours: float) -> str:
    seconds = hours * 3600
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{hours:.1f} h"


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def print_audit(report: AuditReport, folder: Path, console: Console | None = None) -> None:
    """Statistics of each split, then every damaged file."""
    console = console or Console()
    if report.manifest is not None:
        console.print(_statistics_table(report))
        for name, samples in report.derived.items():
            console.print(f"derived column {name}: {samples} samples", highlight=False)
    for file, what in sorted(report.damage.items()):
        console.print(f"DAMAGED {file}: {what}", style="bold red", highlight=False, soft_wrap=True, markup=False)
    if report.damage:
        console.print(
            f"{len(report.damage)} damaged files in {folder}: delete them and build or derive again",
            highlight=False,
            soft_wrap=True,
        )
    else:
        console.print(f"{folder}: every hash, count, index and sample is right", highlight=False, soft_wrap=True)


def _reasons_table(manifest: Manifest) -> Table:
    table = Table(title="Chains", title_justify="left")
    table.add_column("reason")
    table.add_column("count", justify="right")
    table.add_column("meaning")
    table.add_row("kept", str(manifest.kept), f"of {manifest.chains} found in {manifest.source.entries} entries")
    for reason, count in sorted(manifest.dropped.items(), key=lambda item: (-item[1], item[0])):
        table.add_row(reason, str(count), REASONS.get(reason, ""))
    return table


def _splits_table(manifest: Manifest) -> Table:
    table = Table(title="Splits", title_justify="left")
    table.add_column("split")
    for name in ("chains", "residues", "clusters", "high quality", "shards"):
        table.add_column(name, justify="right")
    for name, split in sorted(manifest.splits.items(), key=lambda item: split_order(item[0])):
        counts = (split.samples, split.residues, split.clusters, split.high_quality, len(split.shards))
        table.add_row(name, *map(str, counts))
    return table


def _leakage_lines(manifest: Manifest) -> list[str]:
    """How chains were clustered, and what of the evaluation sets was found among them."""
    clustering = manifest.leakage.clustering
    lines = []
    if clustering:
        version = f" {clustering['version']}" if clustering.get("version") else ""
        lines.append(
            f"clusters by {clustering['method']}{version}: {clustering['clusters']}, "
            f"the largest of {clustering['largest_cluster']} chains"
        )
    for found in manifest.leakage.against:
        lines.append(
            f"leakage against {found['path']}: {found['chains_hit']} chains resemble "
            f"{found['sequences_hit']} of {found['sequences']} sequences ({found['action']})"
        )
    return lines


def _seconds_table(outcome: BuildOutcome) -> Table:
    table = Table(title="Seconds", title_justify="left")
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    for stage, seconds in outcome.stage_seconds.items():
        table.add_row(stage, f"{seconds:.1f}")
    table.add_row("whole build", f"{outcome.seconds:.1f}")
    return table


def _statistics_table(report: AuditReport) -> Table:
    table = Table(title="Audit", title_justify="left")
    table.add_column("")
    columns = list(report.splits.items())
    for split, _ in columns:
        table.add_column(split, justify="right")
    described = [_statistics(counts) for _, counts in columns]
    for name in described[0] if described else ():
        table.add_row(name, *(values[name] for values in described))
    return table


def _statistics(counts: SplitCounts) -> dict[str, str]:
    samples, residues = max(counts.samples, 1), max(counts.residues, 1)
    frequency = counts.threedi / max(int(counts.threedi.sum()), 1)
    present = frequency[frequency > 0]
    top = [f"{THREEDI_STATES[i]} {frequency[i]:.0%}" for i in np.argsort(-frequency, kind="stable")[:TOP_STATES]]
    edges = [f"{name} {count / residues:.1f}" for name, count in sorted(counts.graph_edges.items())]
    return {
        "chains": str(counts.samples),
        "residues": str(counts.residues),
        "mean length": f"{counts.residues / samples:.1f}",
        "clusters": str(len(counts.clusters)),
        "high quality": f"{counts.high_quality / samples:.1%}",
        "3Di entropy (bits)": f"{abs(float(-(present * np.log2(present)).sum())):.2f}",
        "3Di top states": ", ".join(top),
        "residues without 3Di": f"{counts.invalid / residues:.1%}",
        "residues not reliable": f"{counts.unreliable / residues:.1%}",
        "mean B-factor": _mean(counts.experimental_bfactor),
        "mean pLDDT": _mean(counts.plddt),
        "methods": ", ".join(f"{name} {count}" for name, count in counts.methods.most_common()),
        "graph edges per residue": ", ".join(edges),
    }


def _mean(sums: list[float]) -> str:
    return f"{sums[0] / sums[1]:.1f}" if sums[1] else "-"
