"""What people see while a run trains: a bar on a terminal, else one line every ten seconds; read from metrics.jsonl."""

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pretrain.run_folder import LOG, METRICS

LINE_SECONDS = 10.0
_POLL_SECONDS = 0.5
_SHOWN = {"loss": "loss", "loss_mlm": "mlm", "loss_structure": "3di", "loss_contrast": "contrast"}


class ProgressDisplay:
    """A thread that follows a run's metrics.jsonl and writes to stderr."""

    def __init__(self, folder: Path, total_steps: int) -> None:
        self._path = folder / METRICS
        self._total = total_steps
        self._log = NewLines(folder / LOG)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Show the last row and end."""
        self._closing.set()
        self._thread.join(timeout=5)

    def _follow(self) -> None:
        if sys.stderr.isatty():
            self._draw_bar()
        else:
            self._print_lines()

    def _draw_bar(self) -> None:
        columns = (
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("train", total=self._total, figures="starting")
            while True:
                closing = self._closing.is_set()
                for line in self._log.read():
                    bar.console.print(line, highlight=False, markup=False)
                if row := last_row(self._path):
                    bar.update(task, completed=row["step"], figures=figures(row))
                if closing:
                    return
                self._closing.wait(_POLL_SECONDS)

    def _print_lines(self) -> None:
        shown, first, begun, printed = 0, None, time.monotonic(), 0.0
        while True:
            closing = self._closing.wait(_POLL_SECONDS)
            for line in self._log.read():
                print(line, file=sys.stderr, flush=True)
            row = last_row(self._path)
            due = closing or not shown or time.monotonic() - printed >= LINE_SECONDS
            if row and row["step"] > shown and due:
                printed = time.monotonic()
                if first is None:
                    # Speed counts from the first row seen: start-up and earlier sessions are not training time.
                    first, begun = row["step"], time.monotonic()
                shown = row["step"]
                made, spent = shown - first, time.monotonic() - begun
                left = (self._total - shown) * (spent / made if made else row["seconds"])
                print(f"step {shown}/{self._total}  {figures(row)}  {clock(left)} left", file=sys.stderr, flush=True)
            if closing:
                return


class NewLines:
    """The lines that a growing text file got since they were last read; what it holds at first is old."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0

    def read(self) -> list[str]:
        """New whole lines."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        return whole.decode(errors="replace").splitlines()


def figures(row: dict[str, Any]) -> str:
    """The losses and speed of one row, in a few words."""
    losses = [f"{name} {row[key]:.3f}" for key, name in _SHOWN.items() if key in row]
    return "  ".join([*losses, f"{row['tokens_per_second']:,.0f} tokens/s"])


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, e.g. 1:02:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def last_row(path: Path) -> dict[str, Any] | None:
    """The last whole row of a metrics.jsonl, read from its end."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 8192))
            lines = file.read().split(b"\n")
    except OSError:
        return None
    for line in reversed(lines[:-1]):
        try:
            return json.loads(line)
        except ValueError:
            continue
    return None
