"""Evaluate checkpoints: tasks over shared features, results beside the run, nothing measured twice."""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.numpy import save_file

from configs.errors import UserError
from configs.evaluate import EvalConfig
from data_pipeline.reader import ShardReader
from eval.data import EvalData, load_data
from eval.features import Features
from eval.follow import follow_run
from eval.intervals import estimate
from eval.report import write_report
from eval.results import (
    CONTACT_EXAMPLE_FILE,
    EXAMPLES_FILE,
    REGRESSION_FILE,
    RESULTS_FILE,
    Result,
    Results,
    Skipped,
    TaskFacts,
    protocol_sha256,
    read_results,
    write_examples,
    write_results,
)
from eval.tasks.protocol import Context, Outcome, Task
from eval.tasks.registry import tasks_named
from eval.tracking import log_results
from pretrain.checkpoints import CHECKPOINTS, MANIFEST, Checkpoint, list_checkpoints, open_checkpoint
from pretrain.model.load import load_model
from pretrain.model.shape import TrunkShape, trunk_shape

log = logging.getLogger("eval")


@dataclass(frozen=True)
class Target:
    """What `eval run` was asked for."""

    run: Path
    checkpoint: Path | None
    """One checkpoint; None: every complete one of the run."""
    output: Path
    """Folder of `step_*/results.json` and the report."""


def target_of(path: Path, output: Path | None) -> Target:
    """A checkpoint folder or a run folder, and where its results go."""
    is_checkpoint = path.name.startswith("step_") or (path / MANIFEST).is_file()
    checkpoint = path if is_checkpoint else None
    run = path
    if is_checkpoint:
        run = path.parent.parent if path.parent.name == CHECKPOINTS else path.parent
    elif path.name == CHECKPOINTS:
        run = path.parent
    return Target(run, checkpoint, output or run / "eval")


def evaluate_target(target: Target, config: EvalConfig, follow: bool) -> list[Results]:
    """Evaluate one checkpoint, every complete one, or (with `follow`) each as it appears; write the report.

    Raises:
        UserError: nothing to evaluate, or `--follow` with a single checkpoint.
        RunFailed: the followed run ended badly (after its checkpoints were evaluated).
    """
    if follow and target.checkpoint is not None:
        raise UserError(f"--follow needs a run folder, got the checkpoint {target.checkpoint}; name {target.run}")
    if not follow and target.checkpoint is None and not list_checkpoints(target.run):
        raise UserError(f"run {target.run}: no complete checkpoint there; train the run first, or wait with --follow")
    found: dict[int, Results] = {}
    unlogged: list[Results] = []
    with ShardReader(config.data.shards) as reader:
        data = load_data(reader, config.data, config.seed)
    log.info("%d held-out and %d fit chains", len(data.test), len(data.fit))

    def evaluate_one(path: Path) -> None:
        checkpoint = open_checkpoint(path)
        results, is_new = evaluate_checkpoint(checkpoint, target, config, data)
        found[results.step] = results
        # A run that is still training makes the checkpoint's logged model a moment later: then it is tried again below.
        if is_new and config.mlflow and not log_results(target.run, results):
            unlogged.append(results)

    try:
        if follow:
            follow_run(target.run, _then_report(evaluate_one, target), config.poll_seconds, config.stall_seconds)
        elif target.checkpoint is not None:
            evaluate_one(target.checkpoint)
        else:
            _evaluate_all(target.run, evaluate_one)
    finally:
        for results in unlogged:
            log_results(target.run, results, needs_model=False)
    if not found:
        raise UserError(f"run {target.run}: no checkpoint could be evaluated; train the run first")
    write_report(target.run, target.output)
    return [found[step] for step in sorted(found)]


def evaluate_checkpoint(
    checkpoint: Checkpoint, target: Target, config: EvalConfig, data: EvalData
) -> tuple[Results, bool]:
    """Results of one checkpoint, and whether they are new; those there for the same weights and protocol are kept."""
    folder = target.output / f"step_{checkpoint.step:08d}"
    tasks = tasks_named(config.tasks)
    protocol = protocol_sha256(config, data.manifest_sha256)
    kept = _kept(folder, checkpoint.weights_sha256, protocol, tasks)
    if kept is not None:
        log.info("step %d: results are there already", checkpoint.step)
        return kept, False
    if checkpoint.config.trunk is None:
        raise UserError(
            f"checkpoint {checkpoint.path}: stage {checkpoint.config.stage!r} has no language model to evaluate; "
            "name a checkpoint of stage 'reference' or 'align'"
        )
    _check_held_out(checkpoint, config, data)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (RESULTS_FILE, EXAMPLES_FILE, REGRESSION_FILE, CONTACT_EXAMPLE_FILE):
        (folder / name).unlink(missing_ok=True)
    started = time.monotonic()
    shape = trunk_shape(checkpoint.config.trunk)
    features = _features(checkpoint, shape, config)
    outcomes, seconds = _run_tasks(tasks, Context(config, data, features), checkpoint.step)
    for name, outcome in outcomes.items():
        _write_artifacts(outcome, folder)
        assert outcome.measurements or outcome.skipped, name
    write_examples({name: outcome.measurements for name, outcome in outcomes.items()}, folder)
    results = Results(
        run=checkpoint.config.name,
        stage=checkpoint.config.stage,
        trunk=_describe(shape, checkpoint.config.trunk.model),
        step=checkpoint.step,
        weights_sha256=checkpoint.weights_sha256,
        manifest_sha256=data.manifest_sha256,
        training_manifest_sha256=checkpoint.state.get("data_sha256"),
        protocol_sha256=protocol,
        fit_split=config.data.fit_split,
        num_fit_chains=len(data.fit),
        num_test_chains=len(data.test),
        num_embedded=features.num_embedded,
        seconds=round(time.monotonic() - started, 3),
        tasks={t.name: TaskFacts(version=t.version, frozen=t.frozen, head=t.head, method=t.method) for t in tasks},
        results=tuple(r for t in tasks for r in _results_of(t, outcomes[t.name], seconds[t.name], config)),
        skipped=tuple(
            Skipped(task=t.name, task_version=t.version, reason=reason)
            for t in tasks
            if (reason := outcomes[t.name].skipped) is not None
        ),
    )
    write_results(results, folder)
    log.info("step %d: evaluated in %.1f s", checkpoint.step, results.seconds)
    return results, True


def device_of(config: EvalConfig) -> torch.device:
    """The configured device.

    Raises:
        UserError: `cuda` was asked for and there is none.
    """
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise UserError("device is 'cuda' but no CUDA device can be used; set device=cpu or device=auto")
    return torch.device("cuda" if available and config.device != "cpu" else "cpu")


def _check_held_out(checkpoint: Checkpoint, config: EvalConfig, data: EvalData) -> None:
    trained_on = (checkpoint.state.get("data_sha256"), checkpoint.config.data.split)
    if trained_on == (data.manifest_sha256, config.data.split):
        raise UserError(
            f"data.split {config.data.split!r} is what checkpoint {checkpoint.path} was trained on; "
            "name a split that is held out, e.g. data.split=test"
        )


def _features(checkpoint: Checkpoint, shape: TrunkShape, config: EvalConfig) -> Features:
    device = device_of(config)
    try:
        model = load_model(checkpoint).to(device).eval()
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"checkpoint {checkpoint.path}: cannot be read ({error}); was it removed meanwhile (checkpoint.keep)?"
        ) from None
    return Features(model, shape.alphabet, config.batch_tokens, device)


def _run_tasks(tasks: list[Task], context: Context, step: int) -> tuple[dict[str, Outcome], dict[str, float]]:
    outcomes, seconds = {}, {}
    for task in tasks:
        started = time.monotonic()
        outcomes[task.name] = task.run(context)
        seconds[task.name] = round(time.monotonic() - started, 3)
        skipped = outcomes[task.name].skipped
        log.info("step %d: %s %s", step, task.name, f"skipped: {skipped}" if skipped else f"{seconds[task.name]} s")
    return outcomes, seconds


def _results_of(task: Task, outcome: Outcome, seconds: float, config: EvalConfig) -> list[Result]:
    rows = []
    for measurement in outcome.measurements:
        found = estimate(measurement, config.bootstrap_samples, config.seed)
        rows.append(
            Result(
                task=task.name,
                task_version=task.version,
                split=config.data.split,
                metric=measurement.metric,
                value=found.value,
                ci_low=found.ci_low,
                ci_high=found.ci_high,
                seeds=(config.seed,),
                num_examples=found.num_examples,
                num_clusters=found.num_clusters,
                seconds=seconds,
            )
        )
    return rows


def _kept(folder: Path, weights: str, protocol: str, tasks: list[Task]) -> Results | None:
    if not (folder / RESULTS_FILE).is_file():
        return None
    try:
        results = read_results(folder)
    except UserError as error:
        log.warning("%s", error)
        return None
    versions = {name: facts.version for name, facts in results.tasks.items()}
    same = (results.weights_sha256, results.protocol_sha256) == (weights, protocol)
    return results if same and versions == {task.name: task.version for task in tasks} else None


def _write_artifacts(outcome: Outcome, folder: Path) -> None:
    for name, arrays in outcome.artifacts.items():
        temporary = folder / f"{name}.part"
        note = outcome.notes.get(name)
        save_file(arrays, temporary, metadata={"note": note} if note is not None else None)
        os.replace(temporary, folder / name)


def _describe(shape: TrunkShape, model: str) -> str:
    size = f"{shape.layers}x{shape.width}x{shape.heads}"
    return f"{shape.family} {size}" if model == "custom" else f"{model} ({size})"


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
