"""Configuration of `python -m eval`: checkpoint -> results -> release."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from configs.loading import Config

TaskName = Literal[
    "pseudo_perplexity",
    "threedi",
    "threedi_fitted",
    "threedi_lookup",
    "threedi_majority",
    "secondary_structure",
    "contact",
]


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

    cutoff: float = Field(default=8.0, gt=0)
    """Angstrom."""
    fit_chains: int = Field(default=20, ge=1)
    """Chains of the fit split that the attention regression is fitted on (ESM-2's protocol: 20)."""
    inverse_regularisation: float = Field(default=0.15, gt=0)
    """C of the L1 logistic regression (ESM-2's protocol: 0.15)."""


class EvalConfig(Config):
    data: EvalDataConfig
    tasks: tuple[TaskName, ...] = (
        "pseudo_perplexity",
        "threedi",
        "threedi_fitted",
        "threedi_lookup",
        "threedi_majority",
        "secondary_structure",
        "contact",
    )
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


_METRIC_LABELS: dict[tuple[str, str], str] = {
    ("pseudo_perplexity", "pseudo_perplexity"): "pseudo-perplexity",
    ("threedi", "accuracy"): "3Di accuracy, own head",
    ("threedi_fitted", "accuracy"): "3Di accuracy, head fitted afterwards",
    ("threedi_lookup", "accuracy"): "3Di accuracy, residue-type lookup",
    ("threedi_majority", "accuracy"): "3Di accuracy, majority state",
    ("secondary_structure", "q3"): "secondary structure Q3, linear probe",
}


def metric_label(task: str, metric: str) -> str:
    """A metric of results.json, named for people."""
    if task == "contact":
        name, _, span = metric.rpartition("_")
        return f"contact {name}, {span} range"
    return _METRIC_LABELS.get((task, metric), f"{task} {metric}")
