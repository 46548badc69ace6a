"""Bytes from a URL, from any position on, and which failures are worth another attempt.

HTTP goes through requests, which shows status, Retry-After and validators; every other protocol through fsspec.
"""

import email.utils
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import fsspec
import requests
import tenacity

from configs.errors import UserError
from configs.source import RemoteConfig
from data_pipeline.structure.chain import StructureError

T = TypeVar("T")

CHUNK_BYTES = 2**16
"""Small, because a broken connection loses the chunk on its way."""
MAX_WAIT_SECONDS = 60.0
MAX_RETRY_AFTER_SECONDS = 300.0
"""A server that asks for more is asked again earlier; the attempts end it."""
_MISSING = (404, 410)
_BUSY = (408, 425, 429)
_NO_HEAD = (400, 401, 403, 404, 405, 501)
"""Answers of servers that only know GET, e.g. to an address signed for it."""
_CONNECT_SECONDS = 15.0
_BACKENDS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
_local = threading.local()


class MissingError(Exception):
    """There is nothing at the URL; asking again would not help."""


class RefusedError(Exception):
    """The server will not give it (no access, not understood); asking again would not help."""


class InterruptedDownloadError(Exception):
    """The server was busy, silent or gone; worth another attempt, not before `retry_after` seconds if set."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RangeError(InterruptedDownloadError):
    """The file ends before the position asked for; the next attempt must begin anew."""


@dataclass(frozen=True)
class Stream:
    """An open download."""

    start: int
    """Position of the first byte to come: the one asked for, or 0 when the server began anew."""
    total: int | None
    """Bytes of the whole file."""
    validator: str
    """Tells the file's states apart; empty: unknown, so that a part of it cannot be continued."""
    chunks: Iterator[bytes]


@contextmanager
def open_stream(url: str, start: int, validator: str, config: RemoteConfig) -> Iterator[Stream]:
    """Download from byte `start` on, provided the file is still in the state that `validator` names.

    Raises:
        MissingError, RefusedError, InterruptedDownloadError: also while the chunks are read.
        UserError: the protocol is unknown or its library is not installed.
    """
    opened = _open_http if is_http(url) else _open_other
    with opened(url, start, validator, config) as stream:
        yield stream


def state_of(url: str, config: RemoteConfig) -> str:
    """Size and validator of the file at a URL in one line, empty when the server does not tell; raises as above."""
    if not is_http(url):
        size, validator = _described(_info(url, config))
        return version_text(size, validator)
    with mapped_errors(url):
        asked = {"headers": _IDENTITY, "timeout": _timeouts(config), "allow_redirects": True}
        response = _session().head(url, **asked)
        if response.status_code in _NO_HEAD:
            response = _session().get(url, stream=True, **asked)
            response.close()
        _raise_for_status(response, url)
        length = response.headers.get("Content-Length", "")
        return version_text(int(length) if length.isdigit() else None, _validator(response))


def version_text(size: int | None, validator: str) -> str:
    """One line for what a listing tells of a file's state; empty when that is nothing."""
    return f"{'' if size is None else size}|{validator}" if size is not None or validator else ""


def is_http(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


def file_system(url: str, config: RemoteConfig) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path on it.

    Raises:
        UserError: the protocol is unknown or its library is not installed.
    """
    protocol = url.partition("://")[0].rpartition("::")[2]
    try:
        return fsspec.core.url_to_fs(url, **({} if is_http(url) else config.options))
    except ImportError as error:
        package = _BACKENDS.get(protocol)
        remedy = f"pip install {package}" if package else "install what it names"
        raise UserError(f"source {url}: {protocol}:// needs a library that is missing ({error}); {remedy}") from None
    except ValueError as error:
        raise UserError(
            f"source {url}: {error}; allowed are a local path, http(s)://, s3://, gs:// and fsspec's other protocols"
        ) from None


def described(info: dict[str, Any]) -> str:
    """`version_text` of one row of a file system's listing."""
    return version_text(*_described(info))


def patiently(
    action: Callable[[], T],
    config: RemoteConfig,
    position: Callable[[], int] = lambda: 0,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """The action's result, tried again after interruptions with growing random pauses.

    Args:
        position: bytes had so far; failures are counted anew when it has grown, so that a huge file whose connection
            breaks now and then is not given up.

    Raises:
        InterruptedDownloadError: the last one, after `config.attempts` failures in a row; others at once.
    """
    pause = tenacity.wait_random_exponential(multiplier=config.backoff_seconds, max=MAX_WAIT_SECONDS)
    best, failures = position(), 0

    def stop(state: tenacity.RetryCallState) -> bool:
        nonlocal best, failures
        now = position()
        failures = 1 if now > best else failures + 1
        best = max(best, now)
        return failures >= config.attempts

    def wait(state: tenacity.RetryCallState) -> float:
        assert state.outcome is not None
        asked = getattr(state.outcome.exception(), "retry_after", None)
        return pause(state) if asked is None else min(asked, MAX_RETRY_AFTER_SECONDS)

    retry = tenacity.retry_if_exception_type(InterruptedDownloadError)
    return tenacity.Retrying(retry=retry, stop=stop, wait=wait, sleep=sleep, reraise=True)(action)


_IDENTITY = {"Accept-Encoding": "identity"}
"""A gzipped structure must arrive as it is stored, and with its true length."""


@contextmanager
def _open_http(url: str, start: int, validator: str, config: RemoteConfig) -> Iterator[Stream]:
    headers = dict(_IDENTITY)
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    with mapped_errors(url), _session().get(url, headers=headers, stream=True, timeout=_timeouts(config)) as response:
        _raise_for_status(response, url)
        begin, total = 0, response.headers.get("Content-Length", "")
        if response.status_code == 206:
            span, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
            if span.split("-")[0] != str(start):
                raise RefusedError(f"{url} answered bytes {span} when asked for those from {start} on")
            begin = start
        # Servers call .gz files gzip-encoded: decoded, they would not be what is stored there.
        chunks = response.raw.stream(CHUNK_BYTES, decode_content=False)
        yield Stream(begin, int(total) if total.isdigit() else None, _validator(response), chunks)


@contextmanager
def _open_other(url: str, start: int, validator: str, config: RemoteConfig) -> Iterator[Stream]:
    size, current = _described(_info(url, config))
    begin = start if validator and validator == current else 0
    system, path = file_system(url, config)
    with mapped_errors(url), system.open(path, "rb") as file:
        file.seek(begin)
        yield Stream(begin, size, current, iter(lambda: file.read(CHUNK_BYTES), b""))


def _info(url: str, config: RemoteConfig) -> dict[str, Any]:
    system, path = file_system(url, config)
    with mapped_errors(url):
        system.invalidate_cache()
        return system.info(path)


@contextmanager
def mapped_errors(url: str) -> Iterator[None]:
    """Network errors of all libraries as the three kinds above."""
    try:
        yield
    except (MissingError, RefusedError, InterruptedDownloadError, UserError, StructureError):
        # A StructureError is a time limit that a signal brought: it must end the attempts, not cause another.
        raise
    except FileNotFoundError:
        raise MissingError(f"{url}: not found") from None
    except PermissionError as error:
        raise RefusedError(f"{url}: {_one_line(error)}") from None
    except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, NotImplementedError) as error:
        raise RefusedError(f"{url}: {_one_line(error)}") from None
    except Exception as error:
        status = getattr(error, "status", None)
        if status in (401, 403):
            raise RefusedError(f"{url}: HTTP {status}") from None
        raise InterruptedDownloadError(f"{url}: {_one_line(error)}") from None


def _raise_for_status(response: requests.Response, url: str) -> None:
    status = response.status_code
    if status < 400:
        return
    text = f"{url}: HTTP {status} {response.reason or ''}".rstrip()
    if status in _MISSING:
        raise MissingError(text)
    if status in _BUSY or status >= 500:
        raise InterruptedDownloadError(text, _retry_after(response.headers.get("Retry-After")))
    if status == 416:
        raise RangeError(text, 0.0)
    raise RefusedError(text)


def _retry_after(text: str | None) -> float | None:
    """Seconds a server asks to wait, from either form of the header."""
    if not text:
        return None
    if text.strip().isdigit():
        return float(text)
    moment = email.utils.parsedate_tz(text)
    return None if moment is None else max(0.0, email.utils.mktime_tz(moment) - time.time())


def _validator(response: requests.Response) -> str:
    """What If-Range may carry: a strong entity tag, else the time of the last change."""
    tag = response.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")


def _described(info: dict[str, Any]) -> tuple[int | None, str]:
    names = ("ETag", "etag", "md5Hash", "generation", "VersionId", "mtime", "LastModified", "last_modified", "created")
    found = next((info[name] for name in names if info.get(name)), "")
    return info.get("size"), str(found)


def _session() -> requests.Session:
    """One per thread: sessions keep connections open, but must not be shared."""
    if not hasattr(_local, "session"):
        _local.session = requests.Session()
        _local.session.headers["User-Agent"] = "saplm-data-pipeline"
    return _local.session


def _timeouts(config: RemoteConfig) -> tuple[float, float]:
    return min(_CONNECT_SECONDS, config.timeout_seconds), config.timeout_seconds


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}".removesuffix(": ")
