"""Configuration of `python -m eval serve`."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from configs.evaluate import EvalConfig
from configs.loading import Config


class PromotionConfig(Config):
    """When a checkpoint becomes candidate, and the candidate champion, of a registered model."""

    metrics: tuple[str, ...] = ()
    """`task/metric` names that decide; empty: every metric that both checkpoints have."""
    significance: float = Field(default=0.05, gt=0, lt=1)
    """Of paired p-values corrected for the number of metrics (Holm)."""
    min_gains: int = Field(default=1, ge=1)
    """Metrics with a significant gain that promotion needs; one significant loss forbids it."""


class LimitsConfig(Config):
    """What a client of the HTTP API may ask."""

    max_body_bytes: int = Field(default=2**20, ge=1024)
    max_residues: int = Field(default=2**17, ge=1)
    """Of all sequences of one request for embeddings or tokens."""
    requests_per_minute: int = Field(default=120, ge=1)
    """Of one token or address."""
    max_queued: int = Field(default=10_000, ge=1)


class WatchConfig(Config):
    """Where new checkpoints come from."""

    runs: tuple[Path, ...] = ()
    """Run folders, or folders of run folders."""
    registry: str | None = None
    """MLflow server or database whose registered models are watched, and whose aliases promotion moves."""
    models: tuple[str, ...] = ()
    """Registered models to watch; empty: all."""
    every_seconds: float = Field(default=10.0, gt=0)


class ServeConfig(Config):
    """The evaluation service."""

    folder: Path = Path("service")
    """Queue (sqlite), results and report pages."""
    evaluation: EvalConfig
    watch: WatchConfig = WatchConfig()
    host: str = "127.0.0.1"
    port: int = Field(default=8055, ge=0, le=65535)
    """0: any free port, written to `service.json` in the folder."""
    token_file: Path | None = None
    """First line: the token that requests must carry (`Authorization: Bearer ...`); unset: one is made in the folder,
    readable by its owner only."""
    public_pages: bool = True
    """The web page may be read without a token on this host; anything that changes state always needs it."""
    executor: Literal["ray", "process"] = "ray"
    """What runs the tasks of an evaluation: Ray tasks, or one child process at a time."""
    concurrent: int = Field(default=1, ge=1)
    """Evaluations at a time."""
    niceness: int = Field(default=10, ge=0, le=19)
    """Of evaluation processes, so that training on the same machine comes first."""
    cpus: tuple[int, ...] = ()
    """CPUs that evaluation processes may use; empty: all."""
    task_timeout_seconds: float = Field(default=7200.0, gt=0)
    task_timeouts: dict[str, float] = {}
    """Task name -> its own limit."""
    max_attempts: int = Field(default=2, ge=1)
    """Of a task whose process dies; an error of the task itself is final."""
    promotion: PromotionConfig = PromotionConfig()
    limits: LimitsConfig = LimitsConfig()
