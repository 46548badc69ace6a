"""One file that kills its reader, or never lets it end, costs that file alone.

C code reads the structures, and a damaged file may end it in a segmentation fault, in a loop without end, or in more
memory than there is. To run every file in a process of its own would cost more than to read it, so files are read in
the worker, and three things make its death harmless:

* a journal beside the batch's results names each file before it is read: one short line, a few microseconds;
* timers of the kernel end the worker when a file takes too long (no Python needs to run for that, so code that holds
  the interpreter is no exception), and whoever runs the workers starts the batch again, as Ray Data does without end;
* the next attempt finds the journal, and the file at its end is from then on read in a process of its own. If that
  process dies too, the file is rejected (`crashed`, `timed_out`); if not, its result is what the worker would have
  got. So a worker killed from outside, or for a neighbour's memory, rejects nothing.

Results do not depend on what happened: a file is rejected when it alone ends a process of its own, and only then.
"""

import contextlib
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from data_pipeline.structure.chain import StructureError

R = TypeVar("R")

log = logging.getLogger("data_pipeline")

JOURNAL_SUFFIX = ".journal"
WALL_PER_CPU = 10.0
"""Elapsed time a file may take for each second of CPU time: reading may wait, and workers may share a CPU."""
MAX_DEATHS = 4
"""Workers that may die at one file, its own process included, before it is rejected without another attempt."""
OUTSIDE_KILLS = 3
"""Attempts of a file's own process, when SIGKILL ends it: only others send that."""
START_SECONDS = 300.0
"""Longest start of a process, on a busy machine with its packages on a network disk."""
_NEW_ATTEMPT = "-\n"
_TIMERS = ((signal.ITIMER_PROF, signal.SIGPROF), (signal.ITIMER_REAL, signal.SIGALRM))
_TIMER_SIGNALS = tuple(number for _, number in _TIMERS)


class NoProcess(RuntimeError):
    """A process of its own could not be started, or ended without a result; the entry is not to blame."""


class Guard:
    """Reads the entries of one batch, of which some may have ended earlier attempts at the same batch.

    Use as a context manager around the reading of a whole batch; the journal is removed when it is left, unless the
    process dies.
    """

    def __init__(self, journal: Path, seconds: float) -> None:
        """
        Args:
            journal: file of this batch alone, the same for every attempt at it.
            seconds: CPU time allowed for one entry; WALL_PER_CPU times that may elapse.
        """
        assert seconds > 0
        self.journal, self.seconds = journal, seconds
        self._deaths: Counter[str] = Counter()
        self._file = -1
        self._handlers: list[tuple[int, Any]] = []

    def __enter__(self) -> "Guard":
        self._deaths = _deaths(self.journal)
        # Not in append mode, in which network file systems ask the server for the size at every line.
        self._file = os.open(self.journal, os.O_WRONLY | os.O_CREAT, 0o644)
        os.lseek(self._file, 0, os.SEEK_END)
        os.write(self._file, _NEW_ATTEMPT.encode())
        self._handlers = _let_timers_end_the_process()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers:
            signal.signal(number, handler)
        os.close(self._file)
        self.journal.unlink(missing_ok=True)

    def run(self, name: str, function: Callable[..., R], *arguments: Any) -> R:
        """`function(*arguments)` for the entry `name`, in this process unless the entry is under suspicion.

        Args:
            function: importable by name, as its arguments and result are picklable, since it may run elsewhere.

        Raises:
            StructureError: `crashed` or `timed_out`, and whatever the function raises.
        """
        os.write(self._file, f"{json.dumps(name)}\n".encode())
        deaths = self._deaths[name]
        if deaths >= MAX_DEATHS:
            raise StructureError("crashed", f"{deaths} processes ended while they read it")
        if deaths:
            log.warning("a process ended while it read %s: it is read in a process of its own", name)
            try:
                return run_alone(self.seconds, function, *arguments)
            except NoProcess as error:
                log.warning("%s is read with the others: %s", name, error)
        with limited(self.seconds):
            return function(*arguments)


def run_alone(seconds: float, function: Callable[..., R], *arguments: Any) -> R:
    """`function(*arguments)` in a new process.

    Raises:
        StructureError: `timed_out`, or `crashed` when the process ended by a signal; and whatever the function raises.
        NoProcess: there was none, or it told nothing.
    """
    for _ in range(OUTSIDE_KILLS):
        status, outcome = _attempt(seconds, (seconds, function, arguments))
        if status != -signal.SIGKILL or outcome is not None:
            break
    if outcome is not None:
        has_result, value = outcome
        if has_result:
            return value
        raise value
    if -status in _TIMER_SIGNALS:
        raise StructureError(
            "timed_out", f"more than {seconds:g} s of CPU time, or {WALL_PER_CPU * seconds:g} s in all"
        )
    if status < 0:
        raise StructureError("crashed", f"reading it ends a process by {signal.Signals(-status).name}")
    raise NoProcess(f"the process that should read it alone ended with exit code {status} and no result")


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """End this process by SIGPROF or SIGALRM when the body takes `seconds` of CPU time, or WALL_PER_CPU times that."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, WALL_PER_CPU * seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _let_timers_end_the_process() -> list[tuple[int, Any]]:
    """Give the timers' signals their default action; returns the handlers that other code had set."""
    handlers = [(number, signal.getsignal(number)) for number in _TIMER_SIGNALS]
    handlers = [(number, handler) for number, handler in handlers if handler not in (signal.SIG_DFL, None)]
    # Handlers are the main thread's to set; in another one those of other code stay, and get the signals.
    with contextlib.suppress(ValueError):
        for number, _ in handlers:
            signal.signal(number, signal.SIG_DFL)
        return handlers
    return []


def _deaths(journal: Path) -> Counter[str]:
    """How many attempts ended at each entry: the last one of every attempt."""
    try:
        lines = [*journal.read_text().splitlines(keepends=True), _NEW_ATTEMPT]
    except FileNotFoundError:
        return Counter()
    last = [line for line, following in itertools.pairwise(lines) if following == _NEW_ATTEMPT != line]
    deaths: Counter[str] = Counter()
    for line in last:
        # A line cut by the loss of the whole machine names nothing, and its attempt shows nothing.
        with contextlib.suppress(ValueError):
            deaths[json.loads(line)] += 1
    return deaths


def _attempt(seconds: float, work: tuple[float, Callable[..., Any], tuple[Any, ...]]) -> tuple[int, Any]:
    """Exit status of a process that does the work, and (has result, result or exception), None when it told nothing."""
    ours, theirs = Pipe()
    # Neither the parent's main module nor its threads come along, as they would with multiprocessing's own processes.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    command = [sys.executable, "-m", "data_pipeline.isolation", str(theirs.fileno())]
    with ours, subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()]) as process:
        theirs.close()
        try:
            ours.send(work)
            # Its own timers end it long before, unless it cannot be started or waits for a disk that is gone.
            outcome = ours.recv() if ours.poll(START_SECONDS + 2 * WALL_PER_CPU * seconds) else None
        except (EOFError, ConnectionError):
            outcome = None
        else:
            if outcome is None:
                process.kill()
                return -signal.SIGALRM, None
        return process.wait(), outcome


def _serve(connection: Connection) -> None:
    """What the process of `_attempt` does."""
    seconds, function, arguments = connection.recv()
    _let_timers_end_the_process()
    try:
        with limited(seconds):
            outcome = True, function(*arguments)
    except Exception as error:
        outcome = False, error
    try:
        connection.send(outcome)
    except (TypeError, AttributeError):
        connection.send((False, RuntimeError(f"{type(outcome[1]).__name__}: {outcome[1]}")))


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
