"""A service's board without a service: three runs, two models from elsewhere, a queue and promotions, as plain values.

Values come from scores of single examples, so that intervals and paired comparisons of the pages rest on something.
"""

import functools
import math
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from configs.errors import UserError
from eval.comparison import Comparison
from eval.intervals import holm
from eval.results import Failed, Result, Results, Skipped, read_results, write_results
from eval.service.board import EvaluationRow, PromotionRow, TaskRow
from eval.tasks.protocol import TaskFacts

NOW = 1_790_000_000.0
STEPS = (0, 2000, 4000, 6000, 8000, 10000)
RUNS = {"esm2-8m-align": 1.0, "esm2-8m-no-selection": 0.72, "esm2-8m-mlm-control": 0.12}
"""How much of a metric's possible gain a run has in the end."""
PEERS = {"example/peer-small": 0.0, "example/peer-35M": 0.95}
METRICS: dict[tuple[str, str], tuple[float, float, float, int]] = {
    ("pseudo_perplexity", "pseudo_perplexity"): (11.9, -0.8, 1.5, 400),
    ("threedi", "accuracy"): (0.29, 0.17, 0.08, 400),
    ("secondary_structure", "q3"): (0.69, 0.045, 0.1, 400),
    ("contact", "P@L_medium"): (0.21, 0.05, 0.12, 400),
    ("contact", "P@L_long"): (0.13, 0.075, 0.12, 400),
    ("contact", "P@L/5_long"): (0.24, 0.12, 0.2, 400),
    ("fold", "accuracy"): (0.33, 0.06, 0.4, 718),
    ("superfamily", "accuracy"): (0.52, 0.05, 0.4, 1254),
    ("family", "accuracy"): (0.91, 0.012, 0.25, 1272),
    ("ec", "fmax"): (0.71, 0.025, 0.3, 1919),
    ("ec", "aupr"): (0.73, 0.03, 0.3, 1919),
    ("go_mf", "fmax"): (0.54, 0.02, 0.25, 1700),
    ("localisation_10", "accuracy"): (0.62, 0.015, 0.4, 1500),
    ("ppi_human", "accuracy"): (0.72, 0.01, 0.42, 180),
    ("metal_ion", "accuracy"): (0.66, 0.02, 0.45, 665),
    ("disorder", "auroc"): (0.81, 0.008, 0.12, 117),
    ("thermostability", "spearman"): (0.61, 0.02, 0.5, 1336),
    ("gb1", "spearman"): (0.58, 0.03, 0.5, 1745),
    ("mutation_effect", "spearman"): (0.21, 0.03, 0.16, 217),
}
"""Value at the start, possible gain, spread of examples, number of examples."""
_PER_CLUSTER = 3


@dataclass
class MadeBoard:
    """Tests add to its lists."""

    folder: Path
    rows: list[EvaluationRow] = field(default_factory=list)
    steps: dict[int, list[TaskRow]] = field(default_factory=dict)
    decisions: list[PromotionRow] = field(default_factory=list)
    found: dict[int, Results] = field(default_factory=dict)

    def evaluations(self) -> list[EvaluationRow]:
        return sorted(self.rows, key=lambda row: -row.created)

    def queue(self) -> list[TaskRow]:
        return [step for steps in self.steps.values() for step in steps if step.state in ("running", "queued")]

    def tasks(self, evaluation: int) -> list[TaskRow]:
        return self.steps.get(evaluation, [])

    def results(self) -> list[tuple[EvaluationRow, Results]]:
        done = [(row, self.found[row.id]) for row in self.rows if row.state == "done"]
        return sorted(done, key=lambda item: (item[0].run, item[0].step))

    def folder_of(self, evaluation: int) -> Path:
        return self.folder / f"{evaluation:04d}"

    def promotions(self) -> list[PromotionRow]:
        return self.decisions

    def add(self, results: Results, **changes: object) -> EvaluationRow:
        """A finished evaluation with these results."""
        id = max((row.id for row in self.rows), default=0) + 1
        row = make_row(id, results.run, results.step, **changes)
        self.folder_of(id).mkdir(parents=True, exist_ok=True)
        write_results(results, self.folder_of(id))
        self.found[id] = read_results(self.folder_of(id))
        self.rows.append(row)
        return row


def make_row(id: int, run: str, step: int, **changes: object) -> EvaluationRow:
    """A row of the queue, `done` unless said otherwise."""
    values: dict[str, object] = {
        "id": id,
        "weights_sha256": weights_of(run, step),
        "protocol_sha256": "3f9ac01d" * 8,
        "checkpoint": f"runs/{run}/checkpoints/step_{step:08d}",
        "run": run,
        "step": step,
        "state": "done",
        "priority": 0,
        "reason": None,
        "created": NOW + 60 * id,
        "started": NOW + 60 * id + 2,
        "finished": NOW + 60 * id + 734,
        "attempts": 1,
        "num_tasks": 15,
        "num_ended": 15,
    }
    return EvaluationRow(**(values | changes))


def make_step(id: int, evaluation: int, run: str, step: int, task: str, state: str, **changes: object) -> TaskRow:
    """A step of an evaluation."""
    values = {"kind": "task", "version": None, "attempts": 1, "started": NOW, "seconds": None, "reason": None}
    return TaskRow(id=id, evaluation=evaluation, run=run, step=step, task=task, state=state, **(values | changes))


def weights_of(run: str, step: int) -> str:
    """64 hexadecimal digits that name a made checkpoint."""
    return f"{zlib.crc32(f'{run} {step}'.encode()):08x}" * 8


@functools.lru_cache(maxsize=4096)
def scores(run: str, step: int, name: tuple[str, str]) -> np.ndarray:
    """float64 [clusters] mean score of the examples of each cluster; checkpoints share most of their noise."""
    start, gain, spread, num_examples = METRICS[name]
    share = PEERS[run] if run in PEERS else RUNS.get(run, 0.5) * (1 - np.exp(-step / 3500))
    size = num_examples // _PER_CLUSTER
    common = np.random.default_rng(zlib.crc32("/".join(name).encode())).normal(size=size)
    own = np.random.default_rng(zlib.crc32(f"{run} {step} {name}".encode())).normal(size=size)
    noise = 0.95 * (common - common.mean()) + 0.31 * own
    return start + gain * share + spread / np.sqrt(_PER_CLUSTER) * noise


def make_results(run: str, step: int, **changes: object) -> Results:
    """What a checkpoint of a made run scored."""
    found = []
    for (task, metric), (*_, num_examples) in METRICS.items():
        values = scores(run, step, (task, metric))
        half = 1.96 * values.std() / np.sqrt(len(values))
        found.append(
            Result(
                task=task,
                task_version="1",
                split="test",
                metric=metric,
                value=float(values.mean()),
                ci_low=float(values.mean() - half),
                ci_high=float(values.mean() + half),
                seeds=(0, 1, 2) if task in ("ppi_human", "metal_ion") else (0,),
                num_examples=num_examples,
                num_clusters=len(values),
                seconds=42.5,
            )
        )
    facts = {task: make_facts(task) for task, _ in METRICS}
    is_peer = run in PEERS
    values: dict[str, object] = {
        "run": run,
        "stage": "peer" if is_peer else "align",
        "trunk": "esm2_t12_35M (12x480x20)" if "35M" in run else "esm2_t6_8M (6x320x20)",
        "step": step,
        "weights_sha256": weights_of(run, step),
        "manifest_sha256": "7be1" * 16,
        "protocol_sha256": "3f9ac01d" * 8,
        "fit_split": "train",
        "num_fit_chains": 500,
        "num_test_chains": 400,
        "num_embedded": 21345,
        "seconds": 734.0,
        "tasks": facts | {"stability": make_facts("stability")},
        "results": tuple(found),
        "skipped": (Skipped(task="stability", task_version="1", reason="stability: no folder stability/ in the data"),),
        "remarks": {"ec": ("leakage: 12 of 1,919 test proteins are similar to a training chain; flagged",)},
    }
    if is_peer:
        # A model without a 3Di head of its own has no such result.
        values["results"] = tuple(r for r in found if r.task != "threedi")
        values["skipped"] = (Skipped(task="threedi", task_version="1", reason=f"{run}: has no 3Di head"),)
        values["failed"] = (Failed(task="clinical_variants", reason="out of memory on a protein of 34,350 residues"),)
    return Results(**(values | changes))


def make_facts(task: str, **changes: str | None) -> TaskFacts:
    """Facts of a made task."""
    on_shards = task in ("pseudo_perplexity", "threedi", "secondary_structure", "contact")
    values: dict[str, str | None] = {
        "version": "1",
        "frozen": "whole trunk",
        "head": "linear, strength chosen on validation" if not on_shards else "none",
        "method": "mean over proteins of the held-out split",
        "data": "shards" if on_shards else f"{task}/ of the published files; validation cut from train by cluster",
        "data_sha256": None if on_shards else f"{zlib.crc32(task.encode()):08x}" * 8,
    }
    return TaskFacts(**(values | changes))


@functools.lru_cache
def _read(folder: Path) -> Results:
    return read_results(folder)


def compare(first: Path, second: Path, num_samples: int) -> dict[str, Comparison]:
    """Second minus first of two made evaluations, paired over clusters."""
    one, other = _read(first), _read(second)
    if one.protocol_sha256 != other.protocol_sha256:
        raise UserError("comparison: task 'ec' has protocols '3f9ac01d' and '00c0ffee'; evaluate both with one")
    differences, p_values = {}, []
    for task, metric in METRICS:
        if one.find(task, metric) is None or other.find(task, metric) is None:
            continue
        gaps = scores(other.run, other.step, (task, metric)) - scores(one.run, one.step, (task, metric))
        mean, error = float(gaps.mean()), float(gaps.std()) / math.sqrt(len(gaps))
        differences[task, metric] = (mean, mean - 1.96 * error, mean + 1.96 * error)
        p_values.append(max(2 / (num_samples + 1), math.erfc(abs(mean) / (error + 1e-12) / math.sqrt(2))))
    return {
        f"{task}/{metric}": Comparison(
            task=task,
            metric=metric,
            first=one.find(task, metric).value,
            second=other.find(task, metric).value,
            difference=difference,
            ci_low=low,
            ci_high=high,
            p_value=p_value,
            p_holm=p_holm,
            p_bh=p_holm,
            num_examples=METRICS[task, metric][3],
            num_clusters=METRICS[task, metric][3] // _PER_CLUSTER,
            is_test=difference != 0.0,
        )
        for ((task, metric), (difference, low, high)), p_value, p_holm in zip(
            differences.items(), p_values, holm(p_values), strict=True
        )
    }


def paired_test(first: Path, second: Path, task: str, metric: str, num_samples: int) -> tuple[float, float]:
    """Difference and p-value of one metric, as `compare` has them."""
    found = compare(first, second, num_samples)[f"{task}/{metric}"]
    return found.difference, found.p_value


def make_board(folder: Path) -> MadeBoard:
    """Three runs of six checkpoints, two other models, one running, two waiting, one failed, three decisions."""
    board = MadeBoard(folder)
    for step in STEPS:
        for run in RUNS:
            board.add(make_results(run, step))
    for run in PEERS:
        board.add(make_results(run, 0))
    count = len(board.rows)
    run = "esm2-8m-align"
    now = time.time()
    states = {"state": "running", "started": now - 95, "finished": None, "num_ended": 6, "created": now - 96}
    board.rows.append(make_row(count + 1, run, 12000, **states))
    board.steps[count + 1] = [
        make_step(1, count + 1, run, 12000, "plan", "done", kind="plan", seconds=0.4),
        make_step(2, count + 1, run, 12000, "embed", "done", kind="embed", seconds=41.0),
        *(
            make_step(3 + i, count + 1, run, 12000, task, "done", seconds=4.0 + 9 * i, version="1")
            for i, task in enumerate(["pseudo_perplexity", "threedi", "secondary_structure", "contact", "fold", "ec"])
        ),
        make_step(10, count + 1, run, 12000, "go_mf", "running", attempts=2),
        make_step(11, count + 1, run, 12000, "mutation_effect", "queued", attempts=0, started=None),
        make_step(12, count + 1, run, 12000, "finish", "queued", attempts=0, started=None, kind="finish"),
    ]
    for number, other in enumerate(list(RUNS)[1:]):
        waiting = {"state": "queued", "started": None, "finished": None, "num_tasks": 0, "num_ended": 0, "attempts": 0}
        board.rows.append(make_row(count + 2 + number, other, 12000, **waiting, created=now - 30))
    reason = "checkpoint step_00003000: weights.safetensors has another sha256 than its manifest says"
    failed = {"state": "failed", "reason": reason, "num_tasks": 0, "num_ended": 0, "finished": NOW + 30}
    board.rows.append(make_row(count + 4, "esm2-8m-align", 3000, **failed))
    board.decisions = make_promotions()
    return board


def make_promotions() -> list[PromotionRow]:
    """Decisions of each kind."""
    numbers = {
        "contact/P@L_long": {"difference": 0.0312, "p_adjusted": 0.0004, "verdict": "better"},
        "ec/fmax": {"difference": 0.0021, "p_adjusted": 0.41, "verdict": ""},
    }
    gained = "1 significant gain, no significant loss"
    values = {"model": "esm2-8m", "evaluation": 16, "champion_evaluation": 1, "created": NOW + 9000}
    return [
        PromotionRow(3, version=6, champion_version=5, decision="kept", reason="no significant gain", numbers=numbers,
                     applied=True, **values),
        PromotionRow(2, version=5, champion_version=1, decision="champion", reason=gained, numbers=numbers,
                     applied=False, **values),
        PromotionRow(1, version=1, champion_version=None, decision="champion", reason="the first version", numbers={},
                     applied=True, **(values | {"champion_evaluation": None})),
    ]  # fmt: skip
