"""The queue: one sqlite file that knows every evaluation, each of its steps, and what came of it."""

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from configs.errors import UserError
from eval.results import RESULTS_FILE, Results, read_results
from eval.service.board import EvaluationRow, Kind, PromotionRow, TaskRow
from eval.service.identity import Identity
from eval.service.schema import open_database

CANCELLED = "cancelled by a client"
_EVALUATIONS = """
SELECT e.id, e.weights_sha256, e.protocol_sha256, e.checkpoint, e.run, e.step, e.state, e.priority, e.reason, e.created,
    e.started, e.finished, COALESCE(SUM(t.attempts), 0) AS attempts, COALESCE(SUM(t.kind = 'task'), 0) AS num_tasks,
    COALESCE(SUM(t.kind = 'task' AND t.state IN ('done', 'failed')), 0) AS num_ended
FROM evaluations e LEFT JOIN tasks t ON t.evaluation = e.id
"""
_TASKS = """
SELECT t.id, t.evaluation, e.run, e.step, t.kind, t.name AS task, t.version, t.state, t.attempts, t.started, t.seconds,
    t.reason
FROM tasks t JOIN evaluations e ON e.id = t.evaluation
"""
_ORDER = "ORDER BY e.priority DESC, e.started IS NULL, e.id, t.position"
"""Urgent ones first, then what was begun, then as they came."""


class QueueFull(Exception):
    """No more evaluations are taken for now."""


@dataclass(frozen=True)
class Claim:
    """A step that is now running, and what is known for it."""

    id: int
    evaluation: int
    kind: Kind
    name: str
    attempts: int
    checkpoint: str
    config: str | None
    """Of the evaluation's protocol, as YAML; it may be an older one than the service's."""
    num_embedded: int
    seconds: float
    """Of the evaluation's steps so far."""
    failed: Mapping[str, str]
    """Tasks of the evaluation that ended in an error, and why."""


class Store:
    """All reading and writing of the queue; safe to use from any thread, one process at a time."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._clock = clock
        self._lock = threading.RLock()
        self._database = open_database(folder / "queue.sqlite")
        self._results: dict[int, tuple[int, Results]] = {}

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def recover(self) -> int:
        """Queue again what was running when the last service ended, which costs no attempt; returns the number."""
        with self._transaction() as database:
            found = database.execute(
                "UPDATE tasks SET state = 'queued', attempts = attempts - 1, started = NULL WHERE state = 'running'"
            )
            database.execute("UPDATE evaluations SET state = 'queued' WHERE state = 'running'")
            return found.rowcount

    def set_protocol(self, protocol: str, config: str) -> None:
        """Keep the configuration behind a protocol: what waits for it may outlive a change of the service's."""
        with self._transaction() as database:
            database.execute("INSERT OR REPLACE INTO protocols VALUES (?, ?)", (protocol, config))

    def enqueue(
        self, who: Identity, protocol: str, priority: int = 0, again: bool = False, limit: int | None = None
    ) -> tuple[int, bool]:
        """Id of the evaluation of these weights under this protocol, and whether it is new or queued again.

        A failed one is queued again with `again`, or where its checkpoint could not be read and this is another copy.

        Raises:
            QueueFull: it would be new, and `limit` evaluations wait already.
        """
        with self._transaction() as database:
            key = (who.weights_sha256, protocol)
            found = database.execute(
                "SELECT id, state, checkpoint, priority FROM evaluations "
                "WHERE (weights_sha256, protocol_sha256) = (?, ?)",
                key,
            ).fetchone()
            if found is None:
                return self._insert(database, who, protocol, priority, limit), True
            if found["state"] == "queued" and priority > found["priority"]:
                database.execute("UPDATE evaluations SET priority = ? WHERE id = ?", (priority, found["id"]))
            is_other_copy = str(who.checkpoint) != found["checkpoint"] and self._is_unread(database, found["id"])
            if found["state"] != "failed" or who.damage is not None or not (again or is_other_copy):
                return found["id"], False
            database.execute(
                "UPDATE evaluations SET state = 'queued', reason = NULL, finished = NULL, logged = 0, checkpoint = ?, "
                "priority = ? WHERE id = ?",
                (str(who.checkpoint), max(priority, found["priority"]), found["id"]),
            )
            database.execute(
                "UPDATE tasks SET state = 'queued', attempts = 0, reason = NULL, started = NULL, seconds = NULL "
                "WHERE evaluation = ? AND (state = 'failed' OR kind IN ('embed', 'finish'))",
                (found["id"],),
            )
            return found["id"], True

    def claim(self) -> Claim | None:
        """The next step to run, marked as running; an evaluation has one step running at a time."""
        with self._transaction() as database:
            row = database.execute(
                "SELECT t.id, t.evaluation, t.kind, t.name, t.attempts + 1 AS attempts, e.checkpoint, p.config "
                "FROM tasks t JOIN evaluations e ON e.id = t.evaluation "
                "LEFT JOIN protocols p ON p.protocol_sha256 = e.protocol_sha256 "
                "WHERE e.state IN ('queued', 'running') AND t.state = 'queued' AND NOT EXISTS "
                f"(SELECT 1 FROM tasks o WHERE o.evaluation = e.id AND o.state = 'running') {_ORDER} LIMIT 1"
            ).fetchone()
            if row is None:
                return None
            now, evaluation = self._clock(), row["evaluation"]
            database.execute(
                "UPDATE tasks SET state = 'running', attempts = attempts + 1, started = ? WHERE id = ?",
                (now, row["id"]),
            )
            database.execute(
                "UPDATE evaluations SET state = 'running', started = COALESCE(started, ?) WHERE id = ?",
                (now, evaluation),
            )
            embedded, seconds = database.execute(
                "SELECT SUM(num_embedded), SUM(COALESCE(seconds, 0)) FROM tasks WHERE evaluation = ?", (evaluation,)
            ).fetchone()
            failed = database.execute(
                "SELECT name, reason FROM tasks WHERE evaluation = ? AND kind = 'task' AND state = 'failed'",
                (evaluation,),
            ).fetchall()
            return Claim(**row, num_embedded=embedded, seconds=seconds, failed=dict(map(tuple, failed)))

    def planned(self, claim: Claim, names: Sequence[str], seconds: float) -> None:
        """The tasks of an evaluation are known: they are queued between its embedding pass and its finish."""
        with self._transaction() as database:
            if self._end(database, claim, "done", seconds):
                steps = [("embed", "embed"), *(("task", name) for name in names), ("finish", "finish")]
                database.executemany(
                    "INSERT OR IGNORE INTO tasks (evaluation, position, kind, name, state) "
                    "VALUES (?, ?, ?, ?, 'queued')",
                    [(claim.evaluation, number, kind, name) for number, (kind, name) in enumerate(steps, 1)],
                )

    def done(self, claim: Claim, seconds: float, version: str | None = None, num_embedded: int = 0) -> None:
        """A step ended well; with its last one, an evaluation has ended."""
        with self._transaction() as database:
            if not self._end(database, claim, "done", seconds, version, num_embedded=num_embedded):
                return
            if claim.kind == "finish":
                reason = None
                if claim.failed:
                    parts = "; ".join(f"{name}: {why}" for name, why in claim.failed.items())
                    reason = f"{len(claim.failed)} of its tasks failed: {parts}"[:800]
                self._end_evaluation(database, claim.evaluation, reason)

    def failed(self, claim: Claim, seconds: float, reason: str) -> None:
        """A step ended in an error: a task alone, any other step with its whole evaluation."""
        with self._transaction() as database:
            if self._end(database, claim, "failed", seconds, reason=reason) and claim.kind != "task":
                self._end_evaluation(
                    database, claim.evaluation, reason if claim.kind == "plan" else f"{claim.kind}: {reason}"
                )

    def again(self, claim: Claim, counts: bool) -> None:
        """A step that did not end is queued again; `counts`: its attempt stays counted."""
        with self._transaction() as database:
            database.execute(
                "UPDATE tasks SET state = 'queued', started = NULL, attempts = attempts - ? "
                "WHERE id = ? AND state = 'running'",
                (0 if counts else 1, claim.id),
            )

    def cancel(self, evaluation: int) -> bool:
        """End an evaluation that waits or runs; false where it has ended already.

        Raises:
            KeyError: no such evaluation.
        """
        with self._transaction() as database:
            row = self.evaluation(evaluation)
            if row.state in ("done", "failed"):
                return False
            self._end_evaluation(database, evaluation, CANCELLED)
            return True

    def unlogged(self) -> list[EvaluationRow]:
        """Evaluations with results whose metrics are not known to be in MLflow."""
        rows = self._rows(f"{_EVALUATIONS} WHERE e.logged = 0 AND e.finished IS NOT NULL GROUP BY e.id")
        return [row for row in map(_evaluation, rows) if (self._folder_of(row) / RESULTS_FILE).is_file()]

    def set_logged(self, evaluation: int) -> None:
        with self._transaction() as database:
            database.execute("UPDATE evaluations SET logged = 1 WHERE id = ?", (evaluation,))

    def link_version(self, model: str, version: int, evaluation: int) -> None:
        """Remember which evaluation belongs to a version of a registered model."""
        with self._transaction() as database:
            database.execute("INSERT OR REPLACE INTO versions VALUES (?, ?, ?)", (model, version, evaluation))

    def versions(self, protocol: str) -> dict[tuple[str, int], int]:
        """(model, version) -> evaluation under this protocol, in order."""
        query = (
            "SELECT v.* FROM versions v JOIN evaluations e ON e.id = evaluation WHERE protocol_sha256 = ? ORDER BY 1, 2"
        )
        return {(row["model"], row["version"]): row["evaluation"] for row in self._rows(query, protocol)}

    def record_promotion(self, row: PromotionRow) -> None:
        """Write a decision down before it is carried out; a former one about the same evaluation is replaced."""
        values = {**asdict(row), "numbers": json.dumps(row.numbers), "applied": int(row.applied)}
        del values["id"]
        with self._transaction() as database:
            marks = ", ".join(f":{name}" for name in values)
            database.execute(f"INSERT OR REPLACE INTO promotions ({', '.join(values)}) VALUES ({marks})", values)

    def evaluation(self, evaluation: int) -> EvaluationRow:
        """One evaluation.

        Raises:
            KeyError: no such evaluation.
        """
        rows = self._rows(f"{_EVALUATIONS} WHERE e.id = ? GROUP BY e.id", evaluation)
        if not rows:
            raise KeyError(evaluation)
        return _evaluation(rows[0])

    def evaluations(self) -> list[EvaluationRow]:
        """See `Board.evaluations`."""
        return [_evaluation(row) for row in self._rows(f"{_EVALUATIONS} GROUP BY e.id ORDER BY e.id DESC")]

    def queue(self) -> list[TaskRow]:
        """See `Board.queue`."""
        waiting = "WHERE t.state IN ('queued', 'running') AND e.state IN ('queued', 'running')"
        rows = self._rows(f"{_TASKS} {waiting} ORDER BY t.state = 'queued', {_ORDER.removeprefix('ORDER BY ')}")
        return [TaskRow(**row) for row in rows]

    def tasks(self, evaluation: int) -> list[TaskRow]:
        """See `Board.tasks`."""
        return [TaskRow(**row) for row in self._rows(f"{_TASKS} WHERE e.id = ? ORDER BY t.position", evaluation)]

    def results(self) -> list[tuple[EvaluationRow, Results]]:
        """See `Board.results`."""
        found = []
        for row in sorted(self.evaluations(), key=lambda row: (row.run, row.step, row.id)):
            results = self._read_results(row) if row.finished is not None else None
            if results is not None:
                found.append((row, results))
        return found

    def folder_of(self, evaluation: int) -> Path:
        """See `Board.folder_of`."""
        return self._folder_of(self.evaluation(evaluation))

    def promotions(self) -> list[PromotionRow]:
        """See `Board.promotions`."""
        rows = [dict(row) for row in self._rows("SELECT * FROM promotions ORDER BY id DESC")]
        return [
            PromotionRow(**{**row, "numbers": json.loads(row["numbers"]), "applied": bool(row["applied"])})
            for row in rows
        ]

    def counts(self) -> dict[str, int]:
        """Evaluations by state."""
        return {row[0]: row[1] for row in self._rows("SELECT state, COUNT(*) FROM evaluations GROUP BY state")}

    def _folder_of(self, row: EvaluationRow) -> Path:
        weights = row.weights_sha256.replace(":", "-")
        return self._folder / "results" / f"{weights[:24]}-{row.protocol_sha256[:12]}"

    def _read_results(self, row: EvaluationRow) -> Results | None:
        folder = self._folder_of(row)
        try:
            changed = (folder / RESULTS_FILE).stat().st_mtime_ns
            if self._results.get(row.id, (None,))[0] != changed:
                self._results[row.id] = (changed, read_results(folder))
        except FileNotFoundError:
            return None
        except UserError as error:
            logging.getLogger("eval.service").warning("%s", error)
            return None
        return self._results[row.id][1]

    def _insert(
        self, database: sqlite3.Connection, who: Identity, protocol: str, priority: int, limit: int | None
    ) -> int:
        (waiting,) = database.execute("SELECT COUNT(*) FROM evaluations WHERE state = 'queued'").fetchone()
        if limit is not None and waiting >= limit:
            raise QueueFull
        now, is_damaged = self._clock(), who.damage is not None
        facts = (who.weights_sha256, protocol, str(who.checkpoint), who.run, who.step, priority, who.damage, now)
        new = database.execute(
            "INSERT INTO evaluations (weights_sha256, protocol_sha256, checkpoint, run, step, priority, reason, "
            "created, finished, state) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*facts, now if is_damaged else None, "failed" if is_damaged else "queued"),
        ).lastrowid
        if not is_damaged:
            database.execute(
                "INSERT INTO tasks (evaluation, position, kind, name, state) VALUES (?, 0, 'plan', 'plan', 'queued')",
                (new,),
            )
        assert new is not None
        return new

    @staticmethod
    def _is_unread(database: sqlite3.Connection, evaluation: int) -> bool:
        query = "SELECT 1 FROM tasks WHERE evaluation = ? AND kind = 'plan' AND state = 'failed'"
        return database.execute(query, (evaluation,)).fetchone() is not None

    @staticmethod
    def _end(
        database: sqlite3.Connection,
        claim: Claim,
        state: str,
        seconds: float,
        version: str | None = None,
        reason: str | None = None,
        num_embedded: int = 0,
    ) -> bool:
        """Whether the step was still running: a cancelled one stays as it is."""
        found = database.execute(
            "UPDATE tasks SET state = ?, seconds = ?, version = ?, reason = ?, num_embedded = num_embedded + ? "
            "WHERE id = ? AND state = 'running'",
            (state, round(seconds, 3), version, reason, num_embedded, claim.id),
        )
        return found.rowcount == 1

    def _end_evaluation(self, database: sqlite3.Connection, evaluation: int, reason: str | None) -> None:
        database.execute(
            "UPDATE evaluations SET state = ?, reason = ?, finished = ? WHERE id = ?",
            ("failed" if reason else "done", reason, self._clock(), evaluation),
        )
        database.execute(
            "UPDATE tasks SET state = 'failed', reason = ? WHERE evaluation = ? AND state IN ('queued', 'running')",
            (f"not done: {reason}"[:400], evaluation),
        )

    def _rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock:
            return self._database.execute(query, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")


def _evaluation(row: sqlite3.Row) -> EvaluationRow:
    return EvaluationRow(**row)
