"""Fetched files on disk: verified by hash before every use, continued after an interruption, fetched by one process.

A file lies at `<2 hex>/<sha256 of its URL>-<name>` with `<the same>.json` beside it: URL, size, sha256, what the
server told of its state, and the time of writing. `.part` and `.part.json` are an unfinished download. Locks are
shared by many files (4,096 of them), so that millions of files do not leave as many locks.
"""

import hashlib
import json
import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock

from configs.errors import UserError
from configs.source import RemoteConfig
from data_pipeline.sources.pace import Pace
from data_pipeline.sources.transport import (
    InterruptedDownloadError,
    RangeError,
    Stream,
    open_stream,
    patiently,
    version_text,
)

log = logging.getLogger("data_pipeline")

_MAX_NAME = 80


@dataclass(frozen=True)
class Downloads:
    """The cache at `config.cache`, which must be set and absolute."""

    config: RemoteConfig

    def fetch(self, url: str, version: str = "") -> Path:
        """Local path of the file, downloaded unless a copy of this version with the recorded hash is there.

        Args:
            version: what a listing says of the file's state; empty: any copy serves.

        Raises:
            MissingError, RefusedError, InterruptedDownloadError: it cannot be had.
            UserError: the cache cannot be written.
        """
        place = self.place_of(url)
        if self._is_good(place, version):
            return place
        with self._lock(place):
            if not self._is_good(place, version):
                self._download(url, place, version)
        return place

    def read(self, url: str, version: str = "") -> bytes:
        """The file's verified bytes; afterwards it is removed unless the config keeps files. Raises as `fetch`."""
        place = self.place_of(url)
        data = _verified_bytes(place, version)
        if data is None:
            # Read within the lock: without `keep`, another reader may remove the file right after its own use.
            with self._lock(place):
                data = _verified_bytes(place, version)
                if data is None:
                    self._download(url, place, version)
                    data = place.read_bytes()
                if not self.config.keep:
                    self._remove(place)
        elif not self.config.keep:
            with self._lock(place):
                self._remove(place)
        return data

    def sha256(self, url: str) -> str:
        """Recorded hash of a file that `fetch` returned."""
        record = _record(self.place_of(url))
        assert record is not None
        return record["sha256"]

    def place_of(self, url: str) -> Path:
        digest = hashlib.sha256(url.encode()).hexdigest()
        name = urlsplit(url).path.rstrip("/").rpartition("/")[2][-_MAX_NAME:] or "file"
        return self._folder / digest[:2] / f"{digest[:32]}-{name}"

    @property
    def _folder(self) -> Path:
        assert self.config.cache is not None
        return self.config.cache

    @contextmanager
    def _lock(self, place: Path) -> Iterator[None]:
        lock = self._folder / "locks" / place.name[:3]
        with _writing(lock):
            lock.parent.mkdir(parents=True, exist_ok=True)
            held = FileLock(lock)
            held.acquire()
        try:
            yield
        finally:
            held.release()

    def _is_good(self, place: Path, version: str) -> bool:
        record = _record(place)
        if record is None or not _is_wanted(record, version):
            return False
        try:
            if place.stat().st_size == record["size"] and _sha256(place) == record["sha256"]:
                return True
        except OSError:
            return False
        log.warning("the cached copy of %s is damaged; fetching it again", record["url"])
        return False

    def _download(self, url: str, place: Path, version: str) -> None:
        part, notes = _part(place), _notes(place)
        pace = Pace(self._folder / "pace", self.config.requests_per_second)
        with _writing(place):
            place.parent.mkdir(parents=True, exist_ok=True)

        def attempt() -> None:
            with _writing(place):
                pace.wait(url)
            held = _unfinished(place)
            if held.is_whole(version):
                return
            try:
                with open_stream(url, held.size if held.validator else 0, held.validator, self.config) as stream:
                    _receive(stream, place)
            except RangeError:
                part.unlink(missing_ok=True)
                raise
            size = part.stat().st_size
            if stream.total is not None and size != stream.total:
                if size > stream.total:
                    part.unlink()
                raise InterruptedDownloadError(f"{url}: got {size} of {stream.total} bytes")

        patiently(attempt, self.config, lambda: _size(part))
        record = {"url": url, "size": _size(part), "sha256": _sha256(part), "version": version}
        with _writing(place):
            os.replace(part, place)
            _write(_record_place(place), record)
            notes.unlink(missing_ok=True)

    def _remove(self, place: Path) -> None:
        for path in (place, _record_place(place)):
            path.unlink(missing_ok=True)


def fetched_ahead(downloads: Downloads, urls: Sequence[tuple[str, str]], parallel: int) -> Iterator[Path]:
    """Local paths of (URL, version) pairs in their order, up to `parallel` of them on their way at a time."""
    with ThreadPoolExecutor(parallel) as executor:
        waiting: deque[Future[Path]] = deque()
        try:
            for url, version in urls:
                waiting.append(executor.submit(downloads.fetch, url, version))
                if len(waiting) >= parallel:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@dataclass(frozen=True)
class _Unfinished:
    """An interrupted download: bytes on disk, of how many, of which state of the file."""

    size: int
    total: int | None
    validator: str

    def is_whole(self, version: str) -> bool:
        """Everything had arrived before the interruption, of the version that is wanted."""
        is_current = version in ("", version_text(self.total, self.validator))
        return bool(self.validator) and self.size == self.total and is_current


def _unfinished(place: Path) -> _Unfinished:
    try:
        notes = json.loads(_notes(place).read_bytes())
        return _Unfinished(_part(place).stat().st_size, notes["total"], notes["validator"])
    except (OSError, ValueError, KeyError):
        return _Unfinished(0, None, "")


def _receive(stream: Stream, place: Path) -> None:
    """Append to the part, or begin it anew where the server did."""
    with ExitStack() as stack:
        with _writing(place):
            if not stream.start:
                _part(place).unlink(missing_ok=True)
            _write(_notes(place), {"total": stream.total, "validator": stream.validator})
            file = stack.enter_context(open(_part(place), "ab"))
        for chunk in stream.chunks:
            with _writing(place):
                file.write(chunk)
        with _writing(place):
            file.flush()


def _write(path: Path, record: dict) -> None:
    """Whole or not at all; not synced to the disk, since a file whose record is lost is fetched again."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(record))
    os.replace(temporary, path)


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    """A full or forbidden disk is the user's to mend, not a reason to reject every structure that follows."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"download cache {place.parent}: {error.strerror or error}; free space, or set source.remote.cache to a "
            "folder with room that every process can write"
        ) from None


def _verified_bytes(place: Path, version: str) -> bytes | None:
    record = _record(place)
    if record is None or not _is_wanted(record, version):
        return None
    try:
        data = place.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(data).hexdigest() == record["sha256"]:
        return data
    log.warning("the cached copy of %s is damaged; fetching it again", record["url"])
    return None


def _is_wanted(record: dict, version: str) -> bool:
    return not version or not record["version"] or record["version"] == version


def _record(place: Path) -> dict | None:
    try:
        record = json.loads(_record_place(place).read_bytes())
        return record if {"url", "size", "sha256", "version"} <= record.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _record_place(place: Path) -> Path:
    return place.with_name(f"{place.name}.json")


def _part(place: Path) -> Path:
    return place.with_name(f"{place.name}.part")


def _notes(place: Path) -> Path:
    return place.with_name(f"{place.name}.part.json")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
