"""At most so many requests a second to one host, over all processes that share a folder."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock

_STALE_SECONDS = 3600.0
"""A reservation further ahead than this is not a queue but a clock that was set back."""


@dataclass(frozen=True)
class Pace:
    """A queue of moments, kept in one small file per host: each request takes the next free one and waits for it."""

    folder: Path
    requests_per_second: float | None
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep

    def wait(self, url: str) -> None:
        """Return when a request to the URL's host may start."""
        if self.requests_per_second is None:
            return
        host = re.sub(r"[^A-Za-z0-9.-]", "_", urlsplit(url).netloc) or "local"
        self.folder.mkdir(parents=True, exist_ok=True)
        place = self.folder / host
        with FileLock(f"{place}.lock"):
            now = self.clock()
            moment = max(now, _read(place))
            if moment > now + _STALE_SECONDS:
                moment = now
            place.write_text(repr(moment + 1 / self.requests_per_second))
        if moment > now:
            self.sleep(moment - now)


def _read(place: Path) -> float:
    try:
        return float(place.read_text())
    except (OSError, ValueError):
        return 0.0
