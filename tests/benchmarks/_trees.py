"""Memory of a process and all its descendants while it runs."""

import subprocess
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
SECONDS_BETWEEN_LOOKS = 0.3


def peak_memory(command: list[str], timeout: float) -> float:
    """Largest sum of proportional set sizes (bytes) of a command's process tree; raises when the command fails."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    peak, deadline = 0.0, time.monotonic() + timeout
    try:
        while process.poll() is None:
            peak = max(peak, _tree_bytes(process.pid))
            if time.monotonic() > deadline:
                raise TimeoutError(f"{command} took more than {timeout:.0f} s")
            time.sleep(SECONDS_BETWEEN_LOOKS)
    finally:
        process.kill() if process.poll() is None else None
        _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}: {errors[-2000:]}")
    return peak


def _tree_bytes(pid: int) -> float:
    total = 0.0
    try:
        tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return total
    for process in tree:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total
