"""What pages show of results, as plain values: evaluations, protocols that may stand in one table, the leaderboard."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from configs.labels import is_lower_better
from eval.results import Result, Results
from eval.service import labels
from eval.service.board import Board, EvaluationRow
from eval.service.significance import Candidate, Comparisons

PEER = "peer"
"""Stage of a model that is no checkpoint of ours."""
PAGE_ROWS = 50
"""Rows of a table's page."""
PREVIEW_ROWS = 10
"""Rows of a protocol that is not the one chosen."""

Name = tuple[str, str]
"""Task and metric."""


@dataclass(frozen=True)
class Entry:
    """One evaluation that has results."""

    row: EvaluationRow
    results: Results

    @property
    def id(self) -> int:
        return self.row.id

    @property
    def is_peer(self) -> bool:
        """Whether it is a model from elsewhere, which has no steps."""
        return self.results.stage == PEER

    @property
    def label(self) -> str:
        """Name for people, with the step where there is one."""
        return self.results.run if self.is_peer else f"{self.results.run}, step {self.results.step:,}"

    @cached_property
    def found(self) -> Mapping[Name, Result]:
        """Results by task and metric."""
        return {(r.task, r.metric): r for r in self.results.results}

    @cached_property
    def kinds(self) -> Mapping[str, tuple[str, str, str]]:
        """Version, hash of the data (empty for shards) and split of each task that has results."""
        facts = self.results.tasks
        return {
            r.task: (r.task_version, (facts[r.task].data_sha256 or "") if r.task in facts else "", r.split)
            for r in self.results.results
        }

    @cached_property
    def searched(self) -> str:
        """Text that filters look into."""
        r = self.results
        return f"{r.run} {r.stage} {r.trunk} step {r.step} {r.weights_sha256}".lower()


@dataclass(frozen=True)
class Protocol:
    """Evaluations whose numbers mean the same: settings, data and task versions agree."""

    key: str
    """Part of addresses."""
    title: str
    facts: tuple[str, ...]
    entries: tuple[Entry, ...]

    @cached_property
    def names(self) -> tuple[Name, ...]:
        """Every task and metric that an evaluation has, by group, then in the order of results."""
        seen = dict.fromkeys(name for entry in self.entries for name in entry.found)
        order = list(labels.GROUPS)
        tasks = list(dict.fromkeys(task for task, _ in seen))
        ranked = sorted(tasks, key=lambda task: (order.index(labels.group_of(task)), tasks.index(task)))
        return tuple((task, metric) for task in ranked for t, metric in seen if t == task)

    @cached_property
    def main_names(self) -> tuple[Name, ...]:
        """One metric of each task."""
        main: dict[str, Name] = {}
        for task, metric in self.names:
            if task not in main or labels.MAIN_METRIC.get(task) == metric:
                main[task] = (task, metric)
        return tuple(main.values())


@dataclass(frozen=True)
class Column:
    name: Name
    task: str
    title: str
    is_lower_better: bool

    @property
    def key(self) -> str:
        return "/".join(self.name)


@dataclass(frozen=True)
class Cell:
    value: str
    interval: str
    is_best: bool
    note: str
    """Examples, clusters and seeds behind the value."""


@dataclass(frozen=True)
class TableRow:
    entry: Entry
    rank: str
    """Mean of its ranks over the columns."""
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Leaderboard:
    protocol: Protocol
    columns: tuple[Column, ...]
    tasks: tuple[tuple[str, str, int], ...]
    """Name, title and number of columns of each task."""
    rows: tuple[TableRow, ...]
    num_rows: int
    """Before paging."""
    pages: int
    num_open: int
    """Columns whose best value is still being tested."""


@dataclass(frozen=True)
class Choice:
    """What a leaderboard was asked to show."""

    runs: frozenset[str] = frozenset()
    """Empty: all."""
    metrics: str = "main"
    """`main`, `all`, `group:<key>` or `task:<name>`."""
    text: str = ""
    newest: bool = False
    """Only the newest checkpoint of each run."""
    sort: str = "rank"
    """`rank`, `name`, `step` or a column's key."""
    descending: bool | None = None
    """None: the better way round first."""
    page: int = 1


def entries_of(board: Board) -> list[Entry]:
    """Evaluations with results, by run and step."""
    return [Entry(row, results) for row, results in board.results()]


def protocols_of(entries: Iterable[Entry]) -> list[Protocol]:
    """Evaluations in groups that may be compared, the group evaluated last first.

    Settings and shards decide; and where one task stands in several versions, data or splits, each has its own group.
    """
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.results.protocol_sha256, entry.results.manifest_sha256 or ""), []).append(entry)
    found: list[tuple[float, Protocol]] = []
    for (settings, manifest), members in groups.items():
        parts = _split_by_versions(members)
        for number, (differing, part) in enumerate(parts.items()):
            newest = max((e.row.finished or e.row.created for e in part), default=0.0)
            key = settings[:8] + (manifest[:4] if _repeats(groups, settings) else "") + (f".{number}" if number else "")
            found.append((newest, Protocol(key, f"Protocol {key}", _facts(part, manifest, differing), tuple(part))))
    return [protocol for _, protocol in sorted(found, key=lambda item: -item[0])]


def runs_of(entries: Iterable[Entry]) -> list[str]:
    """Names of runs and of models from elsewhere, runs first."""
    named = {entry.results.run: entry.is_peer for entry in entries}
    return sorted(named, key=lambda run: (named[run], run))


def chosen_names(protocol: Protocol, metrics: str) -> tuple[Name, ...]:
    """The columns or charts that a choice of metrics stands for; none for one that this protocol does not have."""
    kind, _, value = metrics.partition(":")
    if kind == "main":
        return protocol.main_names
    if kind == "all":
        return protocol.names
    if kind == "group":
        return tuple(name for name in protocol.names if labels.group_of(name[0]) == value)
    return tuple(name for name in protocol.names if name[0] == value)


def metric_choices(protocols: Sequence[Protocol]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Options of the metrics filter under their headings."""
    tasks = list(dict.fromkeys(task for protocol in protocols for task, _ in protocol.names))
    groups = [g for g in labels.GROUPS if any(labels.group_of(task) == g for task in tasks)]
    overall = [("main", "Main metric of every task"), ("all", "All metrics")]
    return [
        ("Overview", overall),
        ("Groups", [(f"group:{g}", labels.GROUPS[g]) for g in groups]),
        ("Tasks", [(f"task:{task}", labels.task_title(task)) for task in tasks]),
    ]


def filtered(protocol: Protocol, choice: Choice) -> list[Entry]:
    """Entries that pass the filters."""
    words = choice.text.lower().split()
    kept = [
        entry
        for entry in protocol.entries
        if (not choice.runs or entry.results.run in choice.runs) and all(word in entry.searched for word in words)
    ]
    if choice.newest:
        newest = {entry.results.run: entry for entry in sorted(kept, key=lambda e: e.results.step)}
        kept = [entry for entry in kept if newest[entry.results.run] is entry]
    return kept


def leaderboard(
    protocol: Protocol,
    choice: Choice,
    comparisons: Comparisons,
    folder_of: Mapping[int, Path],
    per_page: int = PAGE_ROWS,
) -> Leaderboard:
    """One table: rows that pass the filters, sorted and paged; values marked where they are significantly best."""
    entries = filtered(protocol, choice)
    names = chosen_names(protocol, choice.metrics)
    names = tuple(name for name in names if any(name in entry.found for entry in entries))
    columns = tuple(
        Column(name, labels.task_title(name[0]), labels.metric_title(*name), is_lower_better(name[1])) for name in names
    )
    ranks = mean_ranks(entries, names)
    best: dict[Name, int | None] = {}
    num_open = 0
    for name in names:
        candidates = [Candidate(e.id, folder_of[e.id], e.found[name].value) for e in entries if name in e.found]
        best[name], is_settled = comparisons.best("/".join(name), candidates)
        num_open += not is_settled
    ordered = _sorted(entries, choice, ranks)
    pages = max(1, -(-len(ordered) // per_page))
    start = (min(choice.page, pages) - 1) * per_page
    rows = tuple(
        TableRow(
            e,
            f"{ranks[e.id]:.1f}" if e.id in ranks else labels.DASH,
            tuple(_cell(e, name, best[name]) for name in names),
        )
        for e in ordered[start : start + per_page]
    )
    counts: dict[str, int] = {}
    for task, _ in names:
        counts[task] = counts.get(task, 0) + 1
    tasks = tuple((task, labels.task_title(task), count) for task, count in counts.items())
    return Leaderboard(protocol, columns, tasks, rows, len(ordered), pages, num_open)


def mean_ranks(entries: Sequence[Entry], names: Sequence[Name]) -> dict[int, float]:
    """Mean over metrics of each entry's rank (1: best; equal values share their mean rank; missing ones come last)."""
    if not names:
        return {}
    total = dict.fromkeys((entry.id for entry in entries), 0.0)
    for name in names:
        sign = labels.sign_of(name[1])
        values = {e.id: -sign * e.found[name].value if name in e.found else float("inf") for e in entries}
        ordered = sorted(values, key=values.__getitem__)
        start = 0
        while start < len(ordered):
            end = start
            while end < len(ordered) and values[ordered[end]] == values[ordered[start]]:
                end += 1
            for id in ordered[start:end]:
                total[id] += (start + 1 + end) / 2
            start = end
    return {id: value / len(names) for id, value in total.items()}


def _sorted(entries: list[Entry], choice: Choice, ranks: Mapping[int, float]) -> list[Entry]:
    down = choice.descending
    if choice.sort == "name":
        return sorted(entries, key=lambda e: (e.results.run, e.results.step), reverse=bool(down))
    if choice.sort == "step":
        return sorted(entries, key=lambda e: (e.results.step, e.results.run), reverse=down is not False)
    if choice.sort == "rank":
        return sorted(entries, key=lambda e: ranks.get(e.id, 0.0), reverse=bool(down))
    task, _, metric = choice.sort.partition("/")
    if down is None:
        down = not is_lower_better(metric)
    present = [e for e in entries if (task, metric) in e.found]
    # Rows without the value stay below, whichever way the others are sorted.
    absent = [e for e in entries if (task, metric) not in e.found]
    return sorted(present, key=lambda e: e.found[task, metric].value, reverse=down) + absent


def _cell(entry: Entry, name: Name, best: int | None) -> Cell | None:
    result = entry.found.get(name)
    if result is None:
        return None
    seeds = f", {len(result.seeds)} seeds" if len(result.seeds) > 1 else ""
    note = f"{result.num_examples:,} examples in {result.num_clusters:,} clusters{seeds}"
    return Cell(
        labels.value_text(result.value, result.metric),
        labels.interval_text(result.ci_low, result.ci_high, result.metric),
        entry.id == best,
        note,
    )


def _split_by_versions(entries: list[Entry]) -> dict[tuple[str, ...], list[Entry]]:
    """Entries by what distinguishes them; one that lacks a task stands with the newest version of it."""
    kinds: dict[str, dict[tuple[str, str, str], None]] = {}
    for entry in sorted(entries, key=lambda e: -(e.row.finished or e.row.created)):
        for task, kind in entry.kinds.items():
            kinds.setdefault(task, {})[kind] = None
    differing = [task for task, found in kinds.items() if len(found) > 1]
    groups: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries:
        parts = []
        for task in differing:
            version, data, split = entry.kinds.get(task, next(iter(kinds[task])))
            parts.append(f"{labels.task_title(task)}: version {version}, split {split}, data {data[:8] or 'of shards'}")
        groups.setdefault(tuple(parts), []).append(entry)
    return groups


def _repeats(groups: Mapping[tuple[str, str], object], settings: str) -> bool:
    return sum(one == settings for one, _ in groups) > 1


def _facts(entries: Sequence[Entry], manifest: str, differing: tuple[str, ...]) -> tuple[str, ...]:
    results = entries[-1].results
    tasks = {task for entry in entries for task in entry.kinds}
    facts = [_counted(len(entries), "evaluation"), _counted(len(tasks), "task")]
    if manifest:
        facts.append(f"structures of shards {manifest[:12]} ({results.num_test_chains:,} held-out chains)")
    return (*facts, *differing)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' if number != 1 else ''}"
