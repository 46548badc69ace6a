"""Files of datasets wherever they lie: a folder, an archive, a zip, a single file, or a repository of the hub."""

import fnmatch
import gzip
import hashlib
import io
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath

from configs.errors import UserError
from eval.datasets.records import Files
from eval.datasets.unpacked import MAX_FILE_BYTES, damage_named, is_archive, unpacked

HUB = "hf://datasets/"
_ZIP = ".zip/"


def open_files(place: str | Path) -> Files:
    """Files of a folder, an archive (.tar.xz, .tar.gz, .zip), one file, or hf://datasets/ORG/NAME[@REVISION].

    A folder presents the content of the tar archives at its top as if they were unpacked beside its own files, and
    every zip file as a folder named after it; files of the hub are fetched when they are read, and kept by
    `huggingface_hub`.

    Raises:
        UserError: there is no such place, or the hub does not give it.
    """
    if str(place).startswith(HUB):
        from eval.datasets.hub import open_hub

        return open_hub(str(place))
    if "://" in str(place):
        raise UserError(
            f"source {str(place)!r}: allowed are a folder, a file, an archive, and {HUB}ORG/NAME[@REVISION]"
        )
    path = Path(place).expanduser()
    if path.is_dir():
        return FolderFiles(path)
    if not path.is_file():
        raise UserError(f"source {place}: no such file or folder; name where the dataset lies")
    if is_archive(path):
        folder, sizes = unpacked(path)
        return Tree(str(path), sorted(sizes), lambda name: folder / name)
    if path.suffix == ".zip":
        members = _zip_members(path)
        return Tree(str(path), [name for name in members if name], lambda name: path, inside=True)
    return Tree(str(path), [path.name], lambda name: path)


def matching(files: Files, pattern: str) -> list[str]:
    """Paths that a pattern with `*`, `?` or `[...]` names, sorted; or the one that a plain path names."""
    if not any(sign in pattern for sign in "*?["):
        return [pattern] if files.has(pattern) else []
    fixed = pattern[: min(pattern.find(sign) for sign in "*?[" if sign in pattern)]
    return [name for name in files.names(fixed) if fnmatch.fnmatchcase(name, pattern)]


class Tree:
    """Files whose names are known; `locate` gives a file's path on this machine, fetching it where need be."""

    def __init__(self, place: str, names: list[str], locate: Callable[[str], Path], inside: bool = False) -> None:
        self._place, self._names, self._locate = place, frozenset(names), locate
        self._inside = inside
        """Names are members of the one zip file that `locate` gives."""

    def has(self, path: str) -> bool:
        """Whether `read` finds it."""
        if path in self._names:
            return True
        zipped, _, member = path.partition(_ZIP)
        return bool(member) and zipped + ".zip" in self._names and member in _zip_members(self._locate(zipped + ".zip"))

    def names(self, prefix: str = "") -> list[str]:
        """Paths that begin with `prefix`; members of a zip file are listed where `prefix` reaches into it."""
        zipped, inside, _ = prefix.partition(_ZIP)
        if inside and zipped + ".zip" in self._names:
            members = _zip_members(self._locate(zipped + ".zip"))
            return sorted(name for name in (f"{zipped}{_ZIP}{member}" for member in members) if name.startswith(prefix))
        return sorted(name for name in self._names if name.startswith(prefix))

    def read(self, path: str) -> bytes:
        """Content, decompressed."""
        if not self.has(path):
            raise UserError(f"{self._place}: holds no {path!r}; get the dataset's files whole")
        if self._inside:
            return _read_member(self._locate(path), path)
        if path in self._names:
            return _read_plain(self._locate(path), path)
        zipped, _, member = path.partition(_ZIP)
        return _read_member(self._locate(zipped + ".zip"), member)


class FolderFiles:
    """Files of a folder and of the tar archives at its top, which are unpacked when something is not found beside."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._archives: list[Tree] | None = None

    def has(self, path: str) -> bool:
        """Whether `read` finds it."""
        return self._on_disk(path) is not None or any(tree.has(path) for tree in self._trees())

    def names(self, prefix: str = "") -> list[str]:
        """Paths that begin with `prefix`; members of a zip file are listed where `prefix` reaches into it."""
        zipped, inside, _ = prefix.partition(_ZIP)
        own = self._on_disk(zipped + ".zip") if inside else None
        if own is not None:
            found = {f"{zipped}{_ZIP}{member}" for member in _zip_members(own)}
        else:
            start = self._folder / PurePosixPath(prefix).parent if not prefix.endswith("/") else self._folder / prefix
            walk = os.walk(start) if ".." not in PurePosixPath(prefix).parts else ()
            found = {
                (Path(top) / name).relative_to(self._folder).as_posix() for top, _, names in walk for name in names
            }
        for tree in self._trees():
            found.update(tree.names(prefix))
        return sorted(name for name in found if name.startswith(prefix))

    def read(self, path: str) -> bytes:
        """Content, decompressed."""
        own = self._on_disk(path)
        if own is not None:
            _, _, member = path.partition(_ZIP)
            return _read_member(own, member) if own.suffix == ".zip" and member else _read_plain(own, path)
        for tree in self._trees():
            if tree.has(path):
                return tree.read(path)
        raise UserError(f"{self._folder}: holds no {path!r}; get the dataset's files whole")

    def _walked(self, prefix: str) -> Iterator[str]:
        """Own files in and below the folder in which names with this beginning lie."""
        folder = prefix.rpartition("/")[0]
        if ".." in PurePosixPath(folder).parts or PurePosixPath(folder).is_absolute():
            return
        for top, _, names in os.walk(self._folder / folder):
            yield from ((Path(top) / name).relative_to(self._folder).as_posix() for name in names)

    def _on_disk(self, path: str) -> Path | None:
        """The file, or the zip file of which it is a member."""
        parts = PurePosixPath(path)
        if parts.is_absolute() or ".." in parts.parts:
            return None
        if (self._folder / path).is_file():
            return self._folder / path
        zipped, _, member = path.partition(_ZIP)
        archive = self._folder / (zipped + ".zip")
        return archive if member and archive.is_file() and member in _zip_members(archive) else None

    def _trees(self) -> list[Tree]:
        if self._archives is None:
            trees = []
            for archive in sorted(path for path in self._folder.iterdir() if path.is_file() and is_archive(path)):
                folder, sizes = unpacked(archive)
                trees.append(Tree(str(archive), sorted(sizes), folder.joinpath))
            self._archives = trees
        return self._archives


class Recorded:
    """Files that remember the hash of everything read."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._digests: dict[str, str] = {}

    def has(self, path: str) -> bool:
        """As of the files."""
        return self._files.has(path)

    def names(self, prefix: str = "") -> list[str]:
        """As of the files."""
        return self._files.names(prefix)

    def read(self, path: str) -> bytes:
        """As of the files, noted."""
        content = self._files.read(path)
        self._digests[path] = hashlib.sha256(content).hexdigest()
        return content

    def sha256(self) -> str:
        """Of all content read so far, by name and independent of order and place."""
        text = "\n".join(f"{name} {digest}" for name, digest in sorted(self._digests.items()))
        return hashlib.sha256(text.encode()).hexdigest()


def _read_plain(path: Path, name: str) -> bytes:
    with damage_named(f"file {path}"):
        if name.endswith(".gz") and not is_archive(Path(name)):
            with gzip.open(path) as file:
                content = file.read(MAX_FILE_BYTES + 1)
        else:
            with path.open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
    return _of_allowed_size(content, name)


def _read_member(archive: Path, member: str) -> bytes:
    with _opened(archive) as zipped:
        info = zipped.getinfo(member)
        if info.file_size > MAX_FILE_BYTES:
            raise UserError(_too_large(f"{archive}/{member}"))
        content = zipped.read(info)
    if member.endswith(".gz"):
        with damage_named(f"file {archive}/{member}"), gzip.open(io.BytesIO(content)) as file:
            content = file.read(MAX_FILE_BYTES + 1)
    return _of_allowed_size(content, member)


@lru_cache(maxsize=64)
def _members_at(archive: Path, size: int, mtime_ns: int) -> frozenset[str]:
    with _opened(archive) as zipped:
        return frozenset(info.filename for info in zipped.infolist() if not info.is_dir())


def _zip_members(archive: Path) -> frozenset[str]:
    stat = archive.stat()
    return _members_at(archive, stat.st_size, stat.st_mtime_ns)


@contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(archive) as zipped:
            yield zipped
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, NotImplementedError) as error:
        raise UserError(f"file {archive}: no readable zip file ({error}); fetch it again") from None


def _of_allowed_size(content: bytes, name: str) -> bytes:
    if len(content) > MAX_FILE_BYTES:
        raise UserError(_too_large(name))
    return content


def _too_large(name: str) -> str:
    return f"file {name}: larger than {MAX_FILE_BYTES / 2**30:g} GiB; name a smaller part of the dataset"
