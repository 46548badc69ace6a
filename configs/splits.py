"""Configuration of sequence clusters, splits and the search for leaked evaluation sequences."""

from pydantic import Field

from configs.loading import Config


class SplitConfig(Config):
    """Train / validation / test by sequence cluster: no cluster stands in two splits."""

    validation_fraction: float = Field(default=0.1, ge=0, lt=1)
    test_fraction: float = Field(default=0.1, ge=0, lt=1)
    kmer: int = Field(default=5, ge=3, le=8)
    min_shared_kmers: float = Field(default=0.1, gt=0, le=1)
    """Two chains join a cluster when they share this fraction of the shorter one's k-mers."""
    seed: int = 0
