"""A process that does one step: `python -m eval.service.child REPORT`, the step as one line of JSON on stdin.

The rest of stdin is a life line: the service never writes to it, and when it ends, however that came about, so does
this process with its whole group.
"""

import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path

from eval.service.work import carry_out


def main() -> None:
    """Read the step, do it, and write what came of it to REPORT by rename."""
    report = Path(sys.argv[1])
    step = json.loads(_first_line())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    answer = carry_out(step)
    partial = report.with_suffix(".part")
    partial.write_text(json.dumps(answer))
    os.replace(partial, report)


def _first_line() -> bytes:
    """Up to the first line feed, and not a byte beyond."""
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(0, 65536)
        if not part:
            sys.exit("stdin ended before the step was told")
        line += part
    return line


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main()
