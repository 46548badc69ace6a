"""Structure files in tars, read in place.

Compressed archives cannot be read from the middle: the structure files of one are written once into an uncompressed
tar in a cache folder (`cache`, else `$XDG_CACHE_HOME/saplm/archives`), which every process must see.
"""

import bz2
import gzip
import hashlib
import logging
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from configs.errors import UserError
from data_pipeline.sources.entries import Entry, Source, is_structure_name
from data_pipeline.structure.facts import STRUCTURE_SUFFIXES

log = logging.getLogger("data_pipeline")

TAR_SUFFIX = ".tar"
COMPRESSED_TAR_SUFFIXES = (".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
_CHUNK_BYTES = 2**20
_DAMAGE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


def is_archive_name(name: str) -> bool:
    """The name ends like that of a tar, compressed or not, and is not hidden."""
    lower = name.lower().rpartition("/")[2]
    return lower.endswith((TAR_SUFFIX, *COMPRESSED_TAR_SUFFIXES)) and not lower.startswith(".")


def open_archive(path: Path, cache: Path | None = None) -> Source:
    """The source of a tar by its name; `cache` is for the contents of compressed ones."""
    if path.name.lower().endswith(TAR_SUFFIX):
        return TarSource(path)
    return CompressedTarSource(path, cache or cache_home() / "archives")


def cache_home() -> Path:
    """Folder of everything that can be made or fetched again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "saplm"


@dataclass(frozen=True)
class TarSource:
    """Structure files in an uncompressed tar, read in place; of members with one name the last counts, as in tar."""

    path: Path

    def entries(self) -> Iterator[Entry]:
        found = {}
        place = str(self.path)
        try:
            with tarfile.open(self.path, "r:") as archive:
                while (member := archive.next()) is not None:
                    # tarfile keeps every header it has read: a kilobyte for each of millions of members.
                    archive.members = []
                    if _is_structure_member(member):
                        found[member.name] = Entry(member.name, place, member.offset_data, member.size)
                end = archive.offset
            _check_end(self.path, end)
        except _DAMAGE as error:
            raise _damaged(self.path, error) from None
        except OSError as error:
            raise UserError(f"source {self.path}: {error.strerror or error}; make it readable") from None
        if not found:
            raise nothing_in(self.path)
        yield from (found[name] for name in sorted(found))


@dataclass(frozen=True)
class CompressedTarSource:
    """Structure files of a compressed tar, through an uncompressed copy of them in the cache."""

    path: Path
    cache: Path

    def entries(self) -> Iterator[Entry]:
        yield from TarSource(self._uncompressed()).entries()

    def _uncompressed(self) -> Path:
        """The copy, written on first use; its name changes with the archive's place, size and modification time."""
        try:
            stat = self.path.stat()
        except OSError as error:
            raise UserError(f"source {self.path}: {error.strerror or error}; make it readable") from None
        identity = f"{self.path.resolve()}\n{stat.st_size}\n{stat.st_mtime_ns}"
        place = self.cache / f"{self.path.name}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.tar"
        if place.exists():
            return place
        self.cache.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(f"{place.name}.{os.getpid()}.partial")
        log.info("unpacking the structure files of %s once into %s", self.path, place)
        try:
            _copy_structures(self.path, partial)
            # The archive's time, so that what was parsed from a lost and rewritten copy is still known.
            os.utime(partial, ns=(stat.st_mtime_ns, stat.st_mtime_ns))
            os.replace(partial, place)
        finally:
            partial.unlink(missing_ok=True)
        return place


def _copy_structures(compressed: Path, place: Path) -> None:
    """Writes the structure members of a compressed tar into an uncompressed one."""
    copied = 0
    with tarfile.open(place, "w:", format=tarfile.PAX_FORMAT) as copy:
        try:
            with _decompressed(compressed) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
                while (member := archive.next()) is not None:
                    archive.members, copy.members = [], []
                    if _is_structure_member(member):
                        plain = tarfile.TarInfo(member.name)
                        plain.size = member.size
                        copy.addfile(plain, archive.extractfile(member))
                        copied += 1
                # Only the stream's own end shows that nothing is missing: tarfile takes any end for the archive's.
                while stream.read(_CHUNK_BYTES):
                    pass
        except _DAMAGE as error:
            raise _damaged(compressed, error) from None
    if not copied:
        raise nothing_in(compressed)


def _decompressed(path: Path) -> BinaryIO:
    """The archive's bytes, from a reader that raises when the compressed stream is cut."""
    name = path.name.lower()
    if name.endswith(("xz", "txz")):
        return lzma.open(path)
    return bz2.open(path) if name.endswith(("bz2", "tbz2")) else gzip.open(path)


def _check_end(path: Path, offset: int) -> None:
    """A tar ends with blocks of zeros; without them it was cut, which tarfile does not tell.

    Raises:
        tarfile.ReadError: there is no such block at `offset`.
    """
    with open(path, "rb") as file:
        file.seek(offset)
        if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise tarfile.ReadError("no end-of-archive mark")


def _is_structure_member(member: tarfile.TarInfo) -> bool:
    return member.isreg() and not member.issparse() and is_structure_name(member.name)


def nothing_in(place: Path | str) -> UserError:
    """The error for a place without structures."""
    return UserError(
        f"source {place}: no structure files in it; names must end in {', '.join(STRUCTURE_SUFFIXES)} "
        "(also with .gz) or .tar (also compressed); set source.path to where your structures are"
    )


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"source {path}: the archive is damaged or cut ({error}); fetch it again")
