"""Public benchmark datasets, the heads fitted on them, and how an evaluation is carried out."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from configs.loading import Config


class BenchmarksConfig(Config):
    """Where datasets lie, and how much of them is used."""

    root: Path | None = None
    """Folder that holds the datasets, unpacked or as .tar.xz and .zip archives; unset: $SAPLM_DATA/benchmarks."""
    sources: dict[str, str] = {}
    """Dataset name -> folder, file, or hf://datasets/ORG/NAME[@revision] that holds it, instead of `root`."""
    max_residues: int = Field(default=1022, ge=8)
    """Longer sequences are cropped to their first residues, and labels of residues with them."""
    max_train: int | None = Field(default=None, ge=2)
    """Training examples, drawn once from `seed`."""
    max_validation: int | None = Field(default=None, ge=2)
    max_test: int | None = Field(default=None, ge=2)
    max_train_residues: int = Field(default=200_000, ge=100)
    """Labelled residues that heads of per-residue tasks are fitted on."""
    leakage: Literal["off", "flag", "drop"] = "flag"
    """What happens to test proteins that a training chain of the evaluated checkpoint is similar to: nothing, their
    number is reported, or they leave the test set. Needs `training_shards`."""
    training_shards: Path | None = None
    """Shards that the checkpoint was trained on; unset: those its configuration names."""


class ProbeConfig(Config):
    """A head on a frozen or fine-tuned trunk."""

    protocol: Literal["frozen", "lora", "full"] = "frozen"
    """`frozen`: the head alone is fitted, on features computed once; `lora`, `full`: the trunk is tuned with it."""
    head: Literal["linear", "mlp"] = "linear"
    """`linear`: logistic or ridge regression to convergence, strength chosen on validation. `mlp`: Linear-ReLU-Linear
    by AdamW, epoch chosen on validation."""
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    """Of initialisation and order; linear heads have one optimum and use the first alone."""
    hidden: int = Field(default=512, ge=1)
    layers: int = Field(default=2, ge=2, le=4)
    """Linear layers of an `mlp`."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    """Of heads."""
    trunk_learning_rate: float = Field(default=2e-5, gt=0)
    """Of the trunk or its adapters where it is tuned."""
    weight_decay: float = Field(default=0.01, ge=0)
    batch_size: int = Field(default=64, ge=1)
    epochs: int = Field(default=50, ge=1)
    patience: int = Field(default=5, ge=1)
    """Epochs without a gain on validation after which fitting stops."""
    lora_rank: int = Field(default=8, ge=1)


class FeaturesConfig(Config):
    """The embedding pass that all frozen tasks share."""

    representation: Literal["last", "all_layers"] = "last"
    """`last`: the aligned hidden state; `all_layers`: the states of all layers side by side (as PST reports)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the forward passes."""
    cache: Path | None = None
    """Folder of embeddings by weights; unset: `embeddings/` beside the results."""
    keep_cache: bool = False
    """Leave the embeddings on disk when all tasks are done."""


class VariantsConfig(Config):
    """Zero-shot effects of mutations."""

    scoring: Literal["masked", "wildtype"] = "masked"
    """log p(mutant) - log p(wild type) at the mutated positions: each position masked in turn, or nothing masked."""
    window: int = Field(default=1022, ge=64)
    """Residues around a position that the model sees of a longer protein."""
    max_assays: int | None = Field(default=None, ge=1)
    precision: Literal["float32", "bfloat16"] = "float32"


class ExecutionConfig(Config):
    """In this process, one task after the other, or as Ray tasks."""

    ray: bool = False
    address: str | None = None
    """Of a running Ray cluster; unset: RAY_ADDRESS, else a local cluster."""
    cpus_per_task: float = Field(default=1.0, gt=0)
    gpus_per_task: float = Field(default=0.0, ge=0)
    threads: int | None = Field(default=None, ge=1)
    """Compute threads of a task; unset: the library's default in this process, `cpus_per_task` in a Ray task."""
    timeout_seconds: float = Field(default=7200.0, gt=0)
    """A task that takes longer fails, alone (Ray only)."""
