"""report.html: one self-contained page on a run's evaluations; its plots also as PNG files beside it."""

import base64
import io
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from safetensors import SafetensorError, safe_open

from eval.plots import contact_figure, loss_figures, metric_figures, threedi_figure
from eval.results import CONTACT_EXAMPLE_FILE, Results, read_all_results
from eval.tables import first_and_last

REPORT_FILE = "report.html"
PLOTS_FOLDER = "report_files"
TEMPLATES = Path(__file__).parent / "templates"
_PNG_DPI = 160
log = logging.getLogger("eval")


@dataclass(frozen=True)
class Plot:
    """A figure as the page shows it."""

    stem: str
    source: str
    """`data:` address of an SVG."""
    text: str
    """What the figure shows, for readers who cannot see it."""


def write_report(run: Path, folder: Path) -> Path | None:
    """Write the page from every `step_*/results.json` under `folder`; None when there is none.

    Only evaluations of one protocol stand in one page: that of the newest checkpoint; others are counted and named.
    """
    every = read_all_results(folder)
    if not every:
        return None
    newest = every[-1]
    kept = [r for r in every if r.protocol_sha256 == newest.protocol_sha256]
    figures = metric_figures(kept)
    metrics = read_metrics(run / "metrics.jsonl")
    bars, losses, contacts = threedi_figure(newest), loss_figures(metrics), _contact_figure(folder, newest)
    page = (
        environment()
        .get_template("report.html.j2")
        .render(
            results=kept,
            first=kept[0],
            last=newest,
            left_out=[r.step for r in every if r.protocol_sha256 != newest.protocol_sha256],
            rows=first_and_last(kept, folder),
            facts=_facts(run, kept),
            config=_read_text(run / "config.yaml"),
            curves=[_plot(folder, stem, *figure) for stem, figure in figures.items()],
            bars=_plot(folder, "threedi_bars", *bars) if bars else None,
            losses=[_plot(folder, stem, *figure) for stem, figure in losses.items()],
            contacts=_plot(folder, "contact_map", *contacts) if contacts else None,
        )
    )
    path = folder / REPORT_FILE
    temporary = path.with_suffix(".html.part")
    temporary.write_text(page)
    os.replace(temporary, path)
    return path


def environment() -> Environment:
    """Templates of this package; a name that is not given is an error, text is escaped in HTML."""
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=lambda name: bool(name) and name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Rows of metrics.jsonl in step order; a line cut short (the run may be writing) is left out.

    A resumed run logs the steps after its checkpoint again: the later row of a step counts.
    """
    rows: dict[int, dict[str, float]] = {}
    for line in _read_text(path).splitlines():
        try:
            row = json.loads(line)
            rows[int(row["step"])] = row
        except (ValueError, KeyError, TypeError):
            log.debug("%s: a line is not a row: %.80s", path, line)
    return [rows[step] for step in sorted(rows)]


def _facts(run: Path, results: list[Results]) -> list[tuple[str, str]]:
    newest = results[-1]
    status = _read_json(run / "status.json")
    steps = ", ".join(str(r.step) for r in results)
    rows = [
        ("run", f"{newest.run} (stage {newest.stage})"),
        ("trunk", newest.trunk),
        ("checkpoints", f"{len(results)}: step {steps}"),
        ("newest weights", newest.weights_sha256),
    ]
    if newest.manifest_sha256:
        fitted = f"{newest.num_fit_chains} of split {newest.fit_split!r} for fitting"
        rows.append(("evaluated on shards", newest.manifest_sha256))
        rows.append(("chains", f"{newest.num_test_chains} held out, {fitted}"))
    if newest.num_embedded:
        rows.append(("embedded", f"{newest.num_embedded:,} sequences, each once"))
    if newest.training_manifest_sha256:
        rows.append(("trained on shards", newest.training_manifest_sha256))
    if status:
        rows.append(("training", f"{status.get('state')}, step {status.get('step')} of {status.get('total_steps')}"))
    return rows


def _plot(folder: Path, stem: str, figure: Figure, text: str) -> Plot:
    """Save the PNG and embed the SVG; as an image, so that identifiers of two figures never meet."""
    plots = folder / PLOTS_FOLDER
    plots.mkdir(parents=True, exist_ok=True)
    figure.savefig(plots / f"{stem}.png", dpi=_PNG_DPI, metadata={"Software": None})
    svg = io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    encoded = base64.b64encode(svg.getvalue()).decode()
    return Plot(stem, f"data:image/svg+xml;base64,{encoded}", text)


def _contact_figure(folder: Path, results: Results) -> tuple[Figure, str] | None:
    path = folder / f"step_{results.step:08d}" / CONTACT_EXAMPLE_FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in ("contacts", "probability", "known")}
            key = (file.metadata() or {}).get("note", "a held-out chain")
    except (SafetensorError, OSError) as error:
        log.warning("%s cannot be read (%s); the report goes without it", path, error)
        return None
    return contact_figure(key, arrays["contacts"].astype(bool), arrays["probability"], arrays["known"].astype(bool))


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return ""


def _read_json(path: Path) -> dict[str, object]:
    try:
        content = json.loads(_read_text(path) or "{}")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
