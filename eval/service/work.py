"""One step of an evaluation, carried out in whatever process it is given to."""

import contextlib
import importlib
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from configs.errors import UserError
from configs.evaluate import EvalConfig
from configs.loading import validate

EVALUATION = "eval.evaluation"
"""Module with `Job`, `plan`, `embed`, `run_task` and `finish`."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
log = logging.getLogger("eval.service")


@dataclass(frozen=True)
class Step:
    """What a process must know to do one step; plain values, so that it travels as JSON."""

    kind: str
    name: str
    checkpoint: str
    output: str
    config: str
    """EvalConfig as YAML."""
    num_embedded: int = 0
    seconds: float = 0.0
    failed: tuple[tuple[str, str], ...] = ()
    evaluation: str = EVALUATION
    niceness: int = 0
    cpus: tuple[int, ...] = ()
    threads: int = 1

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def step_from_json(tree: dict[str, Any]) -> Step:
    """The step that `as_json` gave."""
    return Step(**{**tree, "cpus": tuple(tree["cpus"]), "failed": tuple(map(tuple, tree["failed"]))})


def step_back(niceness: int, cpus: tuple[int, ...]) -> None:
    """Give way to other work: every thread of this process gets the nice level and the CPUs, as do those to come."""
    for thread in map(int, os.listdir("/proc/self/task")):
        # A thread may end meanwhile.
        with contextlib.suppress(ProcessLookupError):
            if cpus:
                os.sched_setaffinity(thread, cpus)
            if os.getpriority(os.PRIO_PROCESS, thread) < niceness:
                os.setpriority(os.PRIO_PROCESS, thread, niceness)


def carry_out(tree: dict[str, Any]) -> dict[str, Any]:
    """Do one step; `{"ok": True, ...}`, or `{"ok": False, "reason": one line}` for an error of the step itself."""
    step = step_from_json(tree)
    step_back(step.niceness, step.cpus)
    try:
        return {"ok": True, **_do(step)}
    except UserError as error:
        return {"ok": False, "reason": _line(str(error))}
    except Exception as error:
        log.exception("%s of %s", step.name, step.checkpoint)
        return {"ok": False, "reason": _line(f"{type(error).__name__}: {error}")}


def _do(step: Step) -> dict[str, Any]:
    evaluation = importlib.import_module(step.evaluation)
    config = validate(EvalConfig, yaml.safe_load(step.config), "evaluation")
    config = config.model_copy(
        update={"execution": config.execution.model_copy(update={"threads": step.threads, "ray": False})}
    )
    output = Path(step.output)
    output.mkdir(parents=True, exist_ok=True)
    job = evaluation.Job(step.checkpoint, config, output)
    match step.kind:
        case "plan":
            _verify(Path(step.checkpoint))
            return {"names": list(evaluation.plan(job))}
        case "embed":
            return {"num_embedded": int(evaluation.embed(job))}
        case "task":
            return {"version": evaluation.run_task(job, step.name).facts.version}
        case "finish":
            evaluation.finish(job, step.num_embedded, step.seconds, dict(step.failed))
            return {}
        case _:
            raise AssertionError(step.kind)


def _verify(checkpoint: Path) -> None:
    from pretrain.checkpoints import open_checkpoint

    open_checkpoint(checkpoint, verify=True)


def _line(text: str) -> str:
    return " ".join(text.split())[:400]
