"""The closing table of a campaign, read from its artifacts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from cluster.artifacts import (
    NUM_AVERAGED,
    Estimate,
    Evaluation,
    Training,
    read_evaluations,
    read_manifest,
    read_training,
)
from configs.campaign import CampaignConfig
from configs.labels import is_lower_better, metric_label

WIDTH = 100
LOSS_NAMES = {"loss": "total", "loss_mlm": "masked language", "loss_structure": "3Di", "loss_contrast": "contrast"}
OWN_HEAD = "aligned model, own head"
FITTED_HEAD = "aligned model, head fitted afterwards"


@dataclass(frozen=True)
class Contender:
    """One way to say the 3Di state of held-out residues."""

    name: str
    estimate: Estimate


def print_summary(config: CampaignConfig, seconds: float, console: Console | None = None) -> None:
    """Print data, training, metrics, the 3Di comparison, and where everything is."""
    console = console or Console()
    # Off a terminal rich would assume 80 columns, which cuts the intervals.
    console.width = max(console.width, WIDTH)
    summary = config.summary
    manifest = read_manifest(_place(summary.shards, config))
    trainings = [(_place(path, config), read_training(_place(path, config))) for path in summary.training]
    evaluations = [(_place(path, config), read_evaluations(_place(path, config))) for path in summary.evaluations]
    console.print()
    _print_data(console, manifest)
    console.print(training_table(trainings))
    for path, found in evaluations:
        console.print(metrics_table(path, found))
    contenders = threedi_contenders([found for _, found in evaluations])
    if contenders:
        console.print(comparison_table(contenders))
        console.print(closing_note(contenders, manifest, evaluations[0][1][-1]), highlight=False)
        console.print()
    for label, path in (("report", summary.report), ("MLflow store", summary.tracking), ("release", summary.release)):
        place = _place(path, config)
        console.print(f"{label:13} {place}{'' if place.exists() else '  (missing)'}", highlight=False, soft_wrap=True)
    tracking = _place(summary.tracking, config).resolve()
    console.print(f"{'':13} mlflow ui --backend-store-uri sqlite:///{tracking}", highlight=False, soft_wrap=True)
    console.print(f"{'total time':13} {seconds / 60:.1f} minutes", highlight=False)


def training_table(trainings: Sequence[tuple[Path, Training | None]]) -> Table:
    """Steps and each loss, first -> last, of every run."""
    table = _table(f"Training (losses: mean of the first {NUM_AVERAGED} -> the last {NUM_AVERAGED} logged steps)")
    table.add_column("run")
    table.add_column("steps", justify="right")
    losses = [name for name in LOSS_NAMES if any(training and name in training.losses for _, training in trainings)]
    for name in losses:
        table.add_column(LOSS_NAMES[name], justify="right", no_wrap=True)
    table.add_column("tokens/s", justify="right")
    for path, training in trainings:
        if training is None:
            table.add_row(path.name, f"no metrics in {path}")
            continue
        steps = str(training.steps) if training.state == "finished" else f"{training.steps} ({training.state})"
        cells = [f"{a:.3f} -> {b:.3f}" if (a, b) != (None, None) else "-" for a, b in _pairs(training, losses)]
        speed = "-" if training.tokens_per_second is None else f"{training.tokens_per_second:,.0f}"
        table.add_row(training.name, steps, *cells, speed)
    return table


def metrics_table(path: Path, found: Sequence[Evaluation]) -> Table:
    """Every metric of the first and the last checkpoint."""
    run = path.parent.name if path.name == "eval" else path.name
    chains = f", {found[-1].num_chains} held-out chains" if found and found[-1].num_chains else ""
    table = _table(f"Run {run}: metrics with 95 % confidence intervals{chains}")
    table.add_column("metric")
    if not found:
        table.add_row(f"no results in {path}")
        return table
    shown = [found[0], found[-1]] if len(found) > 1 else [found[-1]]
    for evaluation, which in zip(shown, ("first", "last") if len(shown) > 1 else ("only",), strict=True):
        table.add_column(f"{which} checkpoint, step {evaluation.step}", justify="right", no_wrap=True)
    for key in dict.fromkeys(key for evaluation in shown for key in evaluation.estimates):
        table.add_row(metric_name(*key), *(estimate_text(evaluation.estimates.get(key)) for evaluation in shown))
    return table


def threedi_contenders(evaluations: Sequence[Sequence[Evaluation]]) -> list[Contender]:
    """3Di predictors of the last checkpoints: the first evaluation is the aligned model's, the second the control's."""
    if not evaluations or not evaluations[0]:
        return []
    aligned = evaluations[0][-1]
    control = evaluations[1][-1] if len(evaluations) > 1 and evaluations[1] else Evaluation(0, None, {})
    named = (
        (f"{OWN_HEAD}, step {aligned.step}", aligned.estimates.get(("threedi", "accuracy"))),
        (f"{FITTED_HEAD}, step {aligned.step}", aligned.estimates.get(("threedi_fitted", "accuracy"))),
        (
            f"MLM-only control, head fitted afterwards, step {control.step}",
            control.estimates.get(("threedi_fitted", "accuracy")),
        ),
        ("residue-type lookup", aligned.estimates.get(("threedi_lookup", "accuracy"))),
        ("majority state", aligned.estimates.get(("threedi_majority", "accuracy"))),
    )
    return [Contender(name, estimate) for name, estimate in named if estimate is not None]


def comparison_table(contenders: Sequence[Contender]) -> Table:
    """3Di accuracy side by side."""
    table = _table("3Di accuracy on held-out chains, last checkpoints")
    table.add_column("predictor")
    table.add_column("accuracy [95 % interval]", justify="right", no_wrap=True)
    for contender in contenders:
        table.add_row(contender.name, estimate_text(contender.estimate))
    return table


def closing_note(contenders: Sequence[Contender], manifest: dict | None, last: Evaluation) -> str:
    """Whether the aligned model's own head is first and by how much; where not, what it had to learn from.

    Both trunks with a head fitted afterwards are compared too: the own head was trained on masked sequences and, with
    selection, on part of the residues, so its accuracy is not the trunk's alone.
    """
    ours = contenders[0]
    others = [contender for contender in contenders[1:] if not contender.name.startswith(FITTED_HEAD)]
    if not ours.name.startswith(OWN_HEAD) or not others:
        return "No comparison: the 3Di accuracy of the aligned model, or of every other predictor, is missing."
    best = max(others, key=lambda contender: contender.estimate.value)
    gap = ours.estimate.value - best.estimate.value
    overlap = "intervals overlap" if ours.estimate.overlaps(best.estimate) else "intervals do not overlap"
    like = _like_for_like(contenders)
    if gap > 0:
        return f"The aligned model is first, {gap:.3f} above the next ({best.name}; {overlap}).{like}"
    chains = ((manifest or {}).get("splits", {}).get("train") or {}).get("samples", "an unknown number of")
    return (
        f"The aligned model is not first yet: {best.name} is {-gap:.3f} above it ({overlap}). It saw {chains} training "
        f"chains in {last.step} steps; more of both, or published starting weights (trunk.weights), is the remedy."
        f"{like}"
    )


def _like_for_like(contenders: Sequence[Contender]) -> str:
    """The two trunks under the same head, fitted afterwards on the same chains; empty when one is missing."""
    found = {part: c for c in contenders for part in (FITTED_HEAD, "MLM-only control") if c.name.startswith(part)}
    if len(found) < 2:
        return ""
    aligned, control = (found[part].estimate.value for part in (FITTED_HEAD, "MLM-only control"))
    return f" With the same head fitted afterwards on both trunks: aligned {aligned:.3f}, control {control:.3f}."


def metric_name(task: str, metric: str) -> str:
    """A metric for people, and which way is better where that is not up."""
    return metric_label(task, metric) + (" (lower is better)" if is_lower_better(metric) else "")


def estimate_text(estimate: Estimate | None) -> str:
    """`0.412 [0.398, 0.431]`."""
    if estimate is None:
        return "-"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _print_data(console: Console, manifest: dict | None) -> None:
    table = _table("Chains")
    table.add_column("what")
    table.add_column("chains", justify="right")
    if manifest is None:
        table.add_row("no manifest.json: nothing was built", "-")
    else:
        for split, facts in manifest["splits"].items():
            note = f"{facts['clusters']} sequence clusters, {facts['high_quality']} of high quality"
            table.add_row(f"kept: {split} ({note})", str(facts["samples"]))
        table.add_row("kept, total", str(manifest["kept"]), end_section=True)
        for reason, count in sorted(manifest["dropped"].items(), key=lambda item: (-item[1], item[0])):
            table.add_row(f"dropped: {reason}", str(count))
        table.add_row("dropped, total", str(sum(manifest["dropped"].values())))
    console.print(table)


def _pairs(training: Training, losses: Sequence[str]) -> list[tuple[float | None, float | None]]:
    return [training.losses.get(name, (None, None)) for name in losses]


def _place(path: Path, config: CampaignConfig) -> Path:
    return Path(str(path).replace("{root}", str(config.root)))


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
