"""Stages as child processes: started with a log file, watched, and ended by process id."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07")
_NOISE = re.compile(r"^\s*(\(?(pid|raylet|gcs_server|autoscaler)\b|warnings\.warn|\S*Warning:|[\^~|+=\-─━┃│╭╰]+\s*$)")
_TAIL_BYTES = 16384
GRACE_SECONDS = 15.0
"""Between asking a stage to end and killing it."""


@dataclass(frozen=True)
class Running:
    """A stage that was started."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    began: float
    """time.monotonic() at its start."""

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began


def start_stage(name: str, command: Sequence[str], log: Path, keep_open: int) -> Running:
    """Start `python -m <command>` with its output in `log`.

    The child leads its own process group, so a Ctrl-C at the terminal reaches the campaign alone, which then ends the
    stages in order; it hears interrupts even where the campaign does not. It inherits the file descriptor `keep_open`.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output, _hearing_interrupts():
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(keep_open,),
            env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "100"},
        )
    return Running(name, process, log, time.monotonic())


def end_stages(running: Sequence[Running]) -> None:
    """Interrupt stages and their children, wait, and kill what is left after GRACE_SECONDS."""
    for signal_number, patience in ((signal.SIGINT, GRACE_SECONDS), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        alive = [stage for stage in running if stage.process.poll() is None]
        for stage in alive:
            _signal_group(stage, signal_number)
        give_up = time.monotonic() + patience
        while time.monotonic() < give_up and any(stage.process.poll() is None for stage in alive):
            time.sleep(0.1)
    for stage in running:
        # Helpers that outlived their stage are in the group that it led.
        _signal_group(stage, signal.SIGKILL)


def last_line(log: Path) -> str:
    """The last line of a log that tells a person something; empty when there is none."""
    for line in reversed(log_tail(log)):
        if not _NOISE.match(line):
            return line
    return ""


def log_tail(log: Path, num_lines: int | None = None) -> list[str]:
    """Last non-empty lines, without terminal escapes and without what a progress bar overwrote."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    lines = [_ESCAPES.sub("", line).rstrip("\r").rpartition("\r")[2].rstrip() for line in text.split("\n")]
    lines = [line for line in lines if line.strip()]
    return lines if num_lines is None else lines[-num_lines:]


@contextlib.contextmanager
def _hearing_interrupts() -> Iterator[None]:
    """Scripts start what stands before `&` deaf to SIGINT, and children inherit that; a handler they do not."""
    deaf = signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread()
    if deaf:
        signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        if deaf:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def _signal_group(stage: Running, signal_number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(stage.process.pid, signal_number)
