"""Configuration of sequence clusters, splits and the search for leaked evaluation sequences."""

from datetime import date
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from configs.loading import Config


class SplitConfig(Config):
    """Train / validation / test by sequence cluster and date: no cluster stands in two splits. See docs/splits.md."""

    method: Literal["auto", "membership", "mmseqs", "kmers"] = "auto"
    """Where clusters come from: a file (`membership`), MMseqs2, or shared k-mers. `auto`: the file where one is given,
    else MMseqs2 where `mmseqs` is on the PATH, else k-mers; name the method where a build must not depend on that."""
    membership: Path | None = None
    """Table of two columns, cluster and member (TSV or CSV, .gz or not): AFDB clusters, UniRef50, MMseqs2, Foldseek."""
    cluster_column: int = Field(default=1, ge=1)
    """Column of `membership` that names the cluster, counted from 1."""
    member_column: int = Field(default=2, ge=1)
    """Column of `membership` that names the member: a chain's key, its entry, or a UniProt accession."""
    membership_missing: Literal["own_cluster", "one_cluster", "error"] = "own_cluster"
    """Chains that `membership` does not name: each a cluster of its own (identical sequences together), all of them
    one cluster (safest: they cannot leak), or an error."""
    min_identity: float = Field(default=0.3, ge=0, le=1)
    """MMseqs2 links chains with an alignment of at least this sequence identity; linked chains share a cluster."""
    coverage: float = Field(default=0.8, ge=0, le=1)
    """Fraction of residues that a link's alignment covers. K-mers link chains only where the shorter one has at least
    this fraction of the longer one's length."""
    coverage_of: Literal["both", "shorter"] = "both"
    """Whose `coverage`: of both chains, or of the shorter one alone (stricter: links domains with whole proteins)."""
    sensitivity: float = Field(default=5.7, ge=1, le=7.5)
    """MMseqs2's -s."""
    mmseqs_mode: Literal["search", "cluster"] = "search"
    """`search`: all against all, then every linked pair in one cluster; `cluster`: MMseqs2's cascaded clustering with
    connected components, for sets where the search takes too long, which parts some linked pairs."""
    kmer: int = Field(default=5, ge=4, le=6)
    """Letters of a spaced k-mer: fewer find more distant homologs and take longer."""
    validation_fraction: float = Field(default=0.1, ge=0, lt=1)
    test_fraction: float = Field(default=0.1, ge=0, lt=1)
    validation_from: date | None = None
    """Clusters whose every chain was deposited on or after this day are validation (and none by fraction)."""
    test_from: date | None = None
    """Clusters whose every chain was deposited on or after this day are test (and none by fraction)."""
    seed: int = 0

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if self.method == "membership" and self.membership is None:
            raise ValueError("split.method is 'membership' but split.membership is not set; add split.membership=FILE")
        if self.method in ("mmseqs", "kmers") and self.membership is not None:
            raise ValueError(
                f"split.membership is given but split.method is {self.method!r}, which does not read it; "
                "set split.method=membership or remove split.membership"
            )
        if self.cluster_column == self.member_column:
            raise ValueError(
                f"split.cluster_column and split.member_column are both {self.member_column}; name two columns"
            )
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"split.validation_fraction {self.validation_fraction} and split.test_fraction {self.test_fraction} "
                "leave nothing to train on; their sum must be below 1"
            )
        return self

    @model_validator(mode="after")
    def _dates_ordered(self) -> Self:
        if self.validation_from and self.test_from and self.validation_from >= self.test_from:
            raise ValueError(
                f"split.validation_from {self.validation_from} is not before split.test_from {self.test_from}; "
                "validation is the time between the two, so give it the earlier day"
            )
        return self


class LeakageConfig(Config):
    """Search of our chains against sequences kept for evaluation. See docs/splits.md."""

    against: tuple[str, ...] = ()
    """FASTA files (.gz or not) of evaluation sets; none: no search."""
    action: Literal["report", "exclude"] = "report"
    """`exclude` drops the chains found, with reason `leakage`; the report is in the manifest either way."""
    splits: tuple[Literal["train", "validation", "test"], ...] = ("train",)
    """Splits that are searched."""
    exclude_clusters: bool = True
    """`exclude` also drops the cluster mates (in the searched splits) of a chain that was found: they are its
    homologs, so they tell of the same evaluation sequence."""
    method: Literal["auto", "mmseqs", "kmers"] = "auto"
    """How homologs are found; identical sequences, and those that contain one another, are found by either."""
    min_identity: float = Field(default=0.3, ge=0, le=1)
    """Smallest sequence identity of a homolog's alignment."""
    coverage: float = Field(default=0.8, ge=0, le=1)
    """Smallest fraction of the shorter of the two sequences that the alignment covers."""
    sensitivity: float = Field(default=7.5, ge=1, le=7.5)
    """MMseqs2's -s."""
