"""The losses of alignment and the residue loss selector."""

from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import Field, model_validator

from configs.loading import Config


class LossConfig(Config):
    """Weights of the three losses, a weight of 0 leaves the loss and its head out; and how each is computed."""

    mlm: float = Field(default=1.0, ge=0)
    structure: float = Field(default=0.5, ge=0)
    """3Di token prediction (physical level)."""
    contrast: float = Field(default=0.5, ge=0)
    """Residue-wise InfoNCE against the teacher (latent level)."""
    projection_width: int = Field(default=512, ge=8)
    """The projection heads map to min(trunk width, this)."""
    max_logit_scale: float = Field(default=100.0, gt=1, le=600)
    """Upper bound of exp(logit_scale); up to 600 the sums of exponentials fit float64."""
    exclude_same_cluster: bool = True
    """Residues of *other* chains of the same sequence cluster (identical chains, homologs) are no negatives."""
    exclude_same_protein: bool = False
    """The other residues of a residue's own chain are no negatives either."""
    negatives: Literal["pool", "rank"] = "pool"
    """`pool`: residues of all ranks; `rank`: of the rank's own packs alone (published; depends on the world size)."""
    denominators: Literal["counted", "published"] = "counted"
    """`counted`: each loss is divided by how many residues it was summed over; `published`: by the published constants
    240.5055 x proteins x ratio (3Di, contrast) and 36.0758 x proteins (MLM), which tie its scale to the lengths."""
    contrast_tile: int = Field(default=1024, ge=16)
    """Rows per tile of the memory-linear InfoNCE."""


class SelectionConfig(Config):
    """Residue loss selection by excess over a frozen reference model."""

    mode: Literal["off", "large", "small"] = "off"
    """`large`: keep the residues of largest excess loss; `small`: of smallest."""
    ratio: float = Field(default=0.8, gt=0, le=1)
    """Fraction kept, separately per structure loss."""
    start_ratio: float | None = Field(default=None, gt=0, le=1)
    """Fraction kept at the first step, from which it goes linearly to `ratio` in `ratio_steps`; unset: `ratio`."""
    ratio_steps: int = Field(default=0, ge=0)
    scope: Literal["pool", "rank"] = "pool"
    """`pool`: the quantile is that of all ranks' residues; `rank`: of each rank's own (published; depends on the world
    size)."""
    precision: Literal["same", "fp32", "bf16"] = "same"
    """Of the frozen reference model; `same`: engine.precision."""
    column: str | None = None
    """Derived column with the reference's losses and projections (`derive reference`) instead of the model itself: an
    approximation, as its losses belong to other masks."""
    reference: Path | None = None
    """Checkpoint (or run folder: its last good one) of stage `reference`."""

    @model_validator(mode="after")
    def _reference_given(self) -> Self:
        if self.mode != "off" and self.reference is None and self.column is None:
            raise ValueError(
                f"selection.mode is {self.mode!r} but selection.reference is not set; name a checkpoint, or mode=off"
            )
        if (self.start_ratio is None) != (self.ratio_steps == 0):
            raise ValueError("selection.start_ratio and selection.ratio_steps belong together; set both, or neither")
        return self


PAPER_DEFAULTS: dict[str, dict[str, Any]] = {
    "losses": {
        "negatives": "rank",
        "exclude_same_cluster": False,
        "exclude_same_protein": False,
        "denominators": "published",
        "max_logit_scale": 600.0,
    },
    "selection": {"scope": "rank"},
    "data": {"mask_unreliable": False},
}
"""What preset `paper` sets where a config says nothing: the published choices that the default repairs. Published is no
upper bound of the temperature's scale at all; 600 is the largest one allowed."""

C = TypeVar("C", bound=Config)


def with_paper_defaults(config: C) -> C:
    """`config` (a TrainConfig) with every key of `PAPER_DEFAULTS` that was not given set to its published value."""
    sections = {}
    for name, values in PAPER_DEFAULTS.items():
        section: Config = getattr(config, name)
        unsaid = {key: value for key, value in values.items() if key not in section.model_fields_set}
        sections[name] = section.model_copy(update=unsaid)
    return config.model_copy(update=sections)
