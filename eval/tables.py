"""How numbers are written for people: labels, intervals, first against last."""

from dataclasses import dataclass
from pathlib import Path

from configs.errors import UserError
from configs.evaluate import metric_label
from eval.intervals import PairedDifference, holm
from eval.results import Result, Results, compare

SIGNIFICANCE = 0.05
LOWER_IS_BETTER = frozenset({"pseudo_perplexity"})


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
    digits = 2 if result.metric in LOWER_IS_BETTER else 3
    if result.ci_low is None or result.ci_high is None:
        return f"{result.value:.{digits}f}"
    return f"{result.value:.{digits}f} [{result.ci_low:.{digits}f}, {result.ci_high:.{digits}f}]"


def first_and_last(results: list[Results], folder: Path) -> list[Row]:
    """Rows of the first and the last of `results`, whose folders are `folder/step_*`."""
    first, last = results[0], results[-1]
    differences: dict[str, PairedDifference] = {}
    if len(results) > 1:
        try:
            found = compare(*(folder / f"step_{r.step:08d}" for r in (first, last)))
            # Baselines without a model never change and are no tests to correct for.
            differences = {name: d for name, d in found.items() if (d.ci_low, d.ci_high) != (0.0, 0.0)}
        except UserError:
            # Without the values of every example there is no paired test; the table still holds both values.
            differences = {}
    adjusted = dict(zip(differences, holm([d.p_value for d in differences.values()]), strict=True))
    rows = []
    for result in last.results:
        name = f"{result.task}/{result.metric}"
        found = differences.get(name)
        rows.append(
            Row(
                label=metric_label(result.task, result.metric),
                first=format_estimate(first.find(result.task, result.metric)),
                last=format_estimate(result),
                difference=_format_difference(found),
                p_value="" if found is None else _format_p(adjusted[name]),
                verdict="" if found is None else _verdict(found, adjusted[name]),
            )
        )
    return rows


def _format_difference(found: PairedDifference | None) -> str:
    if found is None:
        return ""
    digits = 2 if found.metric in LOWER_IS_BETTER else 3
    return f"{found.difference:+.{digits}f} [{found.ci_low:+.{digits}f}, {found.ci_high:+.{digits}f}]"


def _format_p(p_value: float) -> str:
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _verdict(found: PairedDifference, p_value: float) -> str:
    if p_value >= SIGNIFICANCE:
        return ""
    rises = found.difference > 0
    return "better" if rises != (found.metric in LOWER_IS_BETTER) else "worse"
