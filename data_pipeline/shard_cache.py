"""Shards on remote storage: read through fsspec, kept in a bounded local cache that the processes of a machine share.

The cache names files by their sha256, so that the same shard is held once whatever it is called. What a process has
open carries a shared `flock`, what is being written an exclusive one; the system drops both when a process dies, so a
crash leaves nothing that another process could not take over.
"""

import errno
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, Self, TypeVar

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from configs.errors import UserError
from configs.training_data import CacheConfig

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
CHUNK_BYTES = 4 << 20
RETRY_WAIT = wait_random_exponential(multiplier=0.5, max=30)
PATIENCE_SECONDS = 120.0
"""How long a process waits until others let go of shards, when all that fill the cache are in use."""
POLL_SECONDS = 0.02
_FINAL = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, ImportError, ValueError, UserError)
"""Errors that another attempt would only repeat."""
T = TypeVar("T")


def is_url(place: object) -> bool:
    """Whether a place of shards is a URL (s3://, https://, file://, ...), not a local folder."""
    return isinstance(place, str) and URL.match(place) is not None


def default_folder() -> Path:
    """`$XDG_CACHE_HOME/saplm/shards`, by default in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "saplm" / "shards"


class ShardCache:
    """Files by sha256 in one folder, together at most `max_bytes`; the least recently used go first.

    A file that any process has open (by `open`) is never removed.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"shard cache {folder}: cannot be made ({error.strerror}); set data.cache.folder") from None

    @classmethod
    def of(cls, config: CacheConfig) -> Self:
        return cls(config.folder or default_folder(), int(config.gigabytes * 1e9))

    def path(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.tar"

    def holds(self, sha256: str) -> bool:
        """Whether the file is here; marks it as used, so that it stays the longer."""
        try:
            os.utime(self.path(sha256))
        except OSError:
            return False
        return True

    def open(self, sha256: str) -> IO[bytes] | None:
        """The file, open and safe from removal for as long as it, or a memory map of it, stays open."""
        try:
            file = self.path(sha256).open("rb")
        except FileNotFoundError:
            return None
        fcntl.flock(file, fcntl.LOCK_SH)
        if not _same_file(file, self.path(sha256)):
            # Removed between opening and locking.
            file.close()
            return None
        self.holds(sha256)
        return file

    def forget(self, sha256: str) -> None:
        """Remove a file whose bytes turned out to be damaged."""
        self.path(sha256).unlink(missing_ok=True)

    def add(
        self, sha256: str, size: int, write: Callable[[IO[bytes]], None], make_room: Callable[[], bool] | None = None
    ) -> None:
        """Make the file present: at once if it is, else by `write`, once among all processes that ask for it.

        Args:
            write: fills an empty file; what it leaves must have the size and the sha256 (it checks).
            make_room: lets go of one file that this process holds open; False when it holds none.

        Raises:
            UserError: no room, in the cache or on the disk.
        """
        part = self.path(sha256).with_suffix(".part")
        while not self.holds(sha256):
            with os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
                if not _lock_now(file):
                    # Another process is at it, and may be waiting for room that this one's open files take.
                    if make_room is None or not make_room():
                        time.sleep(POLL_SECONDS)
                    continue
                if not _same_file(file, part) or self.holds(sha256):
                    # Another process finished, or gave up, while this one waited.
                    if _same_file(file, part):
                        part.unlink()
                    continue
                try:
                    self._reserve(file, size, make_room)
                    write(file)
                    file.flush()
                    part.replace(self.path(sha256))
                except BaseException as error:
                    part.unlink(missing_ok=True)
                    if _disk_full(error):
                        raise UserError(
                            f"shard cache {self.folder}: no space left on its disk for {size / 1e6:.0f} MB;"
                            " free some, or set data.cache.folder or data.cache.gigabytes"
                        ) from None
                    raise

    def _reserve(self, file: IO[bytes], size: int, make_room: Callable[[], bool] | None) -> None:
        """Give `file` its final size once that fits, so that all processes see the room as taken."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        file.truncate(0)
        while True:
            with self._locked():
                if self._evict(self.max_bytes - size):
                    if size:
                        os.posix_fallocate(file.fileno(), 0, size)
                    return
            if size <= self.max_bytes and make_room is not None and make_room():
                continue
            if size > self.max_bytes or time.monotonic() > deadline:
                raise UserError(
                    f"shard cache {self.folder}: {self.max_bytes / 1e9:g} GB are full of shards in use and cannot"
                    f" take {size / 1e9:g} GB more; raise data.cache.gigabytes or lower data.cache.shards_ahead"
                )
            time.sleep(POLL_SECONDS)

    def _evict(self, target: int) -> bool:
        """Remove unused files, least recently used first, until at most `target` bytes remain; False if impossible."""
        found = []
        for entry in os.scandir(self.folder):
            if entry.name.endswith((".tar", ".part")):
                try:
                    facts = entry.stat()
                except FileNotFoundError:
                    continue
                found.append((facts.st_mtime_ns, facts.st_size, entry.path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= target:
                break
            if _remove_unused(path):
                total -= size
        return total <= target

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / ".lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _same_file(file: IO[bytes], path: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _disk_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _remove_unused(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            if not _lock_now(file):
                return False
            os.unlink(path)
    except FileNotFoundError:
        pass
    return True


def _lock_now(file: IO[bytes]) -> bool:
    """Take the exclusive lock, unless any other holder of a lock is in the way."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class RemotePath:
    """A place on remote storage with as much of `pathlib.Path` as reading shards and derived columns needs."""

    def __init__(self, url: str, cache: ShardCache, attempts: int = 5, filesystem: Any = None) -> None:
        self.url = url.rstrip("/")
        self.cache = cache
        self._attempts = attempts
        self._filesystem = filesystem if filesystem is not None else _filesystem(self.url)

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(f"{self.url}/{name}", self.cache, self._attempts, self._filesystem)

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        return PurePosixPath(self.url).name

    @property
    def parent(self) -> "RemotePath":
        return RemotePath(self.url.rpartition("/")[0], self.cache, self._attempts, self._filesystem)

    def is_dir(self) -> bool:
        """True: object stores know no folders; whether there is a manifest decides."""
        return True

    def is_file(self) -> bool:
        """Whether its first byte can be read; asking whether it exists would hide that nobody answers."""
        try:
            self._try(lambda: self._filesystem.cat_file(self._key, 0, 1))
        except FileNotFoundError:
            return False
        return True

    def read_bytes(self) -> bytes:
        """The whole content.

        Raises:
            FileNotFoundError: there is none.
            UserError: storage cannot be reached, or refuses.
        """
        return self._try(lambda: self._filesystem.cat_file(self._key))

    def glob(self, pattern: str) -> list["RemotePath"]:
        """Matches below this place; none where storage cannot list."""
        try:
            found = self._try(lambda: self._filesystem.glob(f"{self._key}/{pattern}"))
        except (UserError, FileNotFoundError, NotImplementedError):
            return []
        return [self / key.removeprefix(self._key).lstrip("/") for key in found]

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Refuse: nothing is written to remote storage."""
        raise UserError(f"{self.url}: remote shards are read only; work on a local copy of them and upload the result")

    def cached(self, sha256: str) -> bool:
        return self.cache.holds(sha256)

    def open_cached(self, size: int, sha256: str, make_room: Callable[[], bool] | None = None) -> IO[bytes]:
        """The local copy, fetched if need be, safe from removal while it or a memory map of it is open.

        Raises:
            FileNotFoundError, UserError: as `read_bytes`; also when five downloads in a row had other bytes.
        """
        while True:
            file = self.cache.open(sha256)
            if file is not None:
                return file
            self.fetch(size, sha256, make_room)

    def fetch(self, size: int, sha256: str, make_room: Callable[[], bool] | None = None) -> None:
        """Bring the file into the cache; as `open_cached`, without holding it there."""
        self.cache.add(sha256, size, lambda file: self._try(lambda: self._download(file, size, sha256)), make_room)

    def _download(self, file: IO[bytes], size: int, sha256: str) -> None:
        file.seek(0)
        done = hashlib.sha256()
        # One stream: not every web server gives parts of a file.
        web = {"block_size": 0} if self.url.startswith(("http://", "https://")) else {}
        with self._filesystem.open(self._key, "rb", **web) as source:
            while (chunk := source.read(CHUNK_BYTES)) and file.tell() <= size:
                file.write(chunk)
                done.update(chunk)
        if (file.tell(), done.hexdigest()) != (size, sha256):
            raise OSError(f"its bytes are not those that the manifest tells: {file.tell()} of {size} bytes, or others")

    @property
    def _key(self) -> str:
        return self._filesystem._strip_protocol(self.url)

    def _try(self, action: Callable[[], T]) -> T:
        """What the action gives, after as many attempts as allowed."""
        retrying = Retrying(
            stop=stop_after_attempt(self._attempts),
            wait=RETRY_WAIT,
            retry=retry_if_exception(_passing),
            reraise=True,
        )
        try:
            return retrying(action)
        except (FileNotFoundError, UserError):
            raise
        except Exception as error:
            if _disk_full(error):
                raise
            again = f"after {self._attempts} attempts " if _passing(error) else ""
            raise UserError(
                f"{self.url}: cannot be read {again}({type(error).__name__}: {' '.join(str(error).split())[:200]});"
                " check the address, the credentials and the network"
            ) from None


def _passing(error: BaseException) -> bool:
    """Whether another attempt may succeed."""
    return isinstance(error, Exception) and not isinstance(error, _FINAL) and not _disk_full(error)


def _filesystem(url: str) -> Any:
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)[0]
    except (ImportError, ValueError) as error:
        raise UserError(
            f"shards {url}: this kind of address needs a package that is not installed or is not known ({error})"
        ) from None
