"""Who may ask: the token, and how often each client asked."""

import base64
import binascii
import contextlib
import hashlib
import hmac
import ipaddress
import math
import os
import re
import secrets
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from configs.errors import UserError

TOKEN_FILE = "token"
_FORM = re.compile(r"[\x21-\x7e]{16,512}")
_MAX_CLIENTS = 10_000
"""Clients whose rate is remembered; the one that was silent longest is forgotten first."""


def read_token(path: Path | None, folder: Path) -> str:
    """First line of the token file; without one, a token is made once in `folder`.

    Raises:
        UserError: no such file, one that others may read, or no token in it.
    """
    given = path is not None
    path = path or folder / TOKEN_FILE
    if not given:
        with contextlib.suppress(FileExistsError):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write(secrets.token_urlsafe(32) + "\n")
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"token_file {path}: cannot be read ({error}); write a token into its first line") from None
    if mode & 0o077:
        raise UserError(f"token_file {path}: others may read it (mode {mode:o}); run `chmod 600 {path}`")
    token = lines[0].strip() if lines else ""
    if not _FORM.fullmatch(token):
        raise UserError(
            f"token_file {path}: its first line holds no token; allowed: 16 to 512 visible ASCII characters, e.g. from "
            "`openssl rand -hex 32`"
        )
    return token


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that address."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def check_host(host: str, token_file: Path | None) -> None:
    """Refuse to listen for other machines with a token nobody chose.

    Raises:
        UserError: not a loopback address, and no `token_file`.
    """
    if not is_loopback(host) and token_file is None:
        raise UserError(
            f"host {host}: other machines could reach it, and token_file is not set; set token_file=FILE (and put a "
            "proxy with TLS before the service), or host=127.0.0.1"
        )


class Tokens:
    """Compares what a request carries with the token, in constant time."""

    def __init__(self, token: str) -> None:
        self._digest = _digest(token)

    def is_bearer(self, header: str) -> bool:
        """`Authorization: Bearer TOKEN`."""
        scheme, _, value = header.partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(_digest(value.strip()), self._digest)

    def is_basic(self, header: str) -> bool:
        """`Authorization: Basic ...` with any name and the token as password: what a browser asks its user for."""
        scheme, _, value = header.partition(" ")
        if scheme.lower() != "basic":
            return False
        try:
            password = base64.b64decode(value.strip(), validate=True).decode("utf-8", "replace").partition(":")[2]
        except (binascii.Error, ValueError):
            return False
        return hmac.compare_digest(_digest(password), self._digest)


class Rates:
    """A bucket per client that refills evenly: `per_minute` requests, at once or spread."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def wait_for(self, client: str) -> int:
        """0 where the client may ask now, else whole seconds until it may."""
        with self._lock:
            now, per_second = self._clock(), self._per_minute / 60
            left, before = self._left.pop(client, (float(self._per_minute), now))
            left = min(self._per_minute, left + (now - before) * per_second)
            allowed = left >= 1
            self._left[client] = (left - 1 if allowed else left, now)
            if len(self._left) > _MAX_CLIENTS:
                self._left.popitem(last=False)
            return 0 if allowed else max(1, math.ceil((1 - left) / per_second))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
