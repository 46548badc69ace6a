"""What runs a step: a child process, or a Ray task in a process of its own; either can be ended at any moment."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from configs.errors import UserError
from configs.evaluate import ExecutionConfig
from eval.service.work import THREAD_VARIABLES, Step, carry_out

ROOT = Path(__file__).parents[2]
LOOK_SECONDS = 0.02
"""How often a running step is looked after; doubled up to the next while nothing happens."""
LONGEST_LOOK_SECONDS = 0.5
log = logging.getLogger("eval.service")


@dataclass(frozen=True)
class Ended:
    """How a step ended."""

    how: Literal["done", "error", "died", "timeout", "stopped"]
    seconds: float
    reason: str = ""
    answer: dict[str, Any] = field(default_factory=dict)


class Executor(Protocol):
    """Runs one step at a time per calling thread."""

    def run(self, step: Step, timeout_seconds: float, stop: threading.Event) -> Ended:
        """Run a step until it ends, the time is up, or `stop` is set; nothing of it runs on when this returns."""
        ...

    def close(self) -> None:
        """Free what was started."""
        ...


def threads_of(execution: ExecutionConfig) -> int:
    """Compute threads of a step."""
    return execution.threads or max(1, int(execution.cpus_per_task))


class ProcessExecutor:
    """Each step in a child process with a group of its own."""

    def run(self, step: Step, timeout_seconds: float, stop: threading.Event) -> Ended:
        """See `Executor.run`."""
        logs = Path(step.output) / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        report = logs / f"{step.kind}-{step.name}.json"
        report.unlink(missing_ok=True)
        began = time.monotonic()
        with (logs / f"{step.kind}-{step.name}.txt").open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "eval.service.child", str(report.absolute())],
                cwd=os.getcwd(),
                env=_environment(step.threads),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        try:
            _tell(process, step)
            over = _look_after(lambda: process.poll() is not None, timeout_seconds, stop)
        finally:
            _end_group(process)
        seconds = time.monotonic() - began
        if over is not None:
            return _cut_short(over, seconds, timeout_seconds)
        try:
            answer = json.loads(report.read_text())
        except (FileNotFoundError, ValueError):
            return Ended("died", seconds, _how_it_died(process.returncode))
        report.unlink()
        return _from_answer(answer, seconds)

    def close(self) -> None:
        """See `Executor.close`."""


class RayExecutor:
    """Each step as a Ray task; a cluster is joined, or a local one started, with the first."""

    def __init__(self, execution: ExecutionConfig) -> None:
        self._execution = execution
        self._own = False
        self._lock = threading.Lock()

    def run(self, step: Step, timeout_seconds: float, stop: threading.Event) -> Ended:
        """See `Executor.run`; the time limit counts from when a worker began."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        self._connect()
        Path(step.output).mkdir(parents=True, exist_ok=True)
        mark = Path(step.output).absolute() / f".{step.kind}-{step.name}.began"
        mark.unlink(missing_ok=True)
        threads = str(step.threads)
        environment = dict.fromkeys(THREAD_VARIABLES, threads) | {"PYTHONPATH": _python_path()}
        # A process per step: what one leaves in memory, or how far it stepped back, is not the next one's.
        remote = ray.remote(max_calls=1)(_on_worker).options(
            num_cpus=self._execution.cpus_per_task,
            num_gpus=self._execution.gpus_per_task,
            max_retries=0,
            runtime_env={"env_vars": environment},
            name=f"eval {step.name}",
        )
        tree = {**step.as_json(), "output": str(Path(step.output).absolute())}
        asked = time.monotonic()
        reference = remote.remote(tree, str(mark), os.getcwd())

        def is_over() -> bool:
            return bool(ray.wait([reference], timeout=0)[0])

        over = _look_after(is_over, timeout_seconds, stop, mark.exists)
        try:
            if over is not None:
                ray.cancel(reference, force=True)
                _await_end(reference, mark)
                return _cut_short(over, time.monotonic() - asked, timeout_seconds)
            answer, seconds = ray.get(reference)
            return _from_answer(answer, seconds)
        except RayTaskError as error:
            return Ended("error", time.monotonic() - asked, f"{type(error.cause).__name__}: {error.cause}"[:400])
        except RayError as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else ""
            return Ended("died", time.monotonic() - asked, f"its worker ended ({type(error).__name__}: {first[:200]})")
        finally:
            mark.unlink(missing_ok=True)

    def close(self) -> None:
        """See `Executor.close`."""
        if self._own:
            import ray

            ray.shutdown()

    def _connect(self) -> None:
        import ray

        with self._lock:
            if ray.is_initialized():
                return
            address = self._execution.address or os.environ.get("RAY_ADDRESS") or "local"
            try:
                ray.init(
                    address=address,
                    include_dashboard=False if address == "local" else None,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                )
            except (ConnectionError, ValueError) as error:
                first = " ".join(str(error).split())[:200]
                raise UserError(
                    f"execution.address {address}: no Ray cluster ({first}); start one, or unset it"
                ) from None
            self._own = True


def _on_worker(tree: dict[str, Any], mark: str, place: str) -> tuple[dict[str, Any], float]:
    """The step's answer and its seconds; the file `mark` holds this process's id while it runs.

    Relative paths of the configuration mean the service's working directory, which every node has.
    """
    os.chdir(place)
    Path(mark).write_text(str(os.getpid()))
    began = time.monotonic()
    return carry_out(tree), time.monotonic() - began


def _await_end(reference: Any, mark: Path) -> None:
    """Wait until a cancelled task's worker is gone, so that no second one writes beside it."""
    import ray
    from ray.exceptions import RayError

    try:
        ray.get(reference, timeout=30)
    except RayError as error:
        log.debug("cancelled: %s", error)
    deadline = time.monotonic() + 10
    while mark.exists() and _is_alive_here(mark) and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)


def _is_alive_here(mark: Path) -> bool:
    try:
        state = Path(f"/proc/{int(mark.read_text())}/stat").read_text()
    except (OSError, ValueError):
        return False
    return state.rpartition(")")[2].split()[0] != "Z"


def _look_after(
    is_over: Callable[[], bool],
    timeout_seconds: float,
    stop: threading.Event,
    has_begun: Callable[[], bool] | None = None,
) -> Literal["timeout", "stopped"] | None:
    """Wait for an end; None where it came by itself."""
    began = time.monotonic() if has_begun is None else None
    pause = LOOK_SECONDS
    while not is_over():
        if stop.wait(pause):
            return "stopped"
        if began is None and has_begun is not None and has_begun():
            began = time.monotonic()
        if began is not None and time.monotonic() - began > timeout_seconds:
            return "timeout"
        pause = min(2 * pause, LONGEST_LOOK_SECONDS)
    return None


def _cut_short(how: Literal["timeout", "stopped"], seconds: float, limit: float) -> Ended:
    return Ended(how, seconds, f"took longer than {limit:g} s (task_timeouts)" if how == "timeout" else "")


def _from_answer(answer: dict[str, Any], seconds: float) -> Ended:
    if answer["ok"]:
        return Ended("done", seconds, answer=answer)
    return Ended("error", seconds, answer["reason"])


def _tell(process: subprocess.Popen, step: Step) -> None:
    """Hand the step over; stdin stays open as long as this process lives and the step is wanted."""
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(step.as_json()).encode() + b"\n")
        process.stdin.flush()
    except BrokenPipeError:
        log.debug("the child ended before it was told its step")


def _end_group(process: subprocess.Popen) -> None:
    """End the child, and what it started and left behind."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        log.debug("group %d is gone", process.pid)
    process.wait()
    if process.stdin is not None:
        try:
            process.stdin.close()
        except BrokenPipeError:
            log.debug("the child had closed its stdin")


def _how_it_died(code: int) -> str:
    if code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    return f"its process ended with exit code {code} and no report"


def _environment(threads: int) -> dict[str, str]:
    return {**os.environ, **{name: str(threads) for name in THREAD_VARIABLES}, "PYTHONPATH": _python_path()}


def _python_path() -> str:
    """The repository before all, wherever the service was started."""
    return os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
