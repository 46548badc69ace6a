"""Configuration of where structures come from."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from configs.loading import Config


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


Place = Annotated[str, BeforeValidator(_as_text)]
"""A local path or a URL: text, because a Path would make one slash of `s3://`'s two."""


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


class RemoteConfig(Config):
    """How files are fetched from elsewhere; nothing here can change a byte of the shards."""

    cache: Path | None = None
    """Folder for what was fetched, with a hash of each; every process of the build must see it. Default:
    `$XDG_CACHE_HOME/saplm/downloads`."""
    keep: bool = True
    """Keep fetched structure files after they were read; false saves room when millions are read once."""
    parallel: int = Field(default=8, ge=1, le=256)
    """Downloads at a time in one process."""
    requests_per_second: float | None = Field(default=20.0, gt=0)
    """To one host, by all processes that share the cache folder together; null: no limit."""
    attempts: int = Field(default=6, ge=1)
    """Failures in a row, without a new byte in between, after which a file is given up."""
    backoff_seconds: float = Field(default=0.5, gt=0)
    """Longest pause after the first failure; it doubles with each further one, up to a minute."""
    timeout_seconds: float = Field(default=60.0, gt=0)
    """Silence of a server that counts as a failure (HTTP; other protocols have their own limits)."""
    options: dict[str, str | int | float | bool] = {}
    """Passed to the protocol's fsspec file system, e.g. `{anon: true}` for a public s3:// bucket, `{token: anon}` for a
    public gs:// one."""


class SourceConfig(Config):
    """Where structures come from."""

    kind: Literal["synthetic", "files", "accessions", "foldcomp"] = "synthetic"
    """`synthetic`: write mmCIF files of generated proteins first; `files`: read the structure files at `path`;
    `accessions`: the AlphaFold models of the UniProt accessions listed at `path`; `foldcomp`: a Foldcomp database."""
    path: Place | None = None
    """files: a folder (searched recursively, tars in it too), a tar, one file of PDB / mmCIF / BinaryCIF (gzipped or
    not), or a list of such places (.txt, .list, .csv); local or a URL of any protocol that fsspec knows.
    accessions: a text file or table with accessions in its first column. foldcomp: the database's data file."""
    limit: int | None = Field(default=None, ge=1)
    """Read only the first entries in the source's order (by name; a Foldcomp database's own order)."""
    structures: Place | None = None
    """accessions: where their models are, in any form `files` reads, or a Foldcomp database; null: ask `api`."""
    api: str = "https://alphafold.ebi.ac.uk/api/prediction/{accession}"
    """accessions: address that answers with a JSON list of models, each with the address and version of its file."""
    model_format: Literal["cif", "bcif"] = "cif"
    """accessions through `api`: the form of file to fetch, mmCIF or BinaryCIF."""
    remote: RemoteConfig = RemoteConfig()
    synthetic: SyntheticConfig = SyntheticConfig()

    @model_validator(mode="after")
    def _fields_fit_kind(self) -> Self:
        if self.kind != "synthetic" and not self.path:
            example = {"files": "FOLDER", "accessions": "LIST.txt", "foldcomp": "DATABASE"}[self.kind]
            raise ValueError(f"source.kind is {self.kind!r} but source.path is not set; add source.path={example}")
        if self.structures and self.kind != "accessions":
            raise ValueError(f"source.structures belongs to kind 'accessions' (got {self.kind!r}); use source.path")
        if "{accession}" not in self.api:
            raise ValueError(f"source.api must hold '{{accession}}' (got {self.api!r})")
        return self
