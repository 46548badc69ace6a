"""Paired comparisons of evaluations for the pages: each pair worked out once, those of the leaderboard in background.

A value is marked best only when it is significantly better than that of every other row: the paired p-values against
all of them, adjusted for their number (Holm 1979), are below SIGNIFICANCE. The nearest rival is looked at first, as one
that is not significantly worse settles the question.
"""

import logging
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.errors import UserError
from eval.comparison import Comparison, check_comparable
from eval.examples import read_examples
from eval.intervals import holm, paired_difference
from eval.results import RESULTS_FILE, examples_path, read_record, record_path
from eval.service.labels import sign_of
from eval.tables import SIGNIFICANCE

Compare = Callable[[Path, Path, int], Mapping[str, Comparison]]
"""Folders of two evaluations and the number of bootstrap samples -> second minus first by `task/metric`.

Raises UserError where the two may not be compared.
"""
Test = Callable[[Path, Path, str, str, int], tuple[float, float]]
"""Folders of two evaluations, task, metric and number of samples -> second minus first, and its p-value.

Raises UserError where there is no such test.
"""
NUM_SAMPLES = 4000
_MAX_PAIRS = 5000
"""Pairs and marks kept; the oldest go first."""
log = logging.getLogger("eval")


@dataclass(frozen=True)
class Candidate:
    """One row's value of the metric that a mark is about."""

    id: int
    folder: Path
    value: float


class Comparisons:
    """Differences of pairs, remembered until a results.json changes, and marks of columns, until a value does."""

    def __init__(self, compare: Compare, test: Test) -> None:
        self._compare, self._test = compare, test
        self._pairs: OrderedDict[object, Mapping[str, Comparison] | str] = OrderedDict()
        self._marks: OrderedDict[object, int | None] = OrderedDict()
        self._underway: set[object] = set()
        self._lock = threading.Lock()
        self._waiting: queue.SimpleQueue[tuple[object, str, list[Candidate]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def pair(self, first: Path, second: Path) -> Mapping[str, Comparison]:
        """Second minus first by `task/metric`.

        Raises:
            UserError: the two may not be compared.
        """
        key = (*_stamp(first), *_stamp(second))
        with self._lock:
            found = self._pairs.get(key)
        if found is None:
            try:
                found = self._compare(first, second, NUM_SAMPLES)
            except UserError as error:
                found = str(error)
            with self._lock:
                _keep(self._pairs, key, found)
        if isinstance(found, str):
            raise UserError(found)
        return found

    def best(self, name: str, candidates: Sequence[Candidate]) -> tuple[int | None, bool]:
        """Identifier of the significantly best candidate for `task/metric`, if any, and whether that is settled.

        Work that is not done yet is done in background; a later call finds it.
        """
        if len(candidates) < 2:
            return None, True
        key = (name, tuple(sorted((c.id, c.value) for c in candidates)))
        with self._lock:
            if key in self._marks:
                return self._marks[key], True
            if key not in self._underway:
                self._underway.add(key)
                self._waiting.put((key, name, list(candidates)))
            if self._thread is None:
                # A daemon: what it works out can be had again, and no end of the program waits for it.
                self._thread = threading.Thread(target=self._work, name="comparisons", daemon=True)
                self._thread.start()
        return None, False

    def _work(self) -> None:
        while True:
            self._settle(*self._waiting.get())

    def _settle(self, key: object, name: str, candidates: list[Candidate]) -> None:
        found = None
        try:
            found = self._winner(name, candidates)
        except Exception:
            # A page without this mark is better than one that waits for it for ever.
            log.exception("the best value of %s could not be worked out", name)
        with self._lock:
            self._underway.discard(key)
            _keep(self._marks, key, found)

    def _winner(self, name: str, candidates: list[Candidate]) -> int | None:
        task, metric = name.split("/", 1)
        sign = sign_of(metric)
        winner, *rivals = sorted(candidates, key=lambda c: -sign * c.value)
        # The smallest p-value of N samples is 2 / (N + 1): enough of them that Holm's first step can pass.
        num_samples = max(NUM_SAMPLES, 80 * len(rivals))
        p_values = []
        for rival in rivals:
            try:
                difference, p_value = self._test(rival.folder, winner.folder, task, metric, num_samples)
            except UserError as error:
                log.info("no best value of %s is marked: %s", name, error)
                return None
            if difference == 0 or p_value >= SIGNIFICANCE:
                return None
            p_values.append(p_value)
        return winner.id if max(holm(p_values)) < SIGNIFICANCE else None


def paired_test(first: Path, second: Path, task: str, metric: str, num_samples: int) -> tuple[float, float]:
    """Second evaluation minus first in one metric, and its two-sided p-value, over the same examples.

    Raises:
        UserError: the two may not be compared, hold different examples, or leave nothing to test.
    """
    check_comparable(*({task: read_record(record_path(folder, task))} for folder in (first, second)))
    pair = [read_examples(examples_path(folder, task)) for folder in (first, second)]
    if any(metric not in found for found in pair):
        raise UserError(f"comparison: {task} has no examples of {metric!r} in both evaluations; evaluate both again")
    found = paired_difference(pair[0][metric], pair[1][metric], num_samples, seed=0)
    return found.difference, found.p_value


def _stamp(folder: Path) -> tuple[str, int]:
    try:
        return str(folder), (folder / RESULTS_FILE).stat().st_mtime_ns
    except OSError:
        return str(folder), 0


def _keep(store: OrderedDict, key: object, value: object) -> None:
    store[key] = value
    while len(store) > _MAX_PAIRS:
        store.popitem(last=False)
