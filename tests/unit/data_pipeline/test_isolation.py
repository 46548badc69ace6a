"""One file that ends its reader costs that file alone; a worker lost for any other reason costs nothing."""

import ctypes
import multiprocessing
import os
import re
import signal
import time
from pathlib import Path

import pytest

from data_pipeline.executor import run_tasks
from data_pipeline.isolation import JOURNAL_SUFFIX, MAX_DEATHS, WALL_PER_CPU, Guard, limited, run_alone
from data_pipeline.structure.chain import StructureError

SECONDS = 1.0
"""Far more than an innocent entry needs, even on a busy machine, since only CPU time counts."""
MAX_ATTEMPTS = 20


def read(name: str, folder: str) -> str:
    """Stands for reading a structure: what it does is in the entry's name."""
    match name.partition(":")[0]:
        case "segfault":
            ctypes.string_at(0)
        case "abort":
            os.abort()
        case "hang":
            # Backtracking without end, in C code that holds the interpreter's lock.
            re.match(r"(a+)+$", "a" * 64 + "b")
        case "killed once":
            flag = Path(folder, "flag")
            if not flag.exists():
                flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        case "killed always":
            os.kill(os.getpid(), signal.SIGKILL)
        case "damaged":
            raise StructureError("truncated", "as read says")
    return f"chains of {name}"


def read_batch(task: tuple[tuple[str, ...], str]) -> dict[str, str]:
    """Name -> result or reason, for a batch of entries, as a worker reads it."""
    names, folder = task
    results = {}
    with Guard(Path(folder, f"batch{JOURNAL_SUFFIX}"), SECONDS) as guard:
        for name in names:
            try:
                results[name] = guard.run(name, read, name, folder)
            except StructureError as error:
                results[name] = error.reason
    return results


def _worker(task: tuple[tuple[str, ...], str], results: multiprocessing.SimpleQueue) -> None:
    results.put(read_batch(task))


def read_until_done(names: tuple[str, ...], folder: Path) -> tuple[dict[str, str], int]:
    """The batch's results and how many processes died on the way, begun again after each as Ray does."""
    context = multiprocessing.get_context("spawn")
    for deaths in range(MAX_ATTEMPTS):
        results = context.SimpleQueue()
        process = context.Process(target=_worker, args=((names, str(folder)), results))
        process.start()
        process.join()
        if process.exitcode == 0:
            return results.get(), deaths
        assert process.exitcode < 0, "only signals end the worker"
    raise AssertionError("the batch never ended")


def test_entries_that_crash_or_hang_are_rejected_and_all_others_kept(tmp_path: Path) -> None:
    names = ("a", "segfault", "b", "hang", "damaged", "c")
    results, deaths = read_until_done(names, tmp_path)
    expected = {name: f"chains of {name}" for name in "abc"}
    assert results == expected | {"segfault": "crashed", "hang": "timed_out", "damaged": "truncated"}
    assert deaths == 2, "each bad entry ends one worker, and its own process from then on"
    assert list(tmp_path.iterdir()) == []


def test_a_worker_killed_from_outside_rejects_nothing(tmp_path: Path) -> None:
    results, deaths = read_until_done(("a", "killed once", "b"), tmp_path)
    assert results == {name: f"chains of {name}" for name in ("a", "killed once", "b")}
    assert deaths == 1


def test_ray_begins_a_batch_again_and_loses_nothing_of_it(tmp_path: Path, ray_cluster: str) -> None:
    batches = []
    for number, names in enumerate([("a", "segfault", "b"), ("c", "hang", "d"), ("killed once", "e")]):
        folder = tmp_path / str(number)
        folder.mkdir()
        batches.append((names, str(folder)))
    results = {name: value for batch in run_tasks(read_batch, batches, 2) for name, value in batch.items()}
    kept = {name: f"chains of {name}" for name in ("a", "b", "c", "d", "killed once", "e")}
    assert results == kept | {"segfault": "crashed", "hang": "timed_out"}
    assert list(tmp_path.rglob(f"*{JOURNAL_SUFFIX}")) == []


@pytest.mark.parametrize(
    ("name", "reason", "detail"),
    [
        ("segfault", "crashed", "SIGSEGV"),
        ("abort", "crashed", "SIGABRT"),
        ("killed always", "crashed", "SIGKILL"),
        ("hang", "timed_out", "1 s of CPU time"),
        ("damaged", "truncated", "as read says"),
    ],
)
def test_a_process_of_its_own_tells_what_ended_it(name: str, reason: str, detail: str, tmp_path: Path) -> None:
    with pytest.raises(StructureError, match=detail) as caught:
        run_alone(SECONDS, read, name, str(tmp_path))
    assert caught.value.reason == reason


def test_waiting_is_limited_too() -> None:
    start = time.monotonic()
    with pytest.raises(StructureError) as caught:
        run_alone(0.1, time.sleep, 600)
    assert caught.value.reason == "timed_out"
    assert time.monotonic() - start < 300


def test_a_process_of_its_own_is_only_given_up_when_something_else_killed_it_each_time(tmp_path: Path) -> None:
    assert run_alone(SECONDS, read, "killed once", str(tmp_path)) == "chains of killed once"


def test_other_errors_pass_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run_alone(SECONDS, divmod, 1, 0)
    with Guard(tmp_path / "x", SECONDS) as guard, pytest.raises(ZeroDivisionError):
        guard.run("x", divmod, 1, 0)


def test_an_entry_at_which_worker_after_worker_ends_is_given_up(tmp_path: Path) -> None:
    journal = tmp_path / "x"
    journal.write_text('-\n"fine"\n"heavy"\n' * MAX_DEATHS + '-\n"fine"\n')
    with Guard(journal, SECONDS) as guard:
        assert guard.run("fine", str, 1) == "1"
        with pytest.raises(StructureError, match=f"{MAX_DEATHS} processes ended") as caught:
            guard.run("heavy", str, 1)
    assert caught.value.reason == "crashed"


def test_a_suspected_entry_is_read_elsewhere_and_others_here(tmp_path: Path) -> None:
    journal = tmp_path / "x"
    journal.write_text('-\n"one"\n"other\\nwith\\nline\\nfeeds"\n')
    with Guard(journal, SECONDS) as guard:
        assert guard.run("one", os.getpid) == os.getpid()
        assert guard.run("other\nwith\nline\nfeeds", os.getpid) != os.getpid()


@pytest.mark.parametrize("content", ["", "-\n", '-\n"cut', "-\n-\n-\n", "nonsense"])
def test_a_journal_without_a_whole_last_line_suspects_nothing(content: str, tmp_path: Path) -> None:
    journal = tmp_path / "x"
    journal.write_text(content)
    with Guard(journal, SECONDS) as guard:
        assert guard.run("cut", os.getpid) == os.getpid()
    assert not journal.exists()


def test_where_no_process_can_be_started_the_entry_is_read_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = tmp_path / "x"
    journal.write_text('-\n"one"\n')
    monkeypatch.setattr("sys.executable", "/bin/false")
    with Guard(journal, SECONDS) as guard:
        assert guard.run("one", os.getpid) == os.getpid()


def test_signal_handlers_of_others_are_put_back_and_timers_are_off(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGALRM, print)
    try:
        with Guard(tmp_path / "x", SECONDS) as guard:
            assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
            assert guard.run("x", signal.getitimer, signal.ITIMER_REAL)[0] > 0.5 * WALL_PER_CPU * SECONDS
        assert signal.getsignal(signal.SIGALRM) is print
    finally:
        signal.signal(signal.SIGALRM, before)
    with limited(SECONDS):
        assert signal.getitimer(signal.ITIMER_PROF)[0] > 0
    assert [signal.getitimer(timer)[0] for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL)] == [0, 0]
