"""Paired comparison of two evaluations: which may be compared, and what differs by more than chance."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.errors import UserError
from eval.examples import read_examples
from eval.intervals import (
    Measurement,
    NotTestable,
    PairedDifference,
    benjamini_hochberg,
    holm,
    paired_difference,
    selected,
)
from eval.leakage import UNSEEN
from eval.results import TaskRecord, examples_path, read_records

_SHOWN = 60
"""Letters of a value in an error message."""
log = logging.getLogger("eval")


@dataclass(frozen=True)
class Comparison:
    """Second evaluation minus first in one metric of one task, over the same examples."""

    task: str
    metric: str
    first: float
    second: float
    difference: float
    ci_low: float
    """95 % interval of the difference."""
    ci_high: float
    p_value: float
    """Two-sided, of this metric alone."""
    p_holm: float
    """Adjusted for all metrics compared: the chance of a single false finding among them."""
    p_bh: float
    """Adjusted so that of the findings below q a share of at most q is false."""
    num_examples: int
    num_clusters: int
    is_test: bool
    """False where every example has the same value in both (baselines without a model): no test to correct for."""


def compare(first: Path, second: Path, num_samples: int = 4000, seed: int = 0) -> dict[str, Comparison]:
    """Second evaluation minus first by `task/metric`, for every metric that both have.

    Args:
        first: folder of an evaluation (with `tasks/`), or its results.json.
        second: likewise.

    Metrics on proteins unlike the training chains are compared on those that neither model was trained near. A metric
    that is undefined, or whose examples lie in one cluster, is left out, and the log says why.

    Raises:
        UserError: the two may not be compared (see `check_comparable`), or hold different examples; a file is missing
            or damaged.
    """
    first, second = (path if path.is_dir() else path.parent for path in (first, second))
    records = [read_records(folder) for folder in (first, second)]
    check_comparable(*records)
    found: dict[tuple[str, str], PairedDifference] = {}
    same: set[tuple[str, str]] = set()
    for task in (task for task in records[0] if task in records[1]):
        if any(record[task].skipped for record in records):
            continue
        ours, theirs = (read_examples(examples_path(folder, task)) for folder in (first, second))
        for metric in (metric for metric in ours if metric in theirs):
            try:
                pair = matched(ours[metric], theirs[metric])
                found[task, metric] = paired_difference(*pair, num_samples, seed)
            except NotTestable as error:
                log.info("%s: %s", task, error)
                continue
            if _are_same(*pair):
                same.add((task, metric))
    return _corrected(found, same)


def check_comparable(first: Mapping[str, TaskRecord], second: Mapping[str, TaskRecord]) -> None:
    """Refuse two sets of records whose numbers do not mean the same.

    Raises:
        UserError: no task in common, or a common one has another version, data, head or settings.
    """
    shared = [task for task in first if task in second]
    if not shared:
        raise UserError(
            f"comparison: no task in common (first: {', '.join(first) or 'none'}; second: "
            f"{', '.join(second) or 'none'}); evaluate both with one configuration"
        )
    for task in shared:
        one, other = first[task], second[task]
        for name, ours, theirs, remedy in (
            ("versions", one.facts.version, other.facts.version, "evaluate again"),
            ("data", one.facts.data_sha256, other.facts.data_sha256, "evaluate both on the same files"),
            ("heads", one.facts.head, other.facts.head, "evaluate both with one configuration"),
            ("protocols", one.protocol_sha256, other.protocol_sha256, "evaluate both with one configuration and data"),
        ):
            if ours != theirs:
                raise UserError(
                    f"comparison: task {task!r} has {name} {_short(ours)!r} and {_short(theirs)!r}; {remedy}"
                )


def matched(
    first: Sequence[Measurement], second: Sequence[Measurement]
) -> tuple[Sequence[Measurement], Sequence[Measurement]]:
    """Both as they are; on proteins unlike the training chains, over those that are so for both models."""
    if not first[0].metric.endswith(f"_{UNSEEN}") or set(first[0].keys) == set(second[0].keys):
        return first, second
    theirs = set(second[0].keys)
    keys = [key for key in first[0].keys if key in theirs]
    if not keys:
        raise NotTestable(f"comparison of {first[0].metric!r}: no protein is unlike the training chains of both models")
    return [selected(m, keys) for m in first], [selected(m, keys) for m in second]


def _are_same(first: Sequence[Measurement], second: Sequence[Measurement]) -> bool:
    """Whether nothing that a model said differs, in any seed."""
    return len(first) == len(second) and all(
        a.keys == b.keys
        and a.columns.keys() == b.columns.keys()
        and all(np.array_equal(a.columns[name], b.columns[name]) for name in a.columns)
        for a, b in zip(first, second, strict=True)
    )


def _corrected(found: Mapping[tuple[str, str], PairedDifference], same: set[tuple[str, str]]) -> dict[str, Comparison]:
    tests = [name for name in found if name not in same]
    p_values = [found[name].p_value for name in tests]
    adjusted = dict(zip(tests, zip(holm(p_values), benjamini_hochberg(p_values), strict=True), strict=True))
    return {
        f"{task}/{metric}": Comparison(
            task,
            metric,
            one.first,
            one.second,
            one.difference,
            one.ci_low,
            one.ci_high,
            one.p_value,
            *adjusted.get((task, metric), (1.0, 1.0)),
            one.num_examples,
            one.num_clusters,
            (task, metric) not in same,
        )
        for (task, metric), one in found.items()
    }


def _short(value: str | None) -> str | None:
    """Enough of a hash, or of a description, to tell it from another."""
    return value if value is None or len(value) <= _SHOWN else f"{value[:_SHOWN]}..."
