"""A stand-in for `eval.evaluation`: the same functions, quick, and obedient to what stands in files.

The checkpoint's run folder may hold `stand_in.json`: {"tasks": [...], "raise": {task: message}, "die": {task: times},
"hold": [steps]}. A held step waits until `<output>/go-<step>` exists. Every real measurement is one line in
`<run folder>/measured.txt`.
"""

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from configs.errors import UserError
from configs.evaluate import EvalConfig

TASKS = ("fold", "ec", "stability")
FORMAT_VERSION = "2.0"
"""Of results.json: written by hand, as the program's own modules take seconds to import."""


@dataclass(frozen=True)
class Job:
    checkpoint: str
    config: EvalConfig
    output: Path


def plan(job: Job) -> list[str]:
    _obey(job, "plan")
    return list(_orders(job).get("tasks", TASKS))


def embed(job: Job) -> int:
    _obey(job, "embed")
    _note(job, "embed")
    return 7


def run_task(job: Job, name: str) -> Any:
    path = job.output / "tasks" / f"{name}.json"
    if not path.is_file():
        _obey(job, name)
        _note(job, name)
        path.parent.mkdir(exist_ok=True)
        partial = path.with_suffix(".part")
        partial.write_text(json.dumps({"task": name, "score": _manifest(job)["step"] / 100}))
        os.replace(partial, path)
    return SimpleNamespace(facts=SimpleNamespace(version="3"))


def finish(job: Job, num_embedded: int = 0, seconds: float = 0.0, failed: dict[str, str] | None = None) -> None:
    _obey(job, "finish")
    manifest = _manifest(job)
    records = [json.loads(path.read_text()) for path in sorted((job.output / "tasks").glob("*.json"))]
    facts = {"version": "3", "frozen": "all", "head": "none", "method": "stand-in"}
    about = {"task_version": "3", "split": "test", "seeds": [0], "num_examples": 3, "num_clusters": 3, "seconds": 0.1}
    results = {
        "format_version": FORMAT_VERSION,
        "run": Path(job.checkpoint).parent.parent.name,
        "stage": "align",
        "trunk": "stand-in",
        "step": manifest["step"],
        "weights_sha256": manifest["weights_sha256"],
        "manifest_sha256": None,
        "protocol_sha256": "p" * 64,
        "fit_split": None,
        "num_fit_chains": 0,
        "num_test_chains": 0,
        "num_embedded": num_embedded,
        "seconds": seconds,
        "tasks": {record["task"]: facts for record in records},
        "results": [
            {"task": r["task"], "metric": "accuracy", "value": r["score"], "ci_low": None, "ci_high": None, **about}
            for r in records
        ],
        "skipped": [],
        "failed": [{"task": name, "reason": reason} for name, reason in (failed or {}).items()],
    }
    partial = job.output / "results.part"
    partial.write_text(json.dumps(results))
    os.replace(partial, job.output / "results.json")
    _note(job, "finish")


def _manifest(job: Job) -> dict[str, Any]:
    return json.loads((Path(job.checkpoint) / "manifest.json").read_text())


def _run(job: Job) -> Path:
    return Path(job.checkpoint).parent.parent


def _orders(job: Job) -> dict[str, Any]:
    path = _run(job) / "stand_in.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _obey(job: Job, step: str) -> None:
    orders = _orders(job)
    (job.output / f"pid-{step}").write_text(str(os.getpid()))
    if step in orders.get("hold", ()):
        deadline = time.monotonic() + 60
        while not (job.output / f"go-{step}").exists():
            assert time.monotonic() < deadline, "nobody let it go"
            time.sleep(0.01)
    if step in orders.get("raise", {}):
        raise UserError(orders["raise"][step])
    times = orders.get("die", {}).get(step, 0)
    deaths = job.output / f"deaths-{step}"
    before = len(deaths.read_text()) if deaths.is_file() else 0
    if before < times:
        deaths.write_text("x" * (before + 1))
        os.kill(os.getpid(), signal.SIGKILL)


def _note(job: Job, step: str) -> None:
    handle = os.open(_run(job) / "measured.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(handle, f"{Path(job.checkpoint).name} {step} {os.nice(0)} {sorted(os.sched_getaffinity(0))}\n".encode())
    os.close(handle)
