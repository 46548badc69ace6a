"""Configuration of `python -m data_pipeline build`: structures -> shards."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from configs.loading import Config
from configs.source import SourceConfig
from configs.splits import LeakageConfig, SplitConfig


class FilterConfig(Config):
    """What makes a chain unfit for training; every drop is counted by reason."""

    min_residues: int = Field(default=30, ge=1)
    max_residues: int = Field(default=4096, ge=1)
    max_missing_fraction: float = Field(default=0.2, ge=0.0, le=1.0)
    """Largest fraction of residues without complete N, CA, C backbone."""
    max_unknown_fraction: float = Field(default=0.2, ge=0.0, le=1.0)
    """Largest fraction of residues of unknown type (X)."""
    drop_identical: bool = True
    """Keep one chain (the first key in sorted order) of each set with identical sequence."""


class QualityConfig(Config):
    """The high-quality subset, on which the reference model is trained."""

    max_resolution: float = Field(default=2.5, gt=0)
    """Angstrom."""
    max_r_free: float = Field(default=0.28, gt=0)
    min_plddt: float = Field(default=80.0, ge=0, le=100)
    """Mean pLDDT of a predicted model."""
    max_missing_fraction: float = Field(default=0.05, ge=0, le=1)
    min_observed_fraction: float = Field(default=0.7, ge=0, le=1)
    """Of an experiment: residues with coordinates over those of the entry's sequence record."""
    max_geometry_outliers: float = Field(default=0.05, ge=0, le=1)
    """Where resolution or R-free is unknown: largest fraction of residues with bond-length or Ramachandran outliers."""


class ReliabilityConfig(Config):
    """Which residues of a kept chain have positions to learn from; the others are masked, never dropped."""

    min_plddt: float = Field(default=70.0, ge=0, le=100)
    """Of a predicted model's residue."""
    max_bfactor: float | None = Field(default=120.0, gt=0)
    """Square Angstrom, of an experiment's residue; null: no limit. Where every B-factor is equal, none is known."""


class GraphConfig(Config):
    """One precomputed residue graph over CA atoms."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    kind: Literal["radius", "knn"]
    radius: float | None = Field(default=None, gt=0)
    """Angstrom, for kind `radius`."""
    neighbours: int | None = Field(default=None, ge=1)
    """K, for kind `knn`."""
    min_separation: int = Field(default=1, ge=1)
    """Smallest |i - j| along the sequence."""

    @model_validator(mode="after")
    def _parameter_fits_kind(self) -> Self:
        needed = "radius" if self.kind == "radius" else "neighbours"
        if getattr(self, needed) is None:
            raise ValueError(f"graph {self.name!r} of kind {self.kind!r} needs {needed!r}")
        return self


class ShardConfig(Config):
    samples_per_shard: int = Field(default=256, ge=1)


class BuildConfig(Config):
    """structures -> shards."""

    source: SourceConfig = SourceConfig()
    filters: FilterConfig = FilterConfig()
    quality: QualityConfig = QualityConfig()
    reliability: ReliabilityConfig = ReliabilityConfig()
    graphs: tuple[GraphConfig, ...] = (
        GraphConfig(name="radius10", kind="radius", radius=10.0, min_separation=5),
        GraphConfig(name="knn10", kind="knn", neighbours=10, min_separation=5),
        GraphConfig(name="radius8", kind="radius", radius=8.0),
    )
    """At least one; the default three are GearNet's structural relations and PST's contact graph. GearNet's sequential
    relations follow from the number of residues, so they take no room."""
    backbone_features: bool = True
    """Store dihedral angles and frames of the backbone (14 bytes a residue), as GVP wants them."""
    split: SplitConfig = SplitConfig()
    leakage: LeakageConfig = LeakageConfig()
    shards: ShardConfig = ShardConfig()
    output: Path
    """Folder of the shards and manifest.json."""
    structures_per_task: int = Field(default=128, ge=1)
    """Entries parsed by one Ray task; also the unit of resumption."""
    seconds_per_structure: float = Field(default=120.0, gt=0)
    """A structure file that takes longer to read and parse is rejected as `timed_out`."""
    num_workers: int | None = Field(default=None, ge=1)
    """Parallel Ray tasks; default: every CPU of the cluster."""

    @model_validator(mode="after")
    def _graphs_distinct(self) -> Self:
        names = [graph.name for graph in self.graphs]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"graphs: at least one, with distinct names (got {names})")
        return self
