"""What a running campaign shows: one line per stage, rewritten on a terminal, sparse elsewhere."""

import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from cluster.stages import Running, last_line, log_tail

QUIET_SECONDS = 20.0
"""Without a terminal: between two lines about the same stage."""
FAILURE_LINES = 25
REFRESH_SECONDS = 0.5
MIN_WIDTH = 100


class Progress:
    """Prints lines about stages; a context manager, because a terminal's live lines must be closed."""

    def __init__(self, names: Sequence[str]) -> None:
        self._console = Console()
        self._width = max(map(len, names))
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._shown: dict[str, tuple[float, str]] = {}
        self._refreshed = 0.0

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def skipped(self, name: str) -> None:
        self._print(f"{name:{self._width}}  done before, unchanged")

    def started(self, stage: Running) -> None:
        self._shown[stage.name] = (time.monotonic(), "")
        if not self._console.is_terminal:
            self._print(f"{stage.name:{self._width}}  started, log {stage.log}")

    def update(self, running: Sequence[Running]) -> None:
        """Refresh the lines of running stages."""
        now = time.monotonic()
        if now - self._refreshed < REFRESH_SECONDS:
            return
        self._refreshed = now
        if self._console.is_terminal:
            self._live.update(Group(*(self._line(stage, last_line(stage.log)) for stage in running)), refresh=True)
            return
        for stage in running:
            since, before = self._shown[stage.name]
            if now - since >= QUIET_SECONDS and (line := last_line(stage.log)) != before:
                self._shown[stage.name] = (now, line)
                self._console.print(self._line(stage, line), soft_wrap=True)

    def ended(self, stage: Running) -> None:
        self._print(f"{stage.name:{self._width}}  done in {stage.seconds:.0f} s")

    def failed(self, stage: Running) -> None:
        """The end of the log and where the rest is."""
        self._print(f"{stage.name:{self._width}}  FAILED with exit code {stage.process.returncode}, last lines:")
        for line in log_tail(stage.log, FAILURE_LINES):
            self._print(f"  | {line}")
        self._print(f"whole log: {stage.log}")

    def _line(self, stage: Running, text: str) -> Text:
        line = Text(f"{stage.name:{self._width}}  {stage.seconds:5.0f} s  {text.strip()}")
        line.truncate(max(self._console.width, MIN_WIDTH if not self._console.is_terminal else 0), overflow="ellipsis")
        return line

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
