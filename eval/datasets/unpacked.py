"""Archives of datasets, unpacked once into a cache that all processes share."""

import gzip
import hashlib
import json
import lzma
import os
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PurePosixPath

from configs.errors import UserError

SUFFIXES = (".tar.xz", ".tar.gz", ".tgz", ".tar.bz2", ".tar")
MAX_FILE_BYTES = 4 * 2**30
"""Of one unpacked file; what is larger is no benchmark of labels."""
MAX_ARCHIVE_BYTES = 32 * 2**30
MAX_FILES = 500_000
_INDEX = "index.json"
_DAMAGE = (tarfile.TarError, lzma.LZMAError, zlib.error, gzip.BadGzipFile, EOFError, OSError)


def is_archive(path: Path) -> bool:
    """Whether its name says that it is one that `unpacked` takes."""
    return path.name.endswith(SUFFIXES)


def cache_folder() -> Path:
    """$SAPLM_CACHE, else `saplm` in the user's folder of caches."""
    named = os.environ.get("SAPLM_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "saplm"


def unpacked(archive: Path) -> tuple[Path, dict[str, int]]:
    """Folder with the archive's regular files, and their sizes in bytes by path.

    Its hash names the folder in the cache, so a process decompresses it at most once, and only where no other has.
    Links and devices are left out; the folder appears whole or not at all.

    Raises:
        UserError: the archive is damaged, too large, or would write outside; or the cache cannot be written.
    """
    try:
        stat = archive.stat()
    except OSError as error:
        raise UserError(f"archive {archive}: cannot be read ({error.strerror}); fetch it again") from None
    folder = cache_folder() / "unpacked" / _digest(archive, stat.st_size, stat.st_mtime_ns)
    if not (folder / _INDEX).is_file():
        _unpack(archive, folder)
    return folder / "files", json.loads((folder / _INDEX).read_text())


@contextmanager
def damage_named(what: str) -> Iterator[None]:
    """Errors of reading compressed data become one line for people."""
    try:
        yield
    except _DAMAGE as error:
        raise UserError(f"{what}: cannot be read ({error}); it is damaged or incomplete: fetch it again") from None


@cache
def _digest(archive: Path, size: int, mtime_ns: int) -> str:
    with damage_named(f"archive {archive}"), archive.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpack(archive: Path, folder: Path) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=folder.parent))
    except OSError as error:
        raise UserError(
            f"cache {folder.parent}: cannot be written ({error.strerror}); name another folder by SAPLM_CACHE"
        ) from None
    try:
        with damage_named(f"archive {archive}"), tarfile.open(archive, "r|*") as tar:
            sizes = _extract(tar, scratch / "files", archive)
        (scratch / _INDEX).write_text(json.dumps(sizes, sort_keys=True))
        try:
            scratch.rename(folder)
        except OSError:
            # Another process was faster; its copy is of the same bytes.
            if not (folder / _INDEX).is_file():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _extract(tar: tarfile.TarFile, into: Path, archive: Path) -> dict[str, int]:
    sizes: dict[str, int] = {}
    total = 0
    into.mkdir()
    for member in tar:
        if not member.isreg():
            continue
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts or "\\" in member.name or not path.parts:
            raise UserError(f"archive {archive}: {member.name!r} lies outside of it; do not use this archive")
        sizes[path.as_posix()] = member.size
        total += member.size
        if member.size > MAX_FILE_BYTES or total > MAX_ARCHIVE_BYTES or len(sizes) > MAX_FILES:
            raise UserError(
                f"archive {archive}: {member.name!r} goes beyond what is unpacked ({MAX_FILES:,} files, "
                f"{MAX_FILE_BYTES / 2**30:g} GiB each, {MAX_ARCHIVE_BYTES / 2**30:g} GiB in all); unpack it yourself"
            )
        target = into / path
        target.parent.mkdir(parents=True, exist_ok=True)
        source = tar.extractfile(member)
        assert source is not None, member.name
        with target.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
    return sizes
