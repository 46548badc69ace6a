"""Evaluate the checkpoints of a run, or one model: tasks in this process or as Ray tasks, then the report."""

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from configs.errors import UserError
from configs.evaluate import EvalConfig
from eval.evaluation import Data, Evaluation, Job, load_shared
from eval.follow import follow_run
from eval.models.open import device_of
from eval.report import write_report
from eval.results import RESULTS_FILE, Results, read_results
from eval.tracking import log_results
from pretrain.checkpoints import CHECKPOINTS, CONFIG, is_checkpoint, list_checkpoints

log = logging.getLogger("eval")


@dataclass(frozen=True)
class Target:
    """What `eval run` was asked for."""

    run: Path | None
    """None: a model that is no checkpoint of ours."""
    checkpoint: str | None
    """One model; None: every complete checkpoint of the run."""
    output: Path
    """Folder of `step_*/results.json` (step 0 for a model from elsewhere) and the report."""


def target_of(spec: str | Path, output: Path | None) -> Target:
    """A checkpoint or run folder, or a model from elsewhere, and where its results go.

    Raises:
        UserError: nothing of the kind is there.
    """
    path = Path(spec)
    if is_checkpoint(path):
        run = path.parent.parent if path.parent.name == CHECKPOINTS else path.parent
        return Target(run, str(path), output or run / "eval")
    is_transformers = (path / "config.json").is_file() and not (path / CONFIG).is_file()
    if is_transformers or str(spec).startswith(("hf:", "callable:")):
        name = path.name if is_transformers else re.sub(r"[^\w.-]+", "_", str(spec).split(":", 1)[1])
        return Target(None, str(spec), output or Path("evaluations") / name)
    run = path.parent if path.name == CHECKPOINTS else path
    return Target(run, None, output or run / "eval")


def evaluate_target(target: Target, config: EvalConfig, follow: bool) -> list[Results]:
    """Evaluate one model, every complete checkpoint, or (with `follow`) each as it appears; write the report.

    Raises:
        UserError: nothing to evaluate, or `--follow` with a single model.
        RunFailed: the followed run ended badly (after its checkpoints were evaluated).
    """
    if follow and target.checkpoint is not None:
        raise UserError(f"--follow needs a run folder, got the checkpoint {target.checkpoint}; name the run's folder")
    if not follow and target.checkpoint is None and not list_checkpoints(target.run):
        raise UserError(f"run {target.run}: no complete checkpoint there; train the run first, or wait with --follow")
    device_of(config)
    data = load_shared(config)
    if data.shards is not None:
        log.info("%d held-out and %d fit chains", len(data.shards.test), len(data.shards.fit))
    if target.run is None:
        results, _ = evaluate_model(Job(target.checkpoint, config, target.output / "step_00000000"), data)
        write_report(target.output, target.output)
        return [results]
    found: dict[int, Results] = {}
    unlogged: list[Results] = []

    def evaluate_one(path: Path) -> None:
        job = Job(str(path), config, target.output / path.name)
        results, is_new = evaluate_model(job, data)
        found[results.step] = results
        # A run that is still training makes the checkpoint's logged model a moment later: then it is tried again below.
        if is_new and config.mlflow and not log_results(target.run, results):
            unlogged.append(results)

    try:
        if follow:
            follow_run(target.run, _then_report(evaluate_one, target), config.poll_seconds, config.stall_seconds)
        elif target.checkpoint is not None:
            evaluate_one(Path(target.checkpoint))
        else:
            _evaluate_all(target.run, evaluate_one)
    finally:
        for results in unlogged:
            log_results(target.run, results, needs_model=False)
    if not found:
        raise UserError(f"run {target.run}: no checkpoint could be evaluated; train the run first")
    write_report(target.run, target.output)
    return [found[step] for step in sorted(found)]


def evaluate_model(job: Job, data: Data) -> tuple[Results, bool]:
    """Results of one model, and whether any of them are new; records of the same weights and protocol are kept."""
    evaluation = Evaluation(job, data)
    missing = evaluation.missing()
    if not missing and (job.output / RESULTS_FILE).is_file():
        kept = _kept(job.output, evaluation)
        if kept is not None:
            log.info("step %d: results are there already", evaluation.step)
            return kept, False
    started = time.monotonic()
    job.output.mkdir(parents=True, exist_ok=True)
    if job.config.execution.ray and missing:
        from eval.ray_tasks import run_on_ray

        num_embedded, failed = run_on_ray(job, [task.name for task in missing])
    else:
        num_embedded, failed = _run_here(evaluation)
    evaluation.failed = failed
    results = evaluation.finish(num_embedded, time.monotonic() - started)
    log.info("step %d: evaluated in %.1f s", results.step, results.seconds)
    return results, True


def _run_here(evaluation: Evaluation) -> tuple[int, dict[str, str]]:
    """Embed, then each task; one that breaks does not take the others with it."""
    num_embedded = evaluation.embed()
    failed: dict[str, str] = {}
    for task in evaluation.missing():
        try:
            evaluation.run_task(task)
        except UserError as error:
            log.error("%s: %s", task.name, error)
            failed[task.name] = str(error)
        except Exception as error:
            log.exception("%s failed", task.name)
            failed[task.name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return num_embedded, failed


def _kept(output: Path, evaluation: Evaluation) -> Results | None:
    try:
        results = read_results(output)
    except UserError as error:
        log.warning("%s", error)
        return None
    names = {task.name for task in evaluation.tasks}
    return results if results.weights_sha256 == evaluation.weights_sha256 and set(results.tasks) == names else None


def _evaluate_all(run: Path, evaluate_one: Callable[[Path], None]) -> None:
    for path in list_checkpoints(run):
        try:
            evaluate_one(path)
        except UserError as error:
            log.warning("%s", error)


def _then_report(evaluate_one: Callable[[Path], None], target: Target) -> Callable[[Path], None]:
    def evaluate_and_report(path: Path) -> None:
        evaluate_one(path)
        write_report(target.run, target.output)

    return evaluate_and_report
