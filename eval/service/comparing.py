"""Two evaluations side by side, as plain values and forest plots, for the page of that name."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from configs.errors import UserError
from configs.labels import is_lower_better
from eval.comparison import Comparison
from eval.service import labels
from eval.service.charts import Difference, forest_plot
from eval.service.significance import Comparisons
from eval.service.views import Entry
from eval.tables import SIGNIFICANCE


@dataclass(frozen=True)
class ComparisonRow:
    label: str
    first: str
    second: str
    difference: str
    p_value: str
    verdict: str
    """`better`, `worse`, `no change` (of a baseline without a model) or empty."""
    note: str


@dataclass(frozen=True)
class ComparisonPage:
    """Differences of two evaluations, or why there are none."""

    rows: tuple[ComparisonRow, ...] = ()
    plots: tuple[tuple[str, Markup, Markup], ...] = ()
    """Heading and forest plot of metrics of one scale, for wide and for narrow windows."""
    num_better: int = 0
    num_worse: int = 0
    refusal: str | None = None


def comparison(first: Entry, second: Entry, folders: tuple[Path, Path], comparisons: Comparisons) -> ComparisonPage:
    """Every metric that both evaluations hold, second minus first."""
    try:
        found = comparisons.pair(*folders)
    except UserError as error:
        return ComparisonPage(refusal=str(error))
    if not found:
        return ComparisonPage(refusal="The two evaluations share no metric that was measured on the same examples.")
    order = list(labels.GROUPS)
    rows, scales = [], {"": [], "lower": []}
    for one in sorted(found.values(), key=lambda one: order.index(labels.group_of(one.task))):
        verdict = _verdict(one)
        rows.append(_row(one, verdict))
        if one.is_test:
            lower, sign = is_lower_better(one.metric), labels.sign_of(one.metric)
            low, high = sorted((sign * one.ci_low, sign * one.ci_high))
            gain = sign * one.difference
            label = labels.full_title(one.task, one.metric)
            scales["lower" if lower else ""].append(Difference(label, gain, low, high, verdict))
    headings = {
        "": "Metrics where higher is better",
        "lower": "Metrics where lower is better (sign turned: right is still better)",
    }
    plots = []
    for scale, differences in scales.items():
        if differences:
            parts = (headings[scale], _told(first, second, differences), differences)
            wide, narrow = forest_plot(f"wide{scale}", *parts), forest_plot(f"narrow{scale}", *parts, is_narrow=True)
            plots.append((headings[scale], wide, narrow))
    verdicts = [row.verdict for row in rows]
    return ComparisonPage(tuple(rows), tuple(plots), verdicts.count("better"), verdicts.count("worse"))


def pair_of(entries: Sequence[Entry], first: Entry | None, second: Entry | None) -> tuple[Entry | None, Entry | None]:
    """The two to compare; who is not named is the nearest that may be compared: the checkpoint before, or another."""
    if first and second:
        return first, second
    given = second or first or max(entries, key=lambda e: e.row.finished or e.row.created, default=None)
    if given is None:
        return None, None
    others = [e for e in entries if e.id != given.id]
    if not others:
        return (given, None) if first else (None, given)

    def distance(other: Entry) -> tuple[bool, bool, bool, int]:
        same_run = other.results.run == given.results.run
        gap = given.results.step - other.results.step
        return other.results.protocol_sha256 != given.results.protocol_sha256, not same_run, gap < 0, abs(gap)

    nearest = min(others, key=distance)
    return (given, nearest) if first else (nearest, given)


def choice_label(entry: Entry, entries: Sequence[Entry]) -> str:
    """An evaluation's name in a list; with its protocol where the list has the same weights under several."""
    twins = sum((e.results.run, e.results.step) == (entry.results.run, entry.results.step) for e in entries)
    return entry.label if twins < 2 else f"{entry.label} (protocol {entry.results.protocol_sha256[:8]})"


def sides(first: Entry, second: Entry) -> list[tuple[str, str, str]]:
    """Facts of both: name, first's, second's."""

    def facts(entry: Entry) -> dict[str, str]:
        r = entry.results
        return {
            "run": r.run,
            "step": labels.DASH if entry.is_peer else f"{r.step:,}",
            "stage": r.stage,
            "trunk": r.trunk,
            "weights": r.weights_sha256[:12],
            "protocol": r.protocol_sha256[:12],
            "shards evaluated on": (r.manifest_sha256 or labels.DASH)[:12],
            "shards trained on": (r.training_manifest_sha256 or labels.DASH)[:12],
        }

    one, other = facts(first), facts(second)
    return [(name, one[name], other[name]) for name in one]


def _verdict(found: Comparison) -> str:
    if not found.is_test:
        return "no change"
    if found.p_holm >= SIGNIFICANCE:
        return ""
    return "better" if (found.difference > 0) != is_lower_better(found.metric) else "worse"


def _row(found: Comparison, verdict: str) -> ComparisonRow:
    digits = labels.digits_of(found.metric)
    interval = f"[{found.ci_low:+.{digits}f}, {found.ci_high:+.{digits}f}]"
    return ComparisonRow(
        labels.full_title(found.task, found.metric),
        labels.value_text(found.first, found.metric),
        labels.value_text(found.second, found.metric),
        f"{found.difference:+.{digits}f} {interval}",
        labels.p_text(found.p_holm) if found.is_test else labels.DASH,
        verdict,
        f"{found.num_examples:,} examples in {found.num_clusters:,} clusters",
    )


def _told(first: Entry, second: Entry, differences: Sequence[Difference]) -> str:
    verdicts = [d.verdict for d in differences]
    return (
        f"Gains of {second.label} over {first.label} with 95 % intervals: {verdicts.count('better')} of "
        f"{len(verdicts)} metrics significantly better, {verdicts.count('worse')} significantly worse. "
        "The table holds the numbers."
    )
