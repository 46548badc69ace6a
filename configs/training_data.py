"""Which chains a training run sees, and how they are cropped, packed and pooled."""

import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from configs.loading import Config


class CacheConfig(Config):
    """The local copy of shards that lie on remote storage; not used for a local folder."""

    folder: Path | None = None
    """Shared by all processes of a machine; unset: `$XDG_CACHE_HOME/saplm/shards` (~/.cache/saplm/shards)."""
    gigabytes: float = Field(default=50.0, gt=0)
    """The least recently used shards are removed to stay below this (10^9 bytes)."""
    shards_ahead: int = Field(default=8, ge=0)
    """Shards fetched before they are needed, in the order of use."""
    attempts: int = Field(default=5, ge=1)
    """Of every request, with growing pauses, before remote storage counts as unreachable."""


def _folder_or_url(place: str | Path) -> str | Path:
    if isinstance(place, Path):
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(place)):
            raise ValueError(f"{str(place)!r} is a URL given as a Path, which loses a slash; give a string")
        return place
    return place if "://" in place else Path(place)


class ValidationConfig(Config):
    """Losses on chains that are not trained on, taken with every checkpoint."""

    pools: int = Field(default=0, ge=0)
    """Pools of the split's first epoch (always the same chains, crops and masks), or all it has; 0: no validation."""
    split: str = "validation"


class DataConfig(Config):
    """Which chains, how they are cropped, packed and pooled."""

    shards: Annotated[str | Path, Field(union_mode="left_to_right"), AfterValidator(_folder_or_url)]
    """Folder written by `data_pipeline build`, or the URL of one on remote storage (s3://, https://, file://, any that
    fsspec reads)."""
    cache: CacheConfig = CacheConfig()
    split: str = "train"
    high_quality_only: bool = False
    """Only the high-quality subset (the reference model's stage)."""
    max_residues: int = Field(default=2046, ge=8)
    """Longer chains are randomly cropped to this."""
    pack_tokens: int = Field(default=2048, ge=16)
    """Token budget of one pack (residues plus two special tokens per chain)."""
    packs_per_pool: int = Field(default=2, ge=1)
    """Packs that stand together in one contrastive pool, across all ranks; a multiple of the number of workers."""
    pools_per_step: int = Field(default=1, ge=1)
    """Pools (backward passes) accumulated into one optimizer step."""
    mask_fraction: float = Field(default=0.15, gt=0, lt=1)
    mask_unreliable: bool = True
    """Positions that the shards mark as unreliable (low pLDDT, high B-factor) take no part in structure losses."""
    shuffle_window_shards: int | None = Field(default=None, ge=1)
    """Shuffle within windows of so many shards, taken in shuffled order, so that a remote data set larger than the
    cache is fetched once per epoch; choose it so that two windows fit into the cache. Unset: global shuffle."""
    verify: bool = True
    """Check each shard's sha256 on first touch."""

    @model_validator(mode="after")
    def _crop_fits_pack(self) -> Self:
        if self.max_residues + 2 > self.pack_tokens:
            raise ValueError(
                f"data.pack_tokens {self.pack_tokens} cannot hold data.max_residues {self.max_residues} + 2"
            )
        return self
