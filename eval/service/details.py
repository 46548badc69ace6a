"""Tasks with all that is known of them, and the queue's state, as plain values for their pages."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from eval.service import labels
from eval.service.board import Board, EvaluationRow, TaskRow
from eval.service.views import Entry

_Said = TypeVar("_Said", str, tuple[str, str])
RECENT = 25
"""Finished evaluations that the queue's page shows."""


@dataclass(frozen=True)
class TaskSummary:
    name: str
    title: str
    group: str
    versions: tuple[str, ...]
    metrics: tuple[str, ...]
    data: str
    num_results: int
    num_without: int
    """Evaluations that skipped it or in which it failed."""


@dataclass(frozen=True)
class Evaluated:
    """One checkpoint's row in the table of a task."""

    entry: Entry
    cells: tuple[tuple[str, str] | None, ...]
    """Value and interval by metric."""
    examples: str
    seeds: str
    seconds: str


@dataclass(frozen=True)
class TaskKind:
    """Results of a task that mean the same."""

    facts: tuple[tuple[str, str], ...]
    metrics: tuple[str, ...]
    rows: tuple[Evaluated, ...]
    remarks: tuple[tuple[str, str], ...]
    """Remark, and whose it is."""


@dataclass(frozen=True)
class TaskPage:
    name: str
    title: str
    kinds: tuple[TaskKind, ...]
    without: tuple[tuple[str, str, str], ...]
    """`skipped` or `failed`, the reason, and where."""


@dataclass(frozen=True)
class Queued:
    """One evaluation in the queue, with its steps."""

    row: EvaluationRow
    steps: tuple[TaskRow, ...]
    percent: int | None
    """Of its tasks; None until they are planned."""


@dataclass(frozen=True)
class Queue:
    running: tuple[Queued, ...]
    waiting: tuple[EvaluationRow, ...]
    failed: tuple[Queued, ...]
    done: tuple[Queued, ...]
    num_done: int

    @property
    def is_busy(self) -> bool:
        return bool(self.running or self.waiting)


def task_summaries(entries: Sequence[Entry]) -> list[tuple[str, list[TaskSummary]]]:
    """Every task that an evaluation has facts, results or a failure of, under its group's title."""
    names = dict.fromkeys(t for e in entries for t in (*e.results.tasks, *(f.task for f in e.results.failed)))
    found: dict[str, list[TaskSummary]] = {group: [] for group in labels.GROUPS}
    for name in names:
        having = [e for e in entries if name in e.kinds]
        facts = [e.results.tasks[name] for e in (having or entries) if name in e.results.tasks]
        found[labels.group_of(name)].append(
            TaskSummary(
                name,
                labels.task_title(name),
                labels.GROUPS[labels.group_of(name)],
                tuple(dict.fromkeys(f.version for f in facts)),
                tuple(
                    labels.metric_title(*n) for n in dict.fromkeys(n for e in having for n in e.found if n[0] == name)
                ),
                facts[-1].data if facts else labels.DASH,
                len(having),
                sum(_reason(e, name) is not None for e in entries),
            )
        )
    return [(labels.GROUPS[group], tasks) for group, tasks in found.items() if tasks]


def task_page(name: str, entries: Sequence[Entry]) -> TaskPage | None:
    """All about one task; None when no evaluation knows it."""
    kinds: dict[tuple[str, str, str, str], list[Entry]] = {}
    for entry in reversed(entries):
        if name in entry.kinds:
            kinds.setdefault((*entry.kinds[name], entry.results.protocol_sha256), []).append(entry)
    without = [(reason, e) for e in entries if (reason := _reason(e, name)) is not None]
    if not kinds and not without:
        return None
    found = tuple(_task_kind(name, members) for members in kinds.values())
    return TaskPage(
        name,
        labels.task_title(name),
        found,
        tuple((*reason, whose) for reason, whose in _grouped(without, len(entries))),
    )


def queue(board: Board) -> Queue:
    """The queue's present state."""
    rows = board.evaluations()
    states = {state: [row for row in rows if row.state == state] for state in ("queued", "running", "failed", "done")}
    order = {step.evaluation: number for number, step in reversed(list(enumerate(board.queue())))}
    waiting = sorted(states["queued"], key=lambda row: (order.get(row.id, len(order)), -row.priority, row.created))
    done = sorted(states["done"], key=lambda row: -(row.finished or 0.0))[:RECENT]
    return Queue(
        tuple(_queued(board, row) for row in states["running"]),
        tuple(waiting),
        tuple(_queued(board, row) for row in states["failed"]),
        tuple(_queued(board, row) for row in done),
        len(states["done"]),
    )


def _queued(board: Board, row: EvaluationRow) -> Queued:
    percent = round(100 * row.num_ended / row.num_tasks) if row.num_tasks else None
    return Queued(row, tuple(board.tasks(row.id)), percent)


def _reason(entry: Entry, task: str) -> tuple[str, str] | None:
    for one in entry.results.skipped:
        if one.task == task:
            return "skipped", one.reason
    for one in entry.results.failed:
        if one.task == task:
            return "failed", one.reason
    return None


def _task_kind(name: str, entries: Sequence[Entry]) -> TaskKind:
    facts = entries[0].results.tasks[name]
    metrics = tuple(dict.fromkeys(metric for entry in entries for task, metric in entry.found if task == name))
    manifest = entries[0].results.manifest_sha256
    rows = []
    for entry in entries:
        found = [entry.found.get((name, metric)) for metric in metrics]
        known = next(r for r in found if r is not None)
        rows.append(
            Evaluated(
                entry,
                tuple(
                    None
                    if r is None
                    else (labels.value_text(r.value, r.metric), labels.interval_text(r.ci_low, r.ci_high, r.metric))
                    for r in found
                ),
                f"{known.num_examples:,} / {known.num_clusters:,}",
                ", ".join(str(seed) for seed in known.seeds),
                labels.seconds_text(known.seconds),
            )
        )
    said = [(text, entry) for entry in entries for text in entry.results.remarks.get(name, ())]
    remarks = tuple(_grouped(said, len(entries)))
    listed = [
        ("version", facts.version),
        ("data", facts.data),
        ("hash of the data", facts.data_sha256 or f"{manifest} (shards)"),
        ("split measured on", entries[0].kinds[name][2]),
        ("head", facts.head),
        ("frozen", facts.frozen),
        ("method", facts.method),
        ("protocol", entries[0].results.protocol_sha256[:12]),
    ]
    return TaskKind(tuple(listed), tuple(labels.metric_title(name, m) for m in metrics), tuple(rows), remarks)


def _grouped(said: Sequence[tuple[_Said, Entry]], num_all: int) -> list[tuple[_Said, str]]:
    """What was said, each once, and of which evaluations."""
    whose: dict[_Said, list[str]] = {}
    for text, entry in said:
        whose.setdefault(text, []).append(entry.label)
    every = f"all {num_all} evaluations"
    return [(text, every if 1 < num_all == len(of) else "; ".join(of)) for text, of in whose.items()]
