"""Configuration of `python -m eval run`: checkpoint -> results -> release."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from configs.benchmarks import BenchmarksConfig, ExecutionConfig, FeaturesConfig, ProbeConfig, VariantsConfig
from configs.loading import Config


class EvalDataConfig(Config):
    shards: Path
    split: str = "test"
    """The held-out split that results are reported on."""
    fit_split: str = "train"
    """Where probes and regressions are fitted."""
    max_residues: int = Field(default=1022, ge=8)
    """Longer chains are cropped to their first residues."""
    max_fit_chains: int = Field(default=500, ge=1)
    max_test_chains: int | None = Field(default=None, ge=1)


class ContactConfig(Config):
    """Contacts by the fixed definition: CB (virtual for glycine) within `cutoff`, separations 6-11 / 12-23 / >= 24."""

    preset: Literal["fixed", "published"] = "fixed"
    """`published`: CA within `cutoff` at separation >= 7, precision at L/5, as the SaESM2 paper reports."""
    cutoff: float = Field(default=8.0, gt=0)
    """Angstrom."""
    fit_chains: int = Field(default=20, ge=1)
    """Chains of the fit split that the attention regression is fitted on (ESM-2's protocol: 20)."""
    inverse_regularisation: float = Field(default=0.15, gt=0)
    """C of the L1 logistic regression (ESM-2's protocol: 0.15)."""
    pair_fit_chains: int = Field(default=200, ge=1)
    """Chains of the fit split that the supervised pair head is fitted on."""
    pair_epochs: int = Field(default=10, ge=1)


class EvalConfig(Config):
    data: EvalDataConfig | None = None
    """Shards, for tasks on structures; benchmark datasets need none."""
    tasks: tuple[str, ...] = (
        "pseudo_perplexity",
        "threedi",
        "threedi_fitted",
        "threedi_lookup",
        "threedi_majority",
        "secondary_structure",
        "contact",
    )
    """Names of tasks, or of groups of them: `structure` (the default), `benchmarks`, `all`."""
    benchmarks: BenchmarksConfig = BenchmarksConfig()
    features: FeaturesConfig = FeaturesConfig()
    probe: ProbeConfig = ProbeConfig()
    """How heads are fitted on benchmark datasets."""
    probes: dict[str, ProbeConfig] = {}
    """Task name -> its own settings instead of `probe`."""
    variants: VariantsConfig = VariantsConfig()
    execution: ExecutionConfig = ExecutionConfig()
    contact: ContactConfig = ContactConfig()
    head_epochs: int = Field(default=30, ge=1)
    """Epochs of heads fitted on frozen features (`threedi_fitted`)."""
    bootstrap_samples: int = Field(default=1000, ge=100)
    seed: int = 0
    batch_tokens: int = Field(default=4096, ge=64)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    mlflow: bool = True
    """Log metrics to the checkpoint's logged model where the run was tracked."""
    poll_seconds: float = Field(default=2.0, gt=0)
    """How often `--follow` looks for a new checkpoint."""
    stall_seconds: float = Field(default=3600.0, gt=0)
    """`--follow` gives up when a running run shows no sign of life (status, metrics, checkpoints) for this long."""

    def probe_of(self, task: str) -> ProbeConfig:
        """Settings of one task's head."""
        return self.probes.get(task, self.probe)
