"""Plots of a report: metrics over steps, training losses, 3Di comparison, one contact map."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from configs.labels import metric_label, task_label
from eval.results import Results

BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#6B7280"
"""Okabe and Ito's colours, told apart by readers with any colour vision; every line also has its own marker."""
_STYLES = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PINK, "D"))
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
    "svg.hashsalt": "report",
    "figure.facecolor": "white",
}
_SMALL = (4.2, 3.0)
"""Inches; about 82 pixels of the page to an inch in every figure, so that text has one size."""
_LOSS_TITLES = {
    "loss": "Total loss",
    "loss_mlm": "Masked language model",
    "loss_structure": "3Di (physical level)",
    "loss_contrast": "Contrast (latent level)",
}
_THREEDI = {
    "threedi": "own head",
    "threedi_fitted": "fitted afterwards",
    "threedi_lookup": "residue-type lookup",
    "threedi_majority": "majority state",
}


@dataclass(frozen=True)
class Curve:
    """One metric over steps, with its interval where there is one."""

    label: str
    steps: np.ndarray
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray


def curve_of(results: Sequence[Results], task: str, metric: str, label: str | None = None) -> Curve | None:
    """The curve of a metric over those results that hold it; None when none does."""
    found = [(r.step, x) for r in results if (x := r.find(task, metric)) is not None]
    if not found:
        return None
    steps, rows = zip(*found, strict=True)
    low = [math.nan if x.ci_low is None else x.ci_low for x in rows]
    high = [math.nan if x.ci_high is None else x.ci_high for x in rows]
    values = np.array([x.value for x in rows])
    return Curve(label or metric_label(task, metric), np.array(steps), values, np.array(low), np.array(high))


def metric_figures(results: Sequence[Results]) -> dict[str, tuple[Figure, str]]:
    """Figures and their text alternatives by file stem: every metric over the steps of the checkpoints."""
    groups: dict[str, tuple[str, list[Curve | None]]] = {
        "pseudo_perplexity": (
            "Pseudo-perplexity (lower is better)",
            [curve_of(results, "pseudo_perplexity", "pseudo_perplexity")],
        ),
        "threedi": (
            "3Di accuracy",
            [curve_of(results, task, "accuracy", label) for task, label in _THREEDI.items()],
        ),
        "secondary_structure": (
            "Secondary structure Q3, linear probe",
            [curve_of(results, "secondary_structure", "q3")],
        ),
    }
    for span in ("short", "medium", "long"):
        names = ("P@L", "P@L/2", "P@L/5")
        curves = [curve_of(results, "contact", f"{name}_{span}", name) for name in names]
        groups[f"contact_{span}"] = (f"Contact precision, {span} range", curves)
    if len(results) > 1:
        groups |= _of_other_tasks(results)
    figures = {}
    for stem, (title, maybe) in groups.items():
        curves = [curve for curve in maybe if curve is not None]
        if curves:
            figures[stem] = (_curves_figure(title, curves), _describe(title, curves))
    return figures


def _of_other_tasks(results: Sequence[Results]) -> dict[str, tuple[str, list[Curve | None]]]:
    """One group of curves for each benchmark task: its first metrics, whole test split."""
    metrics: dict[str, list[str]] = {}
    for result in results[-1].results:
        metrics.setdefault(result.task, []).append(result.metric)
    drawn = {"pseudo_perplexity", "secondary_structure", "contact", *_THREEDI}
    return {
        f"task_{task}": (sentence(task_label(task)), [curve_of(results, task, name) for name in names[: len(_STYLES)]])
        for task, names in metrics.items()
        if task not in drawn
    }


def sentence(words: str) -> str:
    """With a capital letter first."""
    return words[:1].upper() + words[1:]


def _curves_figure(title: str, curves: Sequence[Curve]) -> Figure:
    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=_SMALL, layout="constrained")
        axes = figure.subplots()
        for curve, (colour, marker) in zip(curves, _STYLES, strict=False):
            if len(curve.steps) == 1:
                gaps = np.stack([curve.values - curve.low, curve.high - curve.values])
                errors = None if np.isnan(gaps).any() else np.maximum(gaps, 0.0)
                axes.errorbar(
                    curve.steps, curve.values, yerr=errors, color=colour, marker=marker, capsize=4, label=curve.label
                )
            else:
                axes.plot(curve.steps, curve.values, color=colour, marker=marker, markersize=4, label=curve.label)
                axes.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
        axes.set_title(title)
        axes.set_xlabel("training step")
        if len(curves) > 1:
            # Beside the data would cost width on a phone; above it nothing is hidden.
            figure.legend(loc="outside lower center", ncols=2 if len(curves) == 4 else 3, fontsize=9)
        if len(curves[0].steps) == 1:
            axes.set_xticks(curves[0].steps)
        else:
            _whole_steps(axes)
    return figure


def loss_figures(rows: Sequence[dict[str, float]]) -> dict[str, tuple[Figure, str]]:
    """Figures and their text alternatives by file stem: each logged training loss over steps, raw and smoothed."""
    figures = {}
    for name, title in _LOSS_TITLES.items():
        points = [(row["step"], value) for row in rows if (value := _number(row, name)) is not None]
        if not points:
            continue
        steps, values = (np.array(x, dtype=np.float64) for x in zip(*points, strict=True))
        with mpl.rc_context(_SETTINGS):
            figure = Figure(figsize=_SMALL, layout="constrained")
            axes = figure.subplots()
            axes.plot(steps, values, color=BLUE, alpha=0.3, linewidth=1)
            axes.plot(steps, smoothed(values), color=BLUE, linewidth=1.8)
            axes.set_title(title)
            axes.set_xlabel("training step")
            _whole_steps(axes)
        text = (
            f"Training loss, {title}: {values[0]:.3f} at step {steps[0]:.0f}, {values[-1]:.3f} at step {steps[-1]:.0f}."
        )
        figures[f"train_{name}"] = (figure, text)
    return figures


def smoothed(values: np.ndarray, share: float = 0.05) -> np.ndarray:
    """Centred moving average whose window is `share` of the points (at least 1) and shrinks at both ends."""
    half = max(0, round(len(values) * share / 2))
    total = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    reach = np.minimum(half, np.minimum(at, len(values) - 1 - at))
    return (total[at + reach + 1] - total[at - reach]) / (2 * reach + 1)


def threedi_figure(last: Results) -> tuple[Figure, str] | None:
    """Bars of 3Di accuracy by predictor at one checkpoint; None without any."""
    found = [(label, x) for task, label in _THREEDI.items() if (x := last.find(task, "accuracy")) is not None]
    if not found:
        return None
    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(5.4, 0.55 * len(found) + 0.9), layout="constrained")
        axes = figure.subplots()
        highest = max(x.value if x.ci_high is None else x.ci_high for _, x in found)
        for place, (label, x) in enumerate(found):
            errors = None
            if x.ci_low is not None and x.ci_high is not None:
                errors = [[max(0.0, x.value - x.ci_low)], [max(0.0, x.ci_high - x.value)]]
            colour = BLUE if label == "own head" else ORANGE if label == "fitted afterwards" else GREY
            axes.barh(place, x.value, xerr=errors, color=colour, height=0.62, capsize=3, ecolor="#111827")
            edge = x.value if x.ci_high is None else x.ci_high
            axes.text(edge + 0.015 * highest, place, f"{x.value:.3f}", va="center")
        axes.set_yticks(range(len(found)), [label for label, _ in found])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlim(0, highest * 1.14)
        axes.set_xlabel("share of residues predicted")
        axes.set_title(f"3Di accuracy at step {last.step}")
    text = ", ".join(f"{label} {x.value:.3f}" for label, x in found)
    return figure, f"3Di accuracy at step {last.step}: {text}."


def contact_figure(key: str, contacts: np.ndarray, probability: np.ndarray, known: np.ndarray) -> tuple[Figure, str]:
    """True contacts below the diagonal, predicted probability above, of one held-out chain."""
    n = len(contacts)
    apart = np.abs(np.subtract.outer(np.arange(n), np.arange(n))) >= 6
    shown = np.where(np.tri(n, dtype=bool), contacts, probability)
    shown = np.where(apart & known[:, None] & known[None, :], shown, np.nan)
    colours = LinearSegmentedColormap.from_list("blues", ["#FFFFFF", "#9CCBE8", BLUE, "#00243D"])
    colours.set_bad("#F3F4F6")
    with mpl.rc_context({**_SETTINGS, "axes.grid": False}):
        figure = Figure(figsize=(5.4, 4.6), layout="constrained")
        axes: Axes = figure.subplots()
        image = axes.imshow(shown, cmap=colours, vmin=0, vmax=1, origin="upper", interpolation="nearest")
        axes.set_title(f"{key}\ntrue (below), predicted (above)")
        axes.set_xlabel("residue")
        axes.set_ylabel("residue")
        figure.colorbar(image, ax=axes, label="contact probability", shrink=0.85)
    pairs = np.tril(contacts & apart).sum()
    return figure, f"Contact map of {key}, {n} residues: {int(pairs)} true contacts with |i - j| at least 6."


def _number(row: dict[str, float], name: str) -> float | None:
    value = row.get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _whole_steps(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def _describe(title: str, curves: Sequence[Curve]) -> str:
    parts = [
        f"{c.label} {c.values[0]:.3f} at step {c.steps[0]}"
        + (f", {c.values[-1]:.3f} at step {c.steps[-1]}" if len(c.steps) > 1 else "")
        for c in curves
    ]
    return f"{title} over training steps: {'; '.join(parts)}."
