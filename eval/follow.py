"""Follow a run: hand over each complete checkpoint once, until the run says how it ended."""

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

from configs.errors import UserError
from pretrain.checkpoints import list_checkpoints

STATUS_FILE = "status.json"
METRICS_FILE = "metrics.jsonl"
UNFINISHED = ("failed", "stopped")
"""States in which a run has ended before its last step."""
STALE_END_SECONDS = 60.0
"""Such a state recorded before following began counts only after this: a continued run replaces it by `running`."""
log = logging.getLogger("eval")


class RunFailed(Exception):
    """The followed run ended without finishing; its message is one line for people."""


def read_status(run: Path) -> dict[str, object]:
    """Content of status.json; empty where there is none yet."""
    try:
        status = json.loads((run / STATUS_FILE).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        log.warning("%s is not JSON (%s)", run / STATUS_FILE, error)
        return {}
    return status if isinstance(status, dict) else {}


def follow_run(run: Path, evaluate: Callable[[Path], None], poll_seconds: float, stall_seconds: float) -> None:
    """Call `evaluate` for every complete checkpoint in step order; return when the run has finished.

    A checkpoint that `evaluate` refuses with a UserError is named in a warning and left out.

    Raises:
        RunFailed: status.json says `failed` or `stopped`, or nothing changed for `stall_seconds`.
    """
    started = time.time()
    seen: set[str] = set()
    last_sign, last_change = _signs_of_life(run), time.monotonic()
    while True:
        # The status is read before the list: a run that says it finished has written its last checkpoint.
        is_current = _is_current(run, started)
        status = read_status(run)
        new = [path for path in list_checkpoints(run) if path.name not in seen]
        for path in new:
            seen.add(path.name)
            try:
                evaluate(path)
            except UserError as error:
                log.warning("%s", error)
        state = status.get("state")
        if state == "finished":
            return
        if state in UNFINISHED and is_current:
            detail = f": {status['detail']}" if status.get("detail") else ""
            raise RunFailed(f"run {run} {state} at step {status.get('step')} of {status.get('total_steps')}{detail}")
        signs = _signs_of_life(run)
        if signs != last_sign or new:
            last_sign, last_change = signs, time.monotonic()
        elif time.monotonic() - last_change > stall_seconds:
            raise RunFailed(f"run {run}: no sign of life for {stall_seconds:.0f} s (state {state}); stopped following")
        time.sleep(poll_seconds)


def _is_current(run: Path, started: float) -> bool:
    """Whether the end on record is that of the attempt that is followed."""
    try:
        written = (run / STATUS_FILE).stat().st_mtime
    except FileNotFoundError:
        return False
    return written >= started or time.time() - started > STALE_END_SECONDS


def _signs_of_life(run: Path) -> tuple[float, ...]:
    paths = (run / STATUS_FILE, run / METRICS_FILE)
    return tuple(path.stat().st_mtime if path.exists() else 0.0 for path in paths)
