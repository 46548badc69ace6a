"""How much a training run slows down while the service evaluates on the core beside it.

A real training run (masked language, the demo's trunk, real chains) is pinned to one core. The real service, whose
evaluation processes are bound to another core by its `cpus`, lies idle and evaluates in turn, A B A B ...: in a B phase
checkpoints of the same size are queued one after the other, so that the other core is never idle. `slowdown` is the
median over the pairs of neighbouring phases of (median seconds per token in B) / (the same in A); `evaluating` is the
share of the B phases' wall time in which a step of an evaluation ran.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from configs.errors import UserError
from configs.loading import dump_config, validate
from configs.service import ServeConfig
from configs.train import TrainConfig
from data_pipeline.schema import Sample, to_milli_angstrom
from data_pipeline.shards import write_shards
from data_pipeline.structure.threedi import encode_3di_many
from tests.benchmarks._chains import real_chains
from tests.benchmarks._timing import report
from tests.unit.eval.makers import write_checkpoint

ROOT = Path(__file__).parents[2]
LEFT_OUT = 2
"""Steps after a change of phase that belong to neither: a row is logged a step later than it was made."""
WAIT_SECONDS = 240.0
NUM_CHECKPOINTS = 60


def main() -> None:
    """Run the phases and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40, help="steps of a phase")
    arguments = parser.parse_args()
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        raise SystemExit("error: two CPUs are needed, one for training and one for the service")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = prepare(folder)
        phases, num_tasks = measure(folder, config, cpus[0], cpus[1], arguments.pairs, arguments.steps)
    ratios = [b["seconds_per_token"] / a["seconds_per_token"] for a, b in phases]
    report(
        "service_slowdown",
        {
            "slowdown": statistics.median(ratios),
            "worst_pair": max(ratios),
            "best_pair": min(ratios),
            "step_seconds_alone": statistics.median(a["step_seconds"] for a, _ in phases),
            "step_seconds_beside": statistics.median(b["step_seconds"] for _, b in phases),
            "evaluating": statistics.fmean(b["evaluating"] for _, b in phases),
            "tasks_carried_out": num_tasks,
            "pairs": len(phases),
        },
    )


def prepare(folder: Path) -> TrainConfig:
    """Shards of real chains, checkpoints to evaluate, and the training run's configuration."""
    every = real_chains()
    chains = [chain for chain in every[:: max(1, len(every) // 500)] if 40 <= len(chain[0]) <= 510]
    letters = encode_3di_many([coordinates for _, coordinates in chains])
    samples = []
    for i, ((sequence, coordinates), (threedi, has_state)) in enumerate(zip(chains, letters, strict=True)):
        valid = np.isfinite(coordinates[:, :3]).all(axis=(1, 2))
        stored, unknown = to_milli_angstrom(coordinates), np.zeros(len(sequence), dtype=np.float32)
        samples.append(Sample(f"c{i:05d}_A", sequence, threedi, stored, unknown, valid, has_state, {}, {}, i, True))
    write_shards(folder / "shards", {"train": samples[80:], "test": samples[:80]})
    config = train_config(folder, "training", folder / "runs")
    for number in range(1, NUM_CHECKPOINTS + 1):
        write_checkpoint(train_config(folder, "evaluated", folder / "evaluated"), number, seed=number)
    return config


def train_config(folder: Path, name: str, runs: Path) -> TrainConfig:
    """The demo's trunk on one worker, longer than any measurement."""
    tree: dict[str, Any] = {
        "stage": "align",
        "name": name,
        "runs": str(runs),
        "data": {"shards": str(folder / "shards"), "max_residues": 510, "pack_tokens": 1024, "packs_per_pool": 2},
        "trunk": {"model": "custom", "family": "esm2", "layers": 4, "width": 160, "heads": 8},
        "losses": {"structure": 0.0, "contrast": 0.0},
        "optimizer": {"steps": 100_000, "warmup_steps": 100},
        "engine": {"launcher": "env", "num_workers": 1, "zero_stage": 0},
        "checkpoint": {"every": 100_000},
        "tracking": {"mlflow": False},
    }
    return validate(TrainConfig, tree, "benchmark")


def measure(
    folder: Path, config: TrainConfig, training_cpu: int, service_cpu: int, pairs: int, steps: int
) -> tuple[list[tuple[dict[str, float], dict[str, float]]], int]:
    """Figures of the phases (alone, beside), in pairs, and the number of tasks that were carried out."""
    rows = Rows(config.runs / config.name / "metrics.jsonl")
    processes: list[subprocess.Popen] = []
    try:
        processes.append(start_training(folder, config, training_cpu))
        processes.append(start_service(folder, service_cpu))
        wait_until(lambda: rows.last() >= 10, processes, "the training run's first steps")
        address = folder / "service" / "service.json"
        wait_until(address.exists, processes, "the service's start")
        token = (folder / "service" / "token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.Client(base_url=json.loads(address.read_text())["url"], headers=headers, timeout=30) as client:
            evaluations = Evaluations(client, folder / "evaluated" / "evaluated" / "checkpoints")
            found = []
            for _ in range(pairs):
                alone = phase(rows, steps, processes, lambda: False)
                wait_until(evaluations.is_measuring, processes, "an evaluation's start")
                beside = phase(rows, steps, processes, evaluations.keep_going)
                evaluations.end(processes)
                found.append((alone, beside))
            return found, evaluations.num_tasks()
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(timeout=60)


def phase(rows: "Rows", steps: int, processes: list[subprocess.Popen], look: Callable[[], bool]) -> dict[str, float]:
    """Medians over the steps made while `look` is called again and again; it says whether an evaluation runs."""
    first = rows.last() + LEFT_OUT
    looks: list[bool] = []

    def is_over() -> bool:
        looks.append(look())
        return rows.last() >= first + steps

    wait_until(is_over, processes, "the steps of a phase", pause=0.1)
    ours = rows.between(first, first + steps)
    return {
        "step_seconds": statistics.median(row["seconds"] for row in ours),
        "seconds_per_token": statistics.median(1.0 / row["tokens_per_second"] for row in ours),
        "evaluating": statistics.fmean(looks),
    }


class Rows:
    """Rows of a run's metrics.jsonl, read as they come."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def last(self) -> int:
        return max((row["step"] for row in self._read()), default=0)

    def between(self, first: int, last: int) -> list[dict[str, float]]:
        return [row for row in self._read() if first < row["step"] <= last]

    def _read(self) -> list[dict[str, float]]:
        lines = self._path.read_text().splitlines(keepends=True) if self._path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]


class Evaluations:
    """Asks the service for one checkpoint after the other."""

    def __init__(self, client: httpx.Client, checkpoints: Path) -> None:
        self._client = client
        self._left = sorted(checkpoints.iterdir())

    def keep_going(self) -> bool:
        """Queue a checkpoint where none waits; whether a step of an evaluation runs."""
        numbers = self._client.get("/api/metrics").raise_for_status().json()
        if numbers["evaluations"]["failed"] > numbers["evaluations"]["done"] + 10:
            raise RuntimeError(self._client.get("/api/evaluations?state=failed").json()[-1]["reason"])
        if numbers["evaluations"]["queued"] == 0:
            body = {"checkpoint": str(self._left.pop(0))}
            self._client.post("/api/evaluations", json=body).raise_for_status()
        return numbers["steps_running"] > 0

    def is_measuring(self) -> bool:
        """Whether the model computes, and is not only being read."""
        self.keep_going()
        running = [task for task in self._client.get("/api/queue").json() if task["state"] == "running"]
        return any(task["kind"] in ("embed", "task") for task in running)

    def num_tasks(self) -> int:
        """Tasks that were carried out to their end."""
        rows = [self._client.get(f"/api/evaluations/{row['id']}").json() for row in self._all()]
        return sum(task["state"] == "done" and task["kind"] == "task" for row in rows for task in row["tasks"])

    def _all(self) -> list[dict[str, Any]]:
        return self._client.get("/api/evaluations").raise_for_status().json()

    def end(self, processes: list[subprocess.Popen]) -> None:
        """Cancel what runs and waits, and wait until nothing runs."""
        for row in self._all():
            if row["state"] in ("queued", "running"):
                self._client.delete(f"/api/evaluations/{row['id']}")
        time.sleep(1.0)
        wait_until(lambda: not self._client.get("/api/queue").json(), processes, "an empty queue")


def start_training(folder: Path, config: TrainConfig, cpu: int) -> subprocess.Popen:
    """`python -m pretrain train` on one core."""
    path = folder / "train.yaml"
    path.write_text(dump_config(config))
    environment = {"OMP_NUM_THREADS": "1", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    return start(folder, ["taskset", "-c", str(cpu), sys.executable, "-m", "pretrain", "train", str(path)], environment)


def start_service(folder: Path, cpu: int) -> subprocess.Popen:
    """`python -m eval serve` with its evaluation processes on another core."""
    evaluation = {
        "data": {"shards": str(folder / "shards"), "max_residues": 510},
        "tasks": ["pseudo_perplexity", "secondary_structure", "contact"],
        "execution": {"threads": 1},
        "device": "cpu",
    }
    tree: dict[str, Any] = {
        "folder": str(folder / "service"),
        "evaluation": evaluation,
        # Checkpoints below it may be asked for; as none of its folders is a run, it queues nothing by itself.
        "watch": {"runs": [str(folder)], "every_seconds": 3600.0},
        "port": 0,
        "executor": "process",
        "cpus": [cpu],
        "limits": {"requests_per_minute": 100_000},
    }
    path = folder / "serve.yaml"
    path.write_text(dump_config(validate(ServeConfig, tree, "benchmark")))
    return start(folder, [sys.executable, "-m", "eval", "serve", str(path)], {})


def start(folder: Path, command: list[str], environment: dict[str, str]) -> subprocess.Popen:
    """A program in the repository's root, whose output goes into a file."""
    name = command[command.index("-m") + 1]
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **environment}, stdout=log, stderr=subprocess.STDOUT
        )


def wait_until(reached: Callable[[], bool], processes: list[subprocess.Popen], what: str, pause: float = 0.2) -> None:
    """Wait; a program that ends meanwhile, or a deadline, ends the benchmark."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not reached():
        for process in processes:
            if process.poll() is not None:
                raise UserError(f"{process.args} ended with exit code {process.returncode} before {what}")
        if time.monotonic() > deadline:
            raise UserError(f"waited {WAIT_SECONDS:.0f} s for {what}")
        time.sleep(pause)


if __name__ == "__main__":
    main()
