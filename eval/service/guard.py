"""The gate before every route: hosts, tokens, rates, sizes and security headers, as plain ASGI."""

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from configs.service import LimitsConfig
from eval.service.access import Rates, Tokens, is_loopback

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
BODY_SECONDS = 30.0
"""A body must have come whole by then."""
ALWAYS_OPEN = ("/healthz",)
READING = ("GET", "HEAD")
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
"""Of every response that does not say otherwise."""


@dataclass(eq=False)
class Refusal(Exception):
    """An answer given at the gate."""

    status: int
    detail: str
    headers: tuple[tuple[str, str], ...] = ()


class Guard:
    """Lets through what is allowed; everything else gets its 4xx here and reaches no route."""

    def __init__(self, app: App, tokens: Tokens, limits: LimitsConfig, public_pages: bool, host: str) -> None:
        self._app = app
        self._tokens = tokens
        self._limits = limits
        self._public = public_pages
        self._is_local = is_loopback(host)
        self._rates = Rates(limits.requests_per_minute)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            # There are no web sockets here.
            await send({"type": "websocket.close", "code": 1008})
            return
        send = _with_headers(send)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self._check(scope, headers)
            body = await self._body(headers, receive)
        except Refusal as refusal:
            await _answer(send, refusal)
            return
        if body is None:
            return
        await self._app(scope, _replayed(body, receive), send)

    def _check(self, scope: MutableMapping[str, Any], headers: dict[str, str]) -> None:
        if self._is_local and _host_name(headers.get("host", "")) not in LOCAL_NAMES:
            # A page from elsewhere whose name was made to point here.
            raise Refusal(421, "this service is asked as localhost or 127.0.0.1")
        address = (scope.get("client") or ("unknown",))[0]
        authorization = headers.get("authorization")
        is_reading = scope["method"] in READING
        is_known = authorization is not None and (
            self._tokens.is_bearer(authorization)
            # A browser sends this by itself, also when another site makes it: so for reading only.
            or (is_reading and self._tokens.is_basic(authorization))
        )
        wait = self._rates.wait_for("token" if is_known else address)
        if wait:
            raise Refusal(429, f"too many requests; wait {wait} s", (("retry-after", str(wait)),))
        if is_known or scope["path"] in ALWAYS_OPEN:
            return
        if authorization is None and is_reading and self._public and is_loopback(address):
            return
        challenge = 'Basic realm="evaluation: the token as password"' if is_reading else "Bearer"
        raise Refusal(401, "send `Authorization: Bearer TOKEN`", (("www-authenticate", challenge),))

    async def _body(self, headers: dict[str, str], receive: Receive) -> bytes | None:
        """The whole body; None where the client is gone and nobody waits for an answer."""
        limit = self._limits.max_body_bytes
        refusal = Refusal(413, f"the body has more than {limit} bytes", (("connection", "close"),))
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit():
            raise Refusal(400, "content-length is no number")
        if len(length) > 18 or int(length) > limit:
            raise refusal
        parts, size = [], 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    part = message.get("body", b"")
                    size += len(part)
                    if size > limit:
                        raise refusal
                    parts.append(part)
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise Refusal(408, "the body did not come in time", (("connection", "close"),)) from None


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body as one message, then what the connection says."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            present = {name.lower() for name, _ in message.get("headers", ())}
            more = [(n.encode(), v.encode()) for n, v in HEADERS.items() if n.encode() not in present]
            message = {**message, "headers": [*message.get("headers", ()), *more]}
        await send(message)

    return sending


async def _answer(send: Send, refusal: Refusal) -> None:
    body = json.dumps({"detail": refusal.detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.encode(), value.encode()) for name, value in refusal.headers]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
