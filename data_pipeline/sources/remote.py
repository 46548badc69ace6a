"""Structure files behind URLs: listed by the driver, fetched by the process that parses them."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from configs.errors import UserError
from configs.source import RemoteConfig
from data_pipeline.sources.archives import cache_home, is_archive_name, nothing_in, open_archive
from data_pipeline.sources.downloads import Downloads, fetched_ahead
from data_pipeline.sources.entries import Entry, is_structure_name
from data_pipeline.sources.transport import (
    InterruptedDownloadError,
    MissingError,
    RefusedError,
    described,
    file_system,
    is_http,
    mapped_errors,
    patiently,
    state_of,
)
from data_pipeline.structure.chain import StructureError

log = logging.getLogger("data_pipeline")
T = TypeVar("T")

UNREADABLE = "unreadable"
NOT_FOUND = "not_found"


def is_url(place: str) -> bool:
    """The place names a protocol; `file://` too."""
    return "://" in place


def basename(url: str) -> str:
    """Last part of a URL's path, without its query."""
    return unquote(urlsplit(url).path.rstrip("/").rpartition("/")[2])


def resolved(remote: RemoteConfig) -> RemoteConfig:
    """The same with its cache folder set and absolute, for processes with another working directory or environment."""
    cache = cache_home() / "downloads" if remote.cache is None else remote.cache.absolute()
    return remote.model_copy(update={"cache": cache})


@dataclass(frozen=True)
class RemoteFile:
    """Reads an entry whose `path` is a URL through the download cache."""

    remote: RemoteConfig
    kind: str = "remote"

    @property
    def parallel(self) -> int:
        return self.remote.parallel

    def read(self, entry: Entry) -> tuple[str, bytes]:
        return entry.name, download(Downloads(self.remote), entry.path, entry.version)


def download(downloads: Downloads, url: str, version: str = "") -> bytes:
    """Bytes at a URL.

    Raises:
        StructureError: `not_found` where there is nothing, `unreadable` after all attempts; both name URL and cause.
    """
    try:
        return downloads.read(url, version)
    except MissingError as error:
        raise StructureError(NOT_FOUND, str(error)) from None
    except (RefusedError, InterruptedDownloadError) as error:
        raise StructureError(UNREADABLE, str(error)) from None


@dataclass(frozen=True)
class RemoteFileSource:
    """One structure file at a URL."""

    url: str
    remote: RemoteConfig

    def entries(self) -> Iterator[Entry]:
        version = probed(self.url, self.remote)
        yield Entry(basename(self.url), self.url, version=version, reader=RemoteFile(self.remote))


@dataclass(frozen=True)
class RemoteArchiveSource:
    """A tar at a URL, fetched whole when it is listed: only reading a tar tells what is in it."""

    url: str
    remote: RemoteConfig

    def entries(self) -> Iterator[Entry]:
        version = probed(self.url, self.remote)
        for place in archives_of([(self.url, version)], 1, self.remote):
            yield from place


@dataclass(frozen=True)
class RemoteFolderSource:
    """Structure files and tars below a URL that its protocol can list, folder by folder in name order.

    Over HTTP the listing is the links of an index page, as web servers make it. Tars of one folder are fetched
    `parallel` at a time, ahead of their turn.
    """

    url: str
    remote: RemoteConfig
    parallel: int

    def entries(self) -> Iterator[Entry]:
        system, root = file_system(self.url, self.remote)
        system.invalidate_cache()
        empty = True
        for entry in self._below(system, root.rstrip("/"), ""):
            empty = False
            yield entry
        if empty:
            raise nothing_in(self.url)

    def _below(self, system: Any, folder: str, prefix: str) -> Iterator[Entry]:
        rows = self._listed(system, folder)
        tars = [(url, version) for name, url, version in rows if is_archive_name(name)]
        archives = archives_of(tars, self.parallel, self.remote)
        reader = RemoteFile(self.remote)
        for name, url, version in rows:
            if name.endswith("/"):
                yield from self._below(system, f"{folder}/{name}".rstrip("/"), prefix + name)
            elif is_archive_name(name):
                yield from (replace(member, name=f"{prefix}{name}/{member.name}") for member in next(archives))
            else:
                yield Entry(prefix + name, url, version=version, reader=reader)

    def _listed(self, system: Any, folder: str) -> list[tuple[str, str, str]]:
        """Name (folders end in `/`), URL and version of what lies in a folder, in the order of full paths."""

        def listing() -> list:
            with mapped_errors(self.url):
                return system.ls(f"{folder}/" if is_http(self.url) else folder, detail=True)

        found = {}
        for row in reached(f"{self.url} ({folder})", lambda: patiently(listing, self.remote), self.remote):
            name = row["name"].removesuffix("/").removeprefix(f"{folder}/")
            is_folder = row["type"] == "directory"
            # Index pages also link to their parents, and to themselves in another order.
            if "/" in name or "?" in name or "#" in name or not name or name.startswith("."):
                continue
            if is_folder or is_structure_name(name) or is_archive_name(name):
                url = system.unstrip_protocol(row["name"])
                found[unquote(name) + "/" * is_folder] = (url, described(row))
        return [(name, *found[name]) for name in sorted(found, key=lambda name: name + "/" * is_archive_name(name))]


def archives_of(urls: list[tuple[str, str]], parallel: int, remote: RemoteConfig) -> Iterator[Iterator[Entry]]:
    """Members of each tar; entries lie in the cached copies, whose hash is their version."""
    downloads = Downloads(remote)
    paths = fetched_ahead(downloads, urls, parallel) if urls else iter(())
    for url, _ in urls:
        log.info("fetching %s", url)
        path = reached(url, lambda: next(paths), remote)
        assert remote.cache is not None
        members = open_archive(path, remote.cache / "archives").entries()
        version = downloads.sha256(url)
        yield (replace(member, version=version) for member in members)


def probed(url: str, remote: RemoteConfig) -> str:
    """State of the file at a URL as one line; raises as `reached`."""
    return reached(url, lambda: patiently(lambda: state_of(url, remote), remote), remote)


def reached(place: str, action: Callable[[], T], remote: RemoteConfig) -> T:
    """The action's result; what goes wrong before the build has begun is the user's to mend.

    Raises:
        UserError: nothing there, no access, or no answer after all attempts.
    """
    try:
        return action()
    except MissingError as error:
        raise UserError(
            f"source {place}: there is nothing there ({error}); set source.path to what exists, or, where a web server "
            "shows no index pages, to a .txt list of its files"
        ) from None
    except RefusedError as error:
        raise UserError(
            f"source {place}: access refused ({error}); check the address, your credentials and source.remote.options"
        ) from None
    except InterruptedDownloadError as error:
        raise UserError(
            f"source {place}: cannot be reached after {remote.attempts} attempts ({error}); check address and network, "
            "or raise source.remote.attempts"
        ) from None
