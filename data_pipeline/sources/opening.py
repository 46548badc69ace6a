"""The source that a configuration or a place means."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from configs.errors import UserError
from configs.source import RemoteConfig, SourceConfig
from data_pipeline.sources.accessions import AccessionsFromApi, AccessionsFromFiles
from data_pipeline.sources.archives import COMPRESSED_TAR_SUFFIXES, TAR_SUFFIX, is_archive_name, open_archive
from data_pipeline.sources.entries import Source, is_structure_name
from data_pipeline.sources.foldcomp_database import FoldcompSource, is_foldcomp_database
from data_pipeline.sources.listing import LISTING_SUFFIXES, ListingSource, is_listing_name
from data_pipeline.sources.local import FileSource, FolderSource
from data_pipeline.sources.remote import (
    RemoteArchiveSource,
    RemoteFileSource,
    RemoteFolderSource,
    basename,
    is_url,
    resolved,
)
from data_pipeline.structure.facts import STRUCTURE_SUFFIXES

DEFAULT_SECONDS = 120.0


def configured_source(config: SourceConfig, seconds: float = DEFAULT_SECONDS) -> Source:
    """The source of kind `files`, `accessions` or `foldcomp`.

    Args:
        seconds: given to the decompression of one Foldcomp entry.

    Raises:
        UserError: there is nothing at the path, or nothing that can be read.
    """
    assert config.path is not None
    remote = resolved(config.remote)
    if config.kind == "files":
        return open_source(config.path, remote=remote, limited=config.limit is not None)
    place = local_path(config.path)
    if config.kind == "foldcomp":
        return FoldcompSource(_local_only(place).absolute(), seconds)
    listed = config.path if isinstance(place, str) else str(place.absolute())
    if config.structures is None:
        return AccessionsFromApi(listed, remote, config.api, config.model_format)
    structures = config.structures
    return AccessionsFromFiles(listed, remote, lambda: open_source(structures, remote=remote, seconds=seconds))


def open_source(
    place: str | Path,
    cache: Path | None = None,
    remote: RemoteConfig | None = None,
    limited: bool = False,
    seconds: float = DEFAULT_SECONDS,
) -> Source:
    """The source at a path or URL: a folder, a tar, one file, a list of them, or a Foldcomp database.

    Args:
        cache: folder for the contents of compressed archives.
        limited: only the first entries will be consumed: fetch no archive ahead of its turn.

    Raises:
        UserError: there is nothing at the path, or it is a file of no known kind.
    """
    remote = resolved(remote or RemoteConfig())
    path = local_path(str(place))
    if isinstance(path, str):
        return _open_url(path, remote, limited)
    if not path.exists():
        raise UserError(f"source {path}: there is no such file or folder; set source.path to where your structures are")
    # Ray workers have another working directory.
    path = path.absolute()
    if path.is_dir():
        return FolderSource(path, cache)
    name = path.name.lower()
    if is_archive_name(name):
        return open_archive(path, cache)
    if is_structure_name(name):
        return FileSource(path)
    if is_foldcomp_database(path):
        return FoldcompSource(path, seconds)
    if is_listing_name(name):
        return ListingSource(str(path), remote, cache)
    allowed = ", ".join((*STRUCTURE_SUFFIXES, TAR_SUFFIX, *COMPRESSED_TAR_SUFFIXES, *LISTING_SUFFIXES))
    raise UserError(f"source {path}: not a folder, and its name ends in none of {allowed} (structures also with .gz)")


def local_path(place: str) -> Path | str:
    """A Path where the place is on this machine (`file://` too), else its URL."""
    if place.lower().startswith("file://"):
        return Path(unquote(urlsplit(place).path))
    return place if is_url(place) else Path(place)


def _open_url(url: str, remote: RemoteConfig, limited: bool) -> Source:
    name = basename(url)
    if is_archive_name(name):
        return RemoteArchiveSource(url, remote)
    if is_structure_name(name):
        return RemoteFileSource(url, remote)
    if is_listing_name(name):
        return ListingSource(url, remote)
    return RemoteFolderSource(url, remote, 1 if limited else remote.parallel)


def _local_only(place: Path | str) -> Path:
    if isinstance(place, str):
        raise UserError(f"source {place}: a Foldcomp database must be local; download its files and set source.path")
    return place
