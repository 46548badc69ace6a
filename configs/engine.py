"""How a training step runs: optimizer, parallelism, checkpoints, tracking."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from configs.loading import Config


class OptimizerConfig(Config):
    trunk_lr: float = Field(default=1e-4, gt=0)
    head_lr: float = Field(default=1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    clip: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; 0 switches clipping off."""
    steps: int = Field(default=1000, ge=1)
    """Optimizer updates of the whole run."""
    warmup_steps: int = Field(default=100, ge=0)
    """Linear warm-up, then cosine to 0."""


class EngineConfig(Config):
    """How the step runs; nothing here changes what is learnt, except precision."""

    zero_stage: Literal[0, 1, 2, 3] = 3
    deepspeed: Path | None = None
    """A DeepSpeed JSON file laid over the generated one; batch sizes are checked against the data config."""
    precision: Literal["fp32", "bf16"] = "fp32"
    activation_checkpointing: bool = False
    """Keep only each layer's input for backward and compute the rest again: less memory, a third more time."""
    compile: bool = False
    """torch.compile the trunk's layers."""
    attention: Literal["auto", "sdpa", "varlen"] = "auto"
    """`sdpa`: torch's fused attention, protein by protein; `varlen`: one call over all proteins of a pack (CUDA, bf16);
    `auto`: what suits the device and precision."""
    num_workers: int = Field(default=1, ge=1)
    min_workers: int | None = Field(default=None, ge=1)
    """Ray Train goes on with as few workers when nodes are lost, and grows again; unset: always num_workers."""
    cpus_per_worker: int = Field(default=1, ge=1)
    gpus_per_worker: int = Field(default=0, ge=0)
    launcher: Literal["ray", "env"] = "ray"
    """`ray`: Ray Train starts the workers; `env`: torchrun or srun did (RANK, WORLD_SIZE, ... are set)."""
    address: str | None = None
    """Ray cluster; default: RAY_ADDRESS, else a cluster of this machine that ends with the run."""
    max_failures: int = Field(default=2, ge=0)
    """Restarts from the last good checkpoint after a worker is lost; nodes that are preempted do not count."""
    max_skipped: int = Field(default=20, ge=0)
    """An update whose loss or gradient is not finite is skipped; more than so many in a row end the run."""

    @model_validator(mode="after")
    def _fewest_workers(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(
                f"engine.min_workers {self.min_workers} is more than engine.num_workers {self.num_workers};"
                " lower it or leave it out"
            )
        return self


class CheckpointConfig(Config):
    every: int = Field(default=500, ge=1)
    """Steps between checkpoints; the last step always writes one."""
    keep: int | None = Field(default=None, ge=1)
    """Keep this many of the newest; unset: all."""
    asynchronous: bool = True
    """Write in a thread while training goes on; costs memory for a copy of weights and optimizer state (12 bytes per
    parameter, divided among the workers). `false`: training waits, and no copy is made."""


class TrackingConfig(Config):
    mlflow: bool = True
    uri: str | None = None
    """MLflow tracking URI; default: sqlite:///<runs folder>/mlflow.db."""
    experiment: str = "structure-alignment"
    every: int = Field(default=1, ge=1)
    """Steps between rows of metrics.jsonl and MLflow."""
