"""Connecting to a cluster: every failure is one line, within seconds."""

import http.server
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from cluster import jobs
from cluster.jobs import connect, default_address
from configs.errors import UserError


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        # Set first, so that what `connect` sets is undone too.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def other_server() -> Iterator[str]:
    """A web server that is not Ray."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _NotRay)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


class _NotRay(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(404)
        self.end_headers()
        self.wfile.write(b"nothing here")

    def log_message(self, *_: object) -> None:
        pass


def test_address_comes_from_the_environment_else_from_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_address() == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_DASHBOARD_ADDRESS", "http://b:1")
    assert default_address() == "http://b:1"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://a:1")
    assert default_address() == "http://a:1"


def test_no_cluster_is_told_at_once() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        began = time.monotonic()
        with pytest.raises(UserError, match=r"no Ray cluster at http://127\.0\.0\.1:\d+ \(nothing listens there\)"):
            connect(f"127.0.0.1:{reserved.getsockname()[1]}")
    # A refused connection needs no waiting; five seconds leave room for a busy machine.
    assert time.monotonic() - began < 5


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "ANSWER_SECONDS", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(UserError, match="no answer in time"):
            connect(f"http://127.0.0.1:{silent.getsockname()[1]}")


def test_a_server_that_is_not_ray_is_told(other_server: str) -> None:
    with pytest.raises(UserError, match="404"):
        connect(other_server)


def test_a_driver_address_is_refused_with_the_right_form() -> None:
    with pytest.raises(UserError, match="http://HOST:8265"):
        connect("ray://head:10001")


def test_a_token_file_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/nowhere/token")
    with pytest.raises(UserError, match="/nowhere/token, which is no file"):
        connect("http://127.0.0.1:9")
