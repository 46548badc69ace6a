"""A training task over real chains for benchmarks: shards with 3Di states, a teacher column, and worker processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from configs.loading import validate
from configs.train import TrainConfig
from data_pipeline.derived import DerivedWriter
from data_pipeline.reader import ShardReader
from data_pipeline.schema import Sample, to_milli_angstrom
from data_pipeline.shards import write_shards
from data_pipeline.structure.threedi import encode_3di_many
from tests.benchmarks._chains import real_chains

ROOT = Path(__file__).parents[2]
COLUMN = "fixed"
TEACHER_WIDTH = 512
"""Of a GearNet; the rows themselves are random, as their values change no time."""


def write_real_shards(folder: Path, num_chains: int = 400) -> Path:
    """Shards of real chains from all over the file, with 3Di states and a teacher column; returns their folder."""
    every = real_chains()
    chains = every[:: max(1, len(every) // num_chains)][:num_chains]
    letters = encode_3di_many([coordinates for _, coordinates in chains])
    samples = []
    for i, ((sequence, coordinates), (threedi, has_state)) in enumerate(zip(chains, letters, strict=True)):
        valid = np.isfinite(coordinates[:, :3]).all(axis=(1, 2))
        stored, unknown = to_milli_angstrom(coordinates), np.zeros(len(sequence), dtype=np.float32)
        samples.append(Sample(f"c{i:05d}_A", sequence, threedi, stored, unknown, valid, has_state, {}, {}, i, True))
    shards = folder / "shards"
    write_shards(shards, {"train": samples})
    random = np.random.default_rng(0)
    with ShardReader(shards) as reader, DerivedWriter(reader, COLUMN, {"width": TEACHER_WIDTH}) as writer:
        for i, sample in enumerate(samples):
            rows = random.standard_normal((len(sample), TEACHER_WIDTH), dtype=np.float32)
            writer.write("train", i, {"embedding": rows.astype(np.float16)})
    return shards


def real_config(folder: Path, **overrides: Any) -> TrainConfig:
    """Alignment by three losses with a precomputed teacher, over `write_real_shards(folder)`; a__b=value sets a.b."""
    tree: dict[str, Any] = {
        "stage": "align",
        "name": "benchmark",
        "runs": str(folder / "runs"),
        "data": {"shards": str(folder / "shards"), "max_residues": 1022, "pack_tokens": 2048, "packs_per_pool": 2},
        "trunk": {"model": "esm2_t12_35M_UR50D"},
        "teacher": {"column": COLUMN},
        "optimizer": {"steps": 10, "warmup_steps": 2},
        "engine": {"launcher": "env"},
        "checkpoint": {"every": 1000},
        "tracking": {"mlflow": False},
    }
    for key, value in overrides.items():
        *parents, leaf = key.split("__")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[leaf] = value
    return validate(TrainConfig, tree, "benchmark")


def start_ranks(module: str, arguments: list[str], size: int, threads: int = 1) -> list[subprocess.Popen]:
    """`python -m module arguments` as the processes of one world; rank 0 writes to this stdout."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(size):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": str(threads),
        }
        command = [sys.executable, "-m", module, *arguments]
        output = None if rank == 0 else subprocess.DEVNULL
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output))
    return processes


def wait_for_ranks(processes: list[subprocess.Popen], seconds: float) -> None:
    """Wait until all have ended well; when one fails or time is up, the others are ended too."""
    try:
        for process in processes:
            if process.wait(timeout=seconds):
                raise RuntimeError(f"a rank ended with exit code {process.returncode}")
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
