"""Running many independent tasks through Ray Data, with progress; nothing here knows about structures."""

import logging
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from configs.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger("data_pipeline")

OBJECT_STORE_BYTES = 256 * 1024**2
"""Tasks and results are small; Ray's default of 30 % of the memory would be taken from the page cache."""
MAX_BLOCKS = 20_000
"""Most Ray Data blocks of one pass: beyond it a block holds several tasks, which bounds the scheduler's own memory."""
TASKS_AT_HAND = 2
"""Of half a second or more."""
SECONDS_BETWEEN_LINES = 10.0
KNOCK_SECONDS = 5.0


@contextmanager
def ray_session(num_workers: int | None) -> Iterator[int]:
    """A running Ray: the one at hand, else the cluster that RAY_ADDRESS names, else a local one; yields the workers.

    Only a Ray that was started or connected here is left again at the end.

    Raises:
        UserError: RAY_ADDRESS names a cluster that does not answer.
    """
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray would otherwise hide the accelerators from tasks that ask for none, with a warning for each worker.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray Data's workers set off an error line of Ray's core about arguments that are never lost.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    ours = not ray.is_initialized()
    if ours:
        with _held_back_stderr():
            _connect(num_workers)
    _silence_ray_data()
    try:
        cpus = int(ray.cluster_resources().get("CPU", 1))
        yield min(num_workers or cpus, max(cpus, 1))
    finally:
        if ours:
            ray.shutdown()


@contextmanager
def _held_back_stderr() -> Iterator[None]:
    """Show what is written to standard error only when the body fails: Ray's core tells there of its log level."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with tempfile.TemporaryFile() as written:
            os.dup2(written.fileno(), 2)
            try:
                yield
            except BaseException as error:
                os.dup2(kept, 2)
                if not isinstance(error, UserError):
                    written.seek(0)
                    os.write(2, written.read())
                raise
            finally:
                os.dup2(kept, 2)
    finally:
        os.close(kept)


def _connect(num_workers: int | None) -> None:
    import ray

    address = os.environ.get("RAY_ADDRESS")
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not address:
        cpus = max(os.cpu_count() or 1, num_workers or 1)
        ray.init("local", num_cpus=cpus, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet)
        return
    try:
        _knock(address)
        ray.init(address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise UserError(
            f"RAY_ADDRESS={address}: no Ray cluster answers there ({first_line}); "
            "start it, or unset RAY_ADDRESS to use a local one"
        ) from None


def _knock(address: str) -> None:
    """Raise OSError when nothing listens at `host:port`: Ray itself would try for minutes."""
    import ray

    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    # Ray takes a loopback address for this machine's own one.
    hosts = [host, ray.util.get_node_ip_address()] if host in ("127.0.0.1", "localhost") else [host]
    for number, candidate in enumerate(hosts, 1):
        try:
            socket.create_connection((candidate, int(port)), timeout=KNOCK_SECONDS).close()
            return
        except OSError:
            if number == len(hosts):
                raise


def _silence_ray_data() -> None:
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def run_tasks(
    function: Callable[[T], R], tasks: Sequence[T], num_workers: int, at_hand: int = TASKS_AT_HAND
) -> Iterator[R]:
    """Results of `function` over `tasks` as they finish, in any order, with at most `num_workers` at a time.

    Args:
        at_hand: tasks that a worker holds, the running one included. Ray Data hands out new ones with a delay of some
            0.2 s, during which a worker with none would stand idle; short tasks need more of them.

    The function must be importable by the workers; tasks and results must be small and picklable. A worker that dies is
    replaced, and its task begun again.
    """
    if not tasks:
        return
    import ray

    rows = [{"task": _Box((function, task))} for task in tasks]
    dataset = ray.data.from_items(rows, override_num_blocks=min(len(rows), MAX_BLOCKS))
    # Actors, since Ray Data gives a plain worker its next task only when it has finished the last.
    size = min(num_workers, len(rows))
    pool = ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=at_hand)
    results = dataset.map(_Worker, num_cpus=1, compute=pool)
    for row in results.iter_rows():
        yield row["result"].value


@dataclass(frozen=True)
class _Box:
    """Keeps Ray Data from turning tuples and lists into array columns."""

    value: Any


class _Worker:
    """What Ray Data keeps alive from task to task."""

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        function, task = row["task"].value
        return {"result": _Box(function(task))}


def with_progress(results: Iterator[R], total: int, what: str, size: Callable[[R], int], unit: str) -> Iterator[R]:
    """Pass results through while telling people how far it is: a bar on a terminal, else a line every 10 seconds.

    Args:
        total: results expected.
        size: how many units (e.g. chains) a result stands for; their rate is shown.
    """
    if sys.stderr.isatty():
        yield from _with_bar(results, total, what, size, unit)
    else:
        yield from _with_lines(results, total, what, size, unit)


def _with_bar(results: Iterator[R], total: int, what: str, size: Callable[[R], int], unit: str) -> Iterator[R]:
    rate = TextColumn("{task.fields[rate]}")
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), rate, TimeElapsedColumn(), TimeRemainingColumn())
    start, done = time.monotonic(), 0
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total, rate="")
        for result in results:
            done += size(result)
            bar.update(task, advance=1, rate=f"{done / (time.monotonic() - start):.1f} {unit}/s")
            yield result


def _with_lines(results: Iterator[R], total: int, what: str, size: Callable[[R], int], unit: str) -> Iterator[R]:
    start = last = time.monotonic()
    done = 0
    for number, result in enumerate(results, 1):
        done += size(result)
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES or number == total:
            last, elapsed = now, now - start
            remaining = elapsed / number * (total - number)
            log.info(
                "%s: %d of %d tasks, %d %s, %.1f %s/s, about %.0f s left",
                *(what, number, total, done, unit, done / max(elapsed, 1e-9), unit, remaining),
            )
        yield result
