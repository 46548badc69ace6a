"""A web server on this machine that misbehaves as told, and tars and configurations for the tests of sources."""

import io
import tarfile
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from configs.source import RemoteConfig


@dataclass
class Fault:
    """One misbehaviour, used up by one GET."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    """Close the connection after so many bytes of the body."""
    claimed_extra: int = 0
    """Announce so many bytes more than there are."""
    body: bytes = b""
    """Of an error."""


@dataclass
class Web:
    """What the server holds and what it was asked."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    faults: dict[str, deque[Fault]] = field(default_factory=lambda: defaultdict(deque))
    gets: Counter = field(default_factory=Counter)
    ranges: list[str] = field(default_factory=list)
    sent_bytes: int = 0
    has_ranges: bool = True
    has_head: bool = True
    gate: threading.Event | None = None
    """GETs wait for it."""

    def url(self, path: str) -> str:
        return f"{self.address}/{path}"

    def put(self, path: str, content: bytes, *faults: Fault) -> str:
        self.files[path] = content
        self.etags[path] = f'"{hash(content)}"'
        self.faults[path].extend(faults)
        return self.url(path)


def _handler(web: Web) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

        def do_HEAD(self) -> None:
            content = web.files.get(self.path[1:])
            if not web.has_head:
                self.send_response(403)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            if content is not None:
                self.send_header("ETag", web.etags[self.path[1:]])
            self.end_headers()

        def do_GET(self) -> None:
            path = self.path[1:]
            web.gets[path] += 1
            if web.gate is not None:
                web.gate.wait(10)
            fault = web.faults[path].popleft() if web.faults[path] else Fault()
            content = web.files.get(path)
            if fault.status != 200 or content is None:
                self.answer(fault.status if fault.status != 200 else 404, fault.body, fault.headers)
                return
            headers = {"ETag": web.etags[path], **fault.headers}
            start, wanted = 0, self.headers.get("Range")
            if wanted and web.has_ranges and self.headers.get("If-Range", headers["ETag"]) == headers["ETag"]:
                web.ranges.append(wanted)
                start = int(wanted.removeprefix("bytes=").split("-")[0])
                if start >= len(content):
                    self.answer(416, b"", {})
                    return
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.answer(206 if "Content-Range" in headers else 200, content[start:], headers, fault)

        def answer(self, status: int, body: bytes, headers: dict[str, str], fault: Fault | None = None) -> None:
            fault = fault or Fault()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) + fault.claimed_extra))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            sent = body if fault.cut_after is None else body[: fault.cut_after]
            self.wfile.write(sent)
            web.sent_bytes += len(sent)
            if len(sent) < len(body) or fault.claimed_extra:
                self.close_connection = True

    return Handler


class _Server(ThreadingHTTPServer):
    request_queue_size = 64  # with the default of 5, more connections at a time cost a second each


@contextmanager
def served() -> Iterator[Web]:
    """A running server."""
    web = Web()
    server = _Server(("127.0.0.1", 0), _handler(web))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    web.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()


def remote(folder: Path, **changes: object) -> RemoteConfig:
    """Configuration of quick retries with a cache in `folder`."""
    fields = {"cache": folder / "cache", "requests_per_second": None, "backoff_seconds": 0.001, "timeout_seconds": 5.0}
    return RemoteConfig(**(fields | changes))


def tar_bytes(members: dict[str, bytes], mode: str = "w") -> bytes:
    """A tar with these members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()
