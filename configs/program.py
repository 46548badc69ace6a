"""What every program shares at its edge: logging for people and machines, and exit codes."""

import json
import logging
import os
import sys
import time
from collections.abc import Callable

from configs.errors import UserError

EXIT_USER_ERROR = 2


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts = {"time": round(record.created, 3), "level": record.levelname.lower(), "logger": record.name}
        return json.dumps({**facts, "message": record.getMessage()})


class _People(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        return f"{clock} {record.name}: {level}{record.getMessage()}"


def set_up_logging() -> None:
    """Log to stderr: plain lines for people, or JSON lines when the environment holds `SAPLM_LOG=json`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if os.environ.get("SAPLM_LOG") == "json" else _People())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for chatty in ("httpx", "urllib3", "alembic", "matplotlib", "mlflow", "filelock"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def run_program(app: Callable[[], object]) -> None:
    """Run a command-line app; a `UserError` becomes one line on stderr and exit code 2, without a traceback."""
    set_up_logging()
    try:
        app()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(EXIT_USER_ERROR) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
