"""A text file that lists structure files or tars: for servers that cannot be listed, and for hand-picked sets."""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from configs.errors import UserError
from configs.source import RemoteConfig
from data_pipeline.sources.archives import is_archive_name, nothing_in, open_archive
from data_pipeline.sources.downloads import Downloads
from data_pipeline.sources.entries import Entry, is_structure_name
from data_pipeline.sources.remote import RemoteFile, archives_of, is_url, probed, reached

LISTING_SUFFIXES = (".txt", ".list", ".csv", ".tsv")


def is_listing_name(name: str) -> bool:
    """The name ends like that of a list, gzipped or not."""
    return name.lower().removesuffix(".gz").endswith(LISTING_SUFFIXES)


def read_lines(place: str, remote: RemoteConfig) -> Iterator[tuple[int, str]]:
    """Line numbers and first columns of a local or remote text file or table, without comments and empty lines.

    Raises:
        UserError: it cannot be read, or is not text.
    """
    path = Path(place)
    if is_url(place):
        downloads = Downloads(remote)
        version = probed(place, remote)
        path = reached(place, lambda: downloads.fetch(place, version), remote)
    try:
        with gzip.open(path, "rt") if _is_gzipped(path) else open(path) as file:
            for number, line in enumerate(file, start=1):
                text = line.strip().split("\t")[0].split(",")[0].strip().strip('"')
                if text and not text.startswith("#"):
                    yield number, text
    except FileNotFoundError:
        raise UserError(f"source {place}: there is no such file; set source.path to your list") from None
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"source {place}: cannot be read as text ({error}); expected one name per line") from None


def _is_gzipped(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


@dataclass(frozen=True)
class ListingSource:
    """Structure files and tars named one per line (a table: in its first column), by URL or relative to the list."""

    place: str
    remote: RemoteConfig
    cache: Path | None = None

    def entries(self) -> Iterator[Entry]:
        found = self._read()
        if not found:
            raise nothing_in(self.place)
        tars = [(name, where) for name, where in found.items() if is_archive_name(name)]
        remote = iter(archives_of([(w, "") for _, w in sorted(tars) if is_url(w)], self.remote.parallel, self.remote))
        reader = RemoteFile(self.remote)
        for name in sorted(found, key=lambda name: name + "/" * is_archive_name(name)):
            where = found[name]
            if is_archive_name(name):
                members = next(remote) if is_url(where) else open_archive(Path(where), self.cache).entries()
                yield from (replace(member, name=f"{name}/{member.name}") for member in members)
            else:
                yield Entry(name, where, reader=reader if is_url(where) else None)

    def _read(self) -> dict[str, str]:
        """Place by name: the path as it is written, or host and path of a URL."""
        found: dict[str, str] = {}
        is_table = self.place.lower().removesuffix(".gz").endswith((".csv", ".tsv"))
        for number, text in read_lines(self.place, self.remote):
            path = urlsplit(text).path if is_url(text) else text
            if not (is_structure_name(path) or is_archive_name(path)):
                if is_table and number == 1:
                    continue
                raise UserError(
                    f"{self.place}:{number}: {text[:80]!r} names neither a structure file nor a tar; expected one path "
                    "or URL per line, ending like .cif.gz, .bcif, .pdb or .tar"
                )
            name = urlsplit(text).netloc + path if is_url(text) else path.removeprefix("./")
            found[name.lstrip("/")] = text if is_url(text) else self._beside(text)
        return found

    def _beside(self, relative: str) -> str:
        if is_url(self.place):
            return f"{self.place.rpartition('/')[0]}/{relative.removeprefix('./')}"
        return str(Path(self.place).absolute().parent / relative)
