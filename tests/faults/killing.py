"""Killing a program at a chosen moment, and telling whether what it left was finished to the same bytes."""

import hashlib
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

WAIT_SECONDS = 180
SECONDS_BETWEEN_LOOKS = 0.001


def kill_when(process: subprocess.Popen, reached: Callable[[], bool]) -> bool:
    """SIGKILL a process once `reached`; false when it ended before."""
    deadline = time.monotonic() + WAIT_SECONDS
    while process.poll() is None and not reached():
        assert time.monotonic() < deadline, "it neither ended nor came to where it should be killed"
        time.sleep(SECONDS_BETWEEN_LOOKS)
    ended = process.poll() is not None
    if not ended:
        process.send_signal(signal.SIGKILL)
    process.communicate()
    return not ended


def sha256s(folder: Path) -> dict[str, str]:
    """Of every file below a folder, by name; hidden files and folders included."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
