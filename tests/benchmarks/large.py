"""ESM-2 650M on one small machine: memory of all processes against what `--dry-run` says, through the real program.

A fair-esm file of random weights is written; two workers under torchrun train on it with ZeRO-3 in float32 and all
three losses (teacher in a column) for three steps and write a checkpoint; one worker continues from it for one step.

* `peak_gib`: the larger peak of the two programs, as the proportional set size of every process of the program,
  launcher included, sampled five times a second (pages shared by processes count once);
* `memory_error`: of the dry run's figure, workers x memory per worker, against the measured peak; the worse of the two;
* `step_time_error`: the same of the time of the last step of two workers.

It needs as much memory as it reports, and 20 GB in the folder of temporary files.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import psutil
import torch

from configs.loading import dump_config, load_config
from configs.train import TrainConfig
from configs.trunk import TrunkConfig
from pretrain.checkpoints import open_checkpoint
from pretrain.estimate import estimate, step_seconds
from pretrain.model.encoder import Encoder
from pretrain.model.fair_esm import write_fair_esm
from pretrain.model.shape import trunk_shape
from pretrain.run_folder import METRICS, read_metrics, run_path
from tests.benchmarks._timing import report
from tests.benchmarks._training import ROOT, real_config, write_real_shards

STEPS = 3
SAMPLE_SECONDS = 0.2


class MemorySampler:
    """The largest proportional set size of a process and all its descendants while it runs."""

    def __init__(self, pid: int) -> None:
        self.peak_bytes = 0
        self._root = psutil.Process(pid)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def close(self) -> int:
        self._ended.set()
        self._thread.join()
        return self.peak_bytes

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            total = 0
            try:
                for process in (self._root, *self._root.children(recursive=True)):
                    total += proportional_bytes(process.pid)
            except psutil.NoSuchProcess:
                return
            self.peak_bytes = max(self.peak_bytes, total)


def proportional_bytes(pid: int) -> int:
    """Proportional set size of one process; 0 for one that has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def write_weights(model: str, path: Path) -> None:
    """A fair-esm file of random weights, written by a process of its own, whose memory goes with it."""
    command = [sys.executable, "-m", "tests.benchmarks.large", "--model", model, "--write-weights", str(path)]
    subprocess.run(command, cwd=ROOT, check=True)


def run_program(file: Path, workers: int, steps: int) -> int:
    """Train by the command line; returns the peak of its processes in bytes."""
    command = [sys.executable, "-m"]
    if workers > 1:
        command += ["torch.distributed.run", "--standalone", f"--nproc-per-node={workers}", "-m"]
    command += ["pretrain", "train", str(file), f"engine.num_workers={workers}", f"optimizer.steps={steps}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as program:
        sampler = MemorySampler(program.pid)
        code = program.wait()
        peak = sampler.close()
    if code:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {code}")
    return peak


def measure(folder: Path, model: str, pack_tokens: int) -> dict[str, Any]:
    write_real_shards(folder, 200)
    weights = folder / f"{model}.pt"
    write_weights(model, weights)
    config = real_config(
        folder,
        name="large",
        trunk__model=model,
        trunk__weights=str(weights),
        data__pack_tokens=pack_tokens,
        data__max_residues=pack_tokens - 2,
        engine__zero_stage=3,
    )
    file = folder / "large.yaml"
    file.write_text(dump_config(config))
    figures: dict[str, Any] = {"model": model, "pack_tokens": pack_tokens}
    errors = []
    for workers, steps in ((2, STEPS), (1, STEPS + 1)):
        overrides = [f"engine.num_workers={workers}", f"optimizer.steps={steps}"]
        planned = load_config(TrainConfig, file, overrides)
        found = estimate(planned)
        measured = run_program(file, workers, steps)
        predicted = workers * found.memory.peak
        errors.append(abs(predicted / measured - 1))
        row = read_metrics(run_path(planned) / METRICS)[-1]
        assert row["step"] == steps, row
        figures |= {
            f"peak_gib_{workers}": measured / 2**30,
            f"predicted_gib_{workers}": predicted / 2**30,
            f"step_seconds_{workers}": row["seconds"],
            f"step_seconds_predicted_{workers}": step_seconds(planned, found),
        }
    assert open_checkpoint(run_path(config)).step == STEPS + 1
    figures["peak_gib"] = max(figures["peak_gib_1"], figures["peak_gib_2"])
    figures["memory_error"] = max(errors)
    figures["step_time_error"] = abs(figures["step_seconds_predicted_2"] / figures["step_seconds_2"] - 1)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="esm2_t33_650M_UR50D")
    parser.add_argument("--pack-tokens", type=int, default=512)
    parser.add_argument("--write-weights", type=Path, help="internal: only write random weights to this file")
    given = parser.parse_args()
    if given.write_weights:
        torch.manual_seed(0)
        write_fair_esm(Encoder(trunk_shape(TrunkConfig(model=given.model))), given.write_weights)
        return
    with tempfile.TemporaryDirectory() as name:
        report("large", measure(Path(name), given.model, given.pack_tokens))


if __name__ == "__main__":
    main()
