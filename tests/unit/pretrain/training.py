"""A tiny training task for tests: hand-made shards with a derived teacher column, and a config over them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from configs.loading import validate
from configs.train import TrainConfig
from data_pipeline.derived import DerivedWriter
from data_pipeline.reader import ShardReader
from data_pipeline.schema import Graph, Sample, to_milli_angstrom
from data_pipeline.shards import write_shards
from data_pipeline.structure.chain import AMINO_ACIDS, THREEDI_STATES

ROOT = Path(__file__).parents[3]
TEACHER_WIDTH = 12


def make_chain(number: int) -> Sample:
    """A random chain of 20 to 60 residues; every fourth residue has no structure; two chains share a cluster."""
    random = np.random.default_rng(number)
    n = int(random.integers(20, 60))
    return Sample(
        key=f"c{number:03d}_A",
        sequence="".join(random.choice(list(AMINO_ACIDS), size=n)),
        threedi="".join(random.choice(list(THREEDI_STATES), size=n)),
        coordinates=to_milli_angstrom(random.normal(scale=10.0, size=(n, 5, 3))),
        bfactor=random.uniform(0, 90, size=n).astype(np.float32),
        valid=np.arange(n) % 4 != 3,
        threedi_valid=np.arange(n) % 4 != 3,
        graphs={"knn": Graph(np.arange(n + 1, dtype=np.uint32), np.arange(n, dtype=np.uint16))},
        facts={},
        cluster=number // 2,
        high_quality=number % 2 == 0,
    )


def write_task(folder: Path, num_chains: int = 24) -> Path:
    """Shards with split `train` and the derived column `fixed`; returns their folder."""
    shards = folder / "shards"
    write_shards(shards, {"train": [make_chain(i) for i in range(num_chains)]}, samples_per_shard=10)
    with ShardReader(shards) as reader, DerivedWriter(reader, "fixed", {"width": TEACHER_WIDTH}) as writer:
        for i in range(num_chains):
            random = np.random.default_rng(1000 + i)
            rows = random.normal(size=(int(reader.index("train").residues[i]), TEACHER_WIDTH))
            writer.write("train", i, {"embedding": rows.astype(np.float16)})
    return shards


def make_config(folder: Path, **overrides: Any) -> TrainConfig:
    """A small alignment run over `write_task(folder)`; keyword a__b=value sets a.b."""
    tree: dict[str, Any] = {
        "stage": "align",
        "name": "tiny",
        "runs": str(folder / "runs"),
        "data": {"shards": str(folder / "shards"), "max_residues": 48, "pack_tokens": 128, "packs_per_pool": 2},
        "trunk": {"layers": 2, "width": 32, "heads": 4},
        "teacher": {"column": "fixed"},
        "losses": {"projection_width": 16},
        "optimizer": {"steps": 10, "warmup_steps": 2, "trunk_lr": 0.01, "head_lr": 0.01},
        "engine": {"launcher": "env"},
        "checkpoint": {"every": 5},
        "tracking": {"mlflow": False},
    }
    for key, value in overrides.items():
        *parents, leaf = key.split("__")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[leaf] = value
    return validate(TrainConfig, tree, "test")


def run_training(config: TrainConfig, folder: Path, num_workers: int = 1, path: str | None = None) -> None:
    """`python -m pretrain train` on a config, under torchrun where there is more than one worker.

    Fails with the program's own words. `path` replaces PATH for the program.
    """
    file = folder / f"{config.name}-{num_workers}.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-m"]
    if num_workers > 1:
        command += ["torch.distributed.run", "--standalone", f"--nproc-per-node={num_workers}", "-m"]
    command += ["pretrain", "train", str(file), f"engine.num_workers={num_workers}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if path is not None:
        environment["PATH"] = path
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
