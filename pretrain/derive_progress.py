"""Telling people how far a derived column is: a bar on a terminal, else a line every ten seconds."""

import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pretrain.derive_shard import ShardResult

SECONDS_BETWEEN_LINES = 10.0
log = logging.getLogger("pretrain.derive")


@dataclass
class Pace:
    """Residues done, and how fast: shards that were found finished say nothing about the speed."""

    total: int
    """Residues of the whole column."""
    found: int = 0
    made: int = 0
    first: tuple[float, int] | None = None
    """When the first shard was made, and its residues: what came before was mostly the start of workers."""

    def add(self, result: ShardResult) -> None:
        if not result.made:
            self.found += result.facts.residues
            return
        self.made += result.facts.residues
        self.first = self.first or (time.monotonic(), self.made)

    @property
    def done(self) -> int:
        return self.found + self.made

    def words(self) -> str:
        """Rate in residues per second, and the time left at that rate."""
        place = f"{self.done:,} of {self.total:,} residues"
        since, before = self.first or (0.0, 0)
        if self.made == before:
            return place
        rate = (self.made - before) / max(time.monotonic() - since, 1e-9)
        return f"{place}, {rate:,.0f} residues/s, about {_clock((self.total - self.done) / rate)} left"


def shown(results: Iterator[ShardResult], total: int, what: str) -> Iterator[ShardResult]:
    """Pass results through, showing the pace.

    Args:
        total: residues of all shards.
    """
    pace = Pace(total)
    if not sys.stderr.isatty():
        yield from _with_lines(results, pace, what)
        return
    columns = (TextColumn(what), BarColumn(), TextColumn("{task.fields[pace]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total, pace="")
        for result in results:
            pace.add(result)
            bar.update(task, completed=pace.done, pace=pace.words())
            yield result


def _with_lines(results: Iterator[ShardResult], pace: Pace, what: str) -> Iterator[ShardResult]:
    last = time.monotonic()
    for result in results:
        pace.add(result)
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            log.info("%s: %s", what, pace.words())
        yield result


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
