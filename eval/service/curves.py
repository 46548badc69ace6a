"""Curves of metrics over training steps, as plain values and charts, for the page of that name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from configs.labels import is_lower_better
from eval.service import labels
from eval.service.charts import NUM_STYLES, Line, line_chart
from eval.service.views import Entry, Name, Protocol, runs_of


@dataclass(frozen=True)
class Legend:
    label: str
    style: int
    is_peer: bool


@dataclass(frozen=True)
class Chart:
    """One metric over steps, and the same numbers as a table."""

    task: str
    title: str
    is_lower_better: bool
    svg: Markup
    runs: tuple[str, ...]
    steps: tuple[tuple[str, tuple[str, ...]], ...]
    """Step and the value of each run there."""


@dataclass(frozen=True)
class Curves:
    legend: tuple[Legend, ...]
    left_out: tuple[str, ...]
    """Runs beyond those that one chart can tell apart."""
    charts: tuple[Chart, ...]


def curves(protocol: Protocol, names: Sequence[Name], runs: frozenset[str]) -> Curves:
    """Charts of the named metrics; each run keeps its colour in all of them."""
    wanted = [run for run in runs_of(protocol.entries) if not runs or run in runs]
    by_run: dict[str, list[Entry]] = {run: [] for run in wanted}
    for entry in protocol.entries:
        if entry.results.run in by_run:
            by_run[entry.results.run].append(entry)
    newest = sorted(wanted, key=lambda run: -max(e.row.finished or e.row.created for e in by_run[run]))
    shown = sorted(newest[:NUM_STYLES], key=wanted.index)
    for found in by_run.values():
        found.sort(key=lambda e: e.results.step)
    legend = tuple(Legend(run, style, by_run[run][0].is_peer) for style, run in enumerate(shown))
    charts = [_chart(number, name, legend, by_run) for number, name in enumerate(names)]
    return Curves(legend, tuple(run for run in wanted if run not in shown), tuple(c for c in charts if c is not None))


def _chart(number: int, name: Name, legend: Sequence[Legend], by_run: Mapping[str, list[Entry]]) -> Chart | None:
    lines = []
    for item in legend:
        found = [(e.results.step, r) for e in by_run[item.label] if (r := e.found.get(name)) is not None]
        points = tuple((float(step), r.value, r.ci_low, r.ci_high) for step, r in found)
        if points:
            lines.append(Line(item.label, item.style, points, item.is_peer))
    if not lines:
        return None
    title, metric = labels.full_title(*name), name[1]
    text = "; ".join(
        f"{line.label} {line.points[0][1]:.4g}"
        + ("" if line.is_level else f" at step {line.points[0][0]:,.0f}")
        + (f", {line.points[-1][1]:.4g} at step {line.points[-1][0]:,.0f}" if len(line.points) > 1 else "")
        for line in lines
    )
    steps = sorted({p[0] for line in lines if not line.is_level for p in line.points})
    values = [{p[0]: p for p in line.points} for line in lines if not line.is_level]
    table = [(f"{step:,.0f}", tuple(_point_text(of.get(step), metric) for of in values)) for step in steps]
    levels = [line for line in lines if line.is_level]
    table += [(line.label, (_point_text(line.points[-1], metric),)) for line in levels]
    svg = line_chart(f"chart{number}", title, f"{title} over training steps: {text}.", lines)
    runs = tuple(line.label for line in lines if not line.is_level)
    return Chart(name[0], title, is_lower_better(metric), svg, runs, tuple(table))


def _point_text(point: tuple[float, float, float | None, float | None] | None, metric: str) -> str:
    if point is None:
        return labels.DASH
    interval = labels.interval_text(point[2], point[3], metric)
    return f"{labels.value_text(point[1], metric)} [{interval}]" if interval else labels.value_text(point[1], metric)
