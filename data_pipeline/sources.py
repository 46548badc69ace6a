"""Where structure files come from: a folder, a tar archive or one file, listed as small values any process can read.

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
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

from configs.errors import UserError
from data_pipeline.structure.chain import StructureError
from data_pipeline.structure.facts import STRUCTURE_SUFFIXES

log = logging.getLogger("data_pipeline")

TAR_SUFFIX = ".tar"
COMPRESSED_TAR_SUFFIXES = (".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
_CHUNK_BYTES = 2**20
_DAMAGE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


@dataclass(frozen=True)
class Entry:
    """One structure file: the whole of `path`, or `length` bytes from `offset` in it."""

    name: str
    """Path relative to the source's root, or the member's name in a tar; `/` separates folders."""
    path: str
    offset: int | None = None
    length: int | None = None


class Source(Protocol):
    """Structure files in a fixed order."""

    def entries(self) -> Iterator[Entry]:
        """Every file whose name ends like a structure's, sorted by name.

        Raises:
            UserError: there is none, or the archive is damaged.
        """
        ...


def open_source(path: Path, cache: Path | None = None) -> Source:
    """The source at a path: a folder (searched recursively), a tar (.gz, .xz, .bz2 or uncompressed), or one file.

    Args:
        cache: folder for the contents of compressed archives.

    Raises:
        UserError: there is nothing at the path, or it is a file of no known kind.
    """
    if not path.exists():
        raise UserError(f"source {path}: there is no such file or folder; set source.path to where your structures are")
    if path.is_dir():
        return FolderSource(path)
    name = path.name.lower()
    if name.endswith(COMPRESSED_TAR_SUFFIXES):
        return CompressedTarSource(path, cache or _default_cache())
    if name.endswith(TAR_SUFFIX):
        return TarSource(path)
    if is_structure_name(name):
        return FileSource(path)
    allowed = ", ".join((*STRUCTURE_SUFFIXES, TAR_SUFFIX, *COMPRESSED_TAR_SUFFIXES))
    raise UserError(f"source {path}: not a folder, and its name ends in none of {allowed} (structures also with .gz)")


def read_entry(entry: Entry) -> bytes:
    """The entry's bytes as they are stored (gzipped files stay gzipped).

    Raises:
        StructureError: `unreadable`, when the file has gone or is shorter than when it was listed.
    """
    try:
        with open(entry.path, "rb") as file:
            if entry.offset is None:
                return file.read()
            file.seek(entry.offset)
            data = file.read(entry.length)
    except OSError as error:
        raise StructureError("unreadable", f"{error.strerror or error}: {entry.path}") from None
    if len(data) != entry.length:
        raise StructureError("unreadable", f"{entry.path} is shorter than when it was listed")
    return data


def is_structure_name(name: str) -> bool:
    """The name ends like that of a PDB, mmCIF or BinaryCIF file, gzipped or not, and is not hidden."""
    lower = PurePosixPath(name.lower()).name
    return lower.removesuffix(".gz").endswith(STRUCTURE_SUFFIXES) and not lower.startswith(".")


@dataclass(frozen=True)
class FolderSource:
    """Every structure file below a folder; hidden files and folders are left out."""

    path: Path

    def entries(self) -> Iterator[Entry]:
        names = []
        for folder, folders, files in os.walk(self.path):
            folders[:] = [name for name in folders if not name.startswith(".")]
            names += [Path(folder, name).relative_to(self.path).as_posix() for name in files if is_structure_name(name)]
        if not names:
            raise _nothing_in(self.path)
        for name in sorted(names):
            yield Entry(name, str(self.path / name))


@dataclass(frozen=True)
class FileSource:
    """One structure file."""

    path: Path

    def entries(self) -> Iterator[Entry]:
        yield Entry(self.path.name, str(self.path))


@dataclass(frozen=True)
class TarSource:
    """Structure files in an uncompressed tar, read in place; of members with one name the last counts, as in tar."""

    path: Path

    def entries(self) -> Iterator[Entry]:
        found = {}
        try:
            with tarfile.open(self.path, "r:") as archive:
                for member in archive:
                    if _is_structure_member(member):
                        found[member.name] = Entry(member.name, str(self.path), member.offset_data, member.size)
                end = archive.offset
            _check_end(self.path, end)
        except _DAMAGE as error:
            raise _damaged(self.path, error) from None
        if not found:
            raise _nothing_in(self.path)
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
        stat = self.path.stat()
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
                for member in archive:
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
        raise _nothing_in(compressed)


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


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "saplm" / "archives"


def _nothing_in(path: Path) -> UserError:
    return UserError(
        f"source {path}: no structure files in it; names must end in {', '.join(STRUCTURE_SUFFIXES)} "
        "(also with .gz); set source.path to where your structures are"
    )


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"source {path}: the archive is damaged or cut ({error}); fetch it again")
