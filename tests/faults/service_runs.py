"""The evaluation service as a process that tests may kill: forked from one that has imported everything.

Its evaluation is the stand-in of the unit tests; its queue, children, watcher and HTTP server are the real ones.
"""

import json
import multiprocessing
import os
import signal
import sqlite3
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx

from configs.loading import dump_config, load_config
from configs.service import ServeConfig
from tests.unit.eval.service.makers import STAND_IN, serve_config, wait_until


class Service:
    """One service over one folder, started and ended as often as a test likes."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder = folder
        self.config = serve_config(folder, **changes)
        self.evaluation = STAND_IN
        self._process: BaseProcess | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        assert self._process.pid is not None
        return self._process.pid

    def start(self) -> "Service":
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.faults.preloaded_service"])
        path = self.folder / "serve.yaml"
        path.write_text(dump_config(self.config))
        (self.config.folder / "service.json").unlink(missing_ok=True)
        self._process = context.Process(target=_work, args=(str(path), str(self.folder / "log.txt"), self.evaluation))
        self._process.start()
        wait_until(lambda: (self.config.folder / "service.json").exists() or not self.is_alive(), "the service's start")
        assert self.is_alive(), self.log()
        return self

    def is_alive(self) -> bool:
        return self._process is not None and self._process.is_alive()

    def end(self, number: int = signal.SIGKILL) -> int | None:
        """Send a signal and wait for the end; returns the exit code."""
        os.kill(self.pid, number)
        self._process.join(60)
        assert not self.is_alive(), self.log()
        return self._process.exitcode

    def log(self) -> str:
        path = self.folder / "log.txt"
        return path.read_text() if path.exists() else ""

    def client(self) -> httpx.Client:
        url = json.loads((self.config.folder / "service.json").read_text())["url"]
        token = (self.config.folder / "token").read_text().strip()
        return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=30)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What the queue's file says, whether the service lives or not."""
        with sqlite3.connect(f"file:{self.config.folder / 'queue.sqlite'}?mode=ro", uri=True) as database:
            return database.execute(query).fetchall()

    def states(self) -> Counter[str]:
        """Evaluations by state."""
        return Counter(state for (state,) in self.rows("SELECT state FROM evaluations"))

    def measured(self) -> Counter[str]:
        """How often each `checkpoint step` was really measured."""
        files = sorted((self.folder / "runs").rglob("measured.txt"))
        lines = [line for file in files for line in file.read_text().splitlines()]
        return Counter(" ".join(line.split()[:2]) for line in lines)

    def recorded(self) -> Counter[tuple[str, str, str]]:
        """Results by (weights, task, version)."""
        query = "SELECT weights_sha256, name, version FROM tasks JOIN evaluations ON evaluations.id = evaluation "
        return Counter(self.rows(query + "WHERE kind = 'task' AND tasks.state = 'done'"))

    def pids(self) -> list[int]:
        """Of the processes that carried steps out."""
        files = (self.config.folder / "results").glob("*/pid-*")
        return [int(text) for file in files if (text := file.read_text())]


def is_gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_for_end_of(pids: list[int], seconds: float = 20.0) -> None:
    """Fails where one of the processes lives on."""
    deadline = time.monotonic() + seconds
    while left := [pid for pid in pids if not is_gone(pid)]:
        assert time.monotonic() < deadline, f"processes {left} outlived the service"
        time.sleep(0.02)


def _work(path: str, log: str, evaluation: str) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    from configs.program import run_program
    from eval.service.server import serve

    def program() -> None:
        raise SystemExit(serve(load_config(ServeConfig, path), evaluation))

    run_program(program)
