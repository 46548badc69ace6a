"""A picture of what residue loss selection kept over a run, by the kind of residue."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from configs.errors import UserError
from pretrain.losses.selection_report import BFACTOR_CLASSES, PLDDT_CLASSES, PREFIX, SECONDARY_CLASSES
from pretrain.run_folder import METRICS, read_metrics

PICTURE = "selection.png"
LOSSES = {
    "structure": "3Di",
    "sequence_to_structure": "Contrast, sequence to structure",
    "structure_to_sequence": "Contrast, structure to sequence",
}
_LABELS = {
    **dict(zip(PLDDT_CLASSES, ("below 50", "50 to 70", "70 to 90", "90 and above"), strict=True)),
    **dict(zip(BFACTOR_CLASSES, ("below 20", "20 to 40", "40 to 60", "60 and above"), strict=True)),
    **{name: name for name in SECONDARY_CLASSES},
}
_COLOURS = {
    # Ordered classes go from warm (uncertain) to blue (certain); all are told apart with any colour vision.
    **dict(zip(PLDDT_CLASSES, ("#D55E00", "#E69F00", "#56B4E9", "#0B4F8A"), strict=True)),
    **dict(zip(BFACTOR_CLASSES, ("#0B4F8A", "#56B4E9", "#E69F00", "#D55E00"), strict=True)),
    **dict(zip(SECONDARY_CLASSES, ("#CC79A7", "#009E73", "#6B7280"), strict=True)),
}
_GROUPS = {"pLDDT": PLDDT_CLASSES, "B-factor (Å²)": BFACTOR_CLASSES, "Secondary structure": SECONDARY_CLASSES}
_SETTINGS = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9CA3AF",
    "axes.labelcolor": "#374151",
    "text.color": "#111827",
    "xtick.color": "#4B5563",
    "ytick.color": "#4B5563",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E5E7EB",
    "grid.linewidth": 0.8,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "figure.facecolor": "white",
}
_POINTS_OF_MEAN = 25
"""A line is the running mean over this part of the rows: so many independent points along a run."""


def plot_selection(run: Path, picture: Path | None = None) -> Path:
    """Draw the kept fractions in a run's metrics.jsonl over its steps; returns the picture's path.

    Raises:
        UserError: no such run, or one that selects nothing.
    """
    if not (run / METRICS).is_file():
        raise UserError(f"run {run}: holds no {METRICS}; name a run folder, e.g. runs/align")
    figure = selection_figure(read_metrics(run / METRICS), str(run))
    picture = picture or run / PICTURE
    try:
        figure.savefig(picture, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(
            f"picture {picture}: cannot be written ({error}); name a .png in a folder that exists"
        ) from None
    return picture


def selection_figure(rows: Sequence[Mapping[str, Any]], where: str) -> Figure:
    """One column of panels per loss, one row per property of residues; only what the rows hold.

    Raises:
        UserError: the rows hold no kept fractions.
    """
    found = {name for row in rows for name in row if name.startswith(PREFIX)}
    suffixes = tuple(f"_{name}" for name in _LABELS)
    logged = {name.removeprefix(PREFIX).removesuffix(end) for name in found for end in suffixes if name.endswith(end)}
    losses = sorted(logged, key=lambda loss: (_teacher(loss), list(LOSSES).index(_direction(loss))))
    groups = {
        title: shown
        for title, names in _GROUPS.items()
        if (shown := [name for name in names if any(f"{PREFIX}{loss}_{name}" in found for loss in losses)])
    }
    if not losses:
        raise UserError(f"run {where}: logged no selected fractions; name a run of stage align with selection.mode set")
    with mpl.rc_context(_SETTINGS):
        width, height = 3.1 * len(losses) + 1.8, 2.1 * len(groups) + 1.1
        figure = Figure(figsize=(width, height), layout="constrained")
        panels = figure.subplots(len(groups), len(losses), squeeze=False, sharex=True, sharey=True)
        for line, (title, names) in zip(panels, groups.items(), strict=True):
            for panel, loss in zip(line, losses, strict=True):
                _draw(panel, rows, loss, names)
            line[0].set_ylabel("kept")
            handles, labels = line[0].get_legend_handles_labels()
            line[-1].legend(
                handles, labels, title=title, loc="center left", bbox_to_anchor=(1.0, 0.5), alignment="left"
            )
        for panel, loss in zip(panels[0], losses, strict=True):
            teacher = _teacher(loss)
            panel.set_title(LOSSES[_direction(loss)] + (f", teacher {teacher}" if teacher > 1 else ""))
        for panel in panels[-1]:
            panel.set_xlabel("step")
            panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        panels[0][0].yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        panels[0][0].set_ylim(*_limits(panels[0][0].dataLim.y0, panels[0][0].dataLim.y1, panels))
        figure.suptitle("Residues that the loss selection keeps", x=0.01, ha="left", fontsize=13)
    return figure


def _teacher(loss: str) -> int:
    """Number of the teacher in the name of a loss: those of further teachers end in _2, _3, ..."""
    last = loss.rpartition("_")[2]
    return int(last) if last.isdigit() else 1


def _direction(loss: str) -> str:
    """The key of LOSSES."""
    return loss if _teacher(loss) == 1 else loss.rpartition("_")[0]


def _draw(panel: Axes, rows: Sequence[Mapping[str, Any]], loss: str, names: Sequence[str]) -> None:
    steps = np.array([row["step"] for row in rows], dtype=float)
    span = max(len(rows) // _POINTS_OF_MEAN, 1)
    overall = _values(rows, f"selected_fraction_{loss}")
    for name in names:
        values = _values(rows, f"{PREFIX}{loss}_{name}")
        if span > 1:
            panel.plot(steps, values, color=_COLOURS[name], alpha=0.18, linewidth=0.8)
        marker = "o" if np.isfinite(values).sum() == 1 else None
        panel.plot(steps, running_mean(values, span), color=_COLOURS[name], linewidth=1.8, marker=marker)
        panel.lines[-1].set_label(_LABELS[name])
    panel.plot(steps, overall, color="#111827", linewidth=1.0, linestyle=(0, (4, 3)), label="all residues")


def _values(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """float [rows]: NaN where a row lacks the figure."""
    return np.array([row.get(name, np.nan) for row in rows], dtype=float)


def running_mean(values: np.ndarray, span: int) -> np.ndarray:
    """Mean over the `span` values around each (fewer at the ends), of those that are there; NaN where none is."""
    window, there = np.ones(span), np.isfinite(values)
    total = np.convolve(np.where(there, values, 0.0), window, mode="same")
    count = np.convolve(there.astype(float), window, mode="same")
    return np.where(count > 0.5, total / np.maximum(count, 1.0), np.nan)


def _limits(low: float, high: float, panels: np.ndarray) -> tuple[float, float]:
    """A common range with room: the differences between classes are what the picture is for."""
    low = min([low, *(panel.dataLim.y0 for panel in panels.flat)])
    high = max([high, *(panel.dataLim.y1 for panel in panels.flat)])
    room = max(0.05 * (high - low), 0.01)
    return max(low - room, 0.0), min(high + room, 1.005)
