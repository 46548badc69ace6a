"""How numbers are written for people: labels, intervals, first against last."""

from dataclasses import dataclass
from pathlib import Path

from configs.errors import UserError
from configs.labels import is_lower_better, metric_label
from eval.comparison import Comparison, compare
from eval.results import Result, Results

SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Row:
    """One line of the table of first against last checkpoint."""

    label: str
    first: str
    last: str
    difference: str
    p_value: str
    verdict: str
    """`better`, `worse` or empty: the adjusted p-value is below SIGNIFICANCE."""


def format_estimate(result: Result | None) -> str:
    """`0.312 [0.290, 0.335]`; a dash where there is no result."""
    if result is None:
        return "-"
    digits = 2 if is_lower_better(result.metric) else 3
    if result.ci_low is None or result.ci_high is None:
        return f"{result.value:.{digits}f}"
    return f"{result.value:.{digits}f} [{result.ci_low:.{digits}f}, {result.ci_high:.{digits}f}]"


def first_and_last(results: list[Results], folder: Path) -> list[Row]:
    """Rows of the first and the last of `results`, whose folders are `folder/step_*`."""
    first, last = results[0], results[-1]
    differences: dict[str, Comparison] = {}
    if len(results) > 1:
        try:
            found = compare(*(folder / f"step_{r.step:08d}" for r in (first, last)))
            differences = {name: one for name, one in found.items() if one.is_test}
        except UserError:
            # Without the values of every example there is no paired test; the table still holds both values.
            differences = {}
    rows = []
    for result in last.results:
        found = differences.get(f"{result.task}/{result.metric}")
        rows.append(
            Row(
                label=metric_label(result.task, result.metric),
                first=format_estimate(first.find(result.task, result.metric)),
                last=format_estimate(result),
                difference="" if found is None else format_difference(found),
                p_value="" if found is None else format_p(found.p_holm),
                verdict="" if found is None else verdict(found),
            )
        )
    return rows


def format_difference(found: Comparison) -> str:
    """`+0.012 [-0.003, +0.027]`."""
    digits = 2 if is_lower_better(found.metric) else 3
    return f"{found.difference:+.{digits}f} [{found.ci_low:+.{digits}f}, {found.ci_high:+.{digits}f}]"


def format_p(p_value: float) -> str:
    """To three digits."""
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def verdict(found: Comparison) -> str:
    """`better` or `worse` where the p-value adjusted by Holm is below SIGNIFICANCE, else nothing."""
    if not found.is_test or found.p_holm >= SIGNIFICANCE:
        return ""
    return "better" if (found.difference > 0) != is_lower_better(found.metric) else "worse"
