"""Configuration of where structures come from."""

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
