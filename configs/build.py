"""Configuration of `python -m data_pipeline build`: structures -> shards."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from configs.loading import Config


class SyntheticConfig(Config):
    """Synthetic proteins: folds of ideal secondary structure, families of diverged sequences within each."""

    num_folds: int = Field(default=12, ge=1)
    """Distinct arrangements of helices, strands and loops."""
    families_per_fold: int = Field(default=5, ge=1)
    """Independent sequence families that share a fold (different loops, low identity between families)."""
    members_per_family: int = Field(default=4, ge=1)
    """Diverged members of one family."""
    min_residues: int = Field(default=60, ge=20)
    max_residues: int = Field(default=180, ge=20)
    mutation_rate: float = Field(default=0.3, ge=0.0, le=1.0)
    """Fraction of residues redrawn per family member."""
    seed: int = 0


class SourceConfig(Config):
    """Where structures come from."""

    kind: Literal["synthetic", "files"] = "synthetic"
    """`synthetic`: write mmCIF files of generated proteins first; `files`: read `path`."""
    path: Path | None = None
    """A folder (searched recursively), a tar, or one file of PDB / mmCIF / BinaryCIF, gzipped or not."""
    limit: int | None = Field(default=None, ge=1)
    """Read only the first entries in sorted order."""
    synthetic: SyntheticConfig = SyntheticConfig()

    @model_validator(mode="after")
    def _path_given(self) -> Self:
        if self.kind == "files" and self.path is None:
            raise ValueError("source.kind is 'files' but source.path is not set; add source.path=FOLDER")
        return self


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
    max_geometry_outliers: float = Field(default=0.05, ge=0, le=1)
    """Where resolution or R-free is unknown: largest fraction of residues with bond-length or Ramachandran outliers."""


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


class SplitConfig(Config):
    """Train / validation / test by sequence cluster: no cluster stands in two splits."""

    validation_fraction: float = Field(default=0.1, ge=0, lt=1)
    test_fraction: float = Field(default=0.1, ge=0, lt=1)
    kmer: int = Field(default=5, ge=3, le=8)
    min_shared_kmers: float = Field(default=0.1, gt=0, le=1)
    """Two chains join a cluster when they share this fraction of the shorter one's k-mers."""
    seed: int = 0


class ShardConfig(Config):
    samples_per_shard: int = Field(default=256, ge=1)


class BuildConfig(Config):
    """structures -> shards."""

    source: SourceConfig = SourceConfig()
    filters: FilterConfig = FilterConfig()
    quality: QualityConfig = QualityConfig()
    graphs: tuple[GraphConfig, ...] = (
        GraphConfig(name="radius10", kind="radius", radius=10.0, min_separation=5),
        GraphConfig(name="knn10", kind="knn", neighbours=10, min_separation=5),
    )
    """At least one; the default two are GearNet's structural relations."""
    split: SplitConfig = SplitConfig()
    shards: ShardConfig = ShardConfig()
    output: Path
    """Folder of the shards and manifest.json."""
    structures_per_task: int = Field(default=32, ge=1)
    """Entries parsed by one Ray task; also the unit of resumption."""
    num_workers: int | None = Field(default=None, ge=1)
    """Parallel Ray tasks; default: every CPU of the cluster."""

    @model_validator(mode="after")
    def _graphs_distinct(self) -> Self:
        names = [graph.name for graph in self.graphs]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"graphs: at least one, with distinct names (got {names})")
        return self
