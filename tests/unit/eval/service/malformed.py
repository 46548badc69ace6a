"""Requests that no honest client sends."""

import json
from dataclasses import dataclass, field

TOKEN = "a-token-of-enough-characters"
WITH_TOKEN = {"authorization": f"Bearer {TOKEN}"}
AS_JSON = {**WITH_TOKEN, "content-type": "application/json"}
AS_FASTA = {**WITH_TOKEN, "content-type": "text/x-fasta"}
POSTED = ("/api/evaluations", "/api/embed", "/api/tokens")


@dataclass(frozen=True)
class Malformed:
    """One request."""

    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=lambda: dict(AS_JSON))


def malformed_requests() -> list[Malformed]:
    """Every kind of nonsense for every route it could reach."""
    return [
        *_bad_bodies(),
        *_bad_fields(),
        *_bad_paths(),
        *_bad_tokens(),
        *_bad_queries(),
        *_bad_methods(),
        *_bad_fasta(),
    ]


def _bad_bodies() -> list[Malformed]:
    bodies = [
        b"",
        b"{",
        b"[",
        b"null",
        b"[]",
        b"1",
        b'"text"',
        b"\xff\xfe",
        b"\x00",
        b"{'checkpoint': 'a'}",
        b'{"checkpoint": NaN}',
        b'{"checkpoint": "a", "priority": Infinity}',
        b'{"checkpoint": "a", "priority": ' + b"9" * 6000 + b"}",
        b'{"checkpoint": "a"} trailing',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"x" * (2**20 + 1),
        b'{"checkpoint": "' + b"a" * 2**20 + b'"}',
        b'{"checkpoint": "\\ud800"}',
        b'{"\\ud800": 1, "checkpoint": "a"}',
        b'{"sequences": [{"name": "\\ud800", "sequence": "\\ud800"}]}',
    ]
    return [Malformed("POST", path, body) for path in POSTED for body in bodies]


def _bad_fields() -> list[Malformed]:
    evaluations = [
        {},
        {"checkpoint": 1},
        {"checkpoint": None},
        {"checkpoint": ""},
        {"checkpoint": "a" * 5000},
        {"checkpoint": ["a"]},
        {"checkpoint": {"a": "b"}},
        {"checkpoint": "/a", "priority": "1"},
        {"checkpoint": "/a", "priority": 1.5},
        {"checkpoint": "/a", "priority": True},
        {"checkpoint": "/a", "priority": 10**9},
        {"checkpoint": "/a", "again": "yes"},
        {"checkpoint": "/a", "unknown": 1},
        {"checkpoint": "/a", "__proto__": {}},
    ]
    sequences = [
        {"sequences": []},
        {"sequences": {}},
        {"sequences": "ACD"},
        {"sequences": ["ACD"]},
        {"sequences": [{"name": "a"}]},
        {"sequences": [{"name": "a", "sequence": ""}]},
        {"sequences": [{"name": "a", "sequence": 5}]},
        {"sequences": [{"name": "a", "sequence": "A C"}]},
        {"sequences": [{"name": "a", "sequence": "ÄÖ"}]},
        {"sequences": [{"name": "a" * 1000, "sequence": "A"}]},
        {"sequences": [{"name": "a", "sequence": "A", "more": 1}]},
        {"sequences": [{"name": "a", "sequence": "A" * 200_000}]},
    ]
    return [
        *(Malformed("POST", "/api/evaluations", json.dumps(one).encode()) for one in evaluations),
        *(Malformed("POST", path, json.dumps(one).encode()) for path in POSTED[1:] for one in sequences),
    ]


def _bad_paths() -> list[Malformed]:
    places = [
        "/etc/passwd",
        "/etc",
        "../../../../etc/passwd",
        "runs/../../etc",
        "~root/.ssh",
        "file:///etc/passwd",
        "\0",
        "/proc/self/root",
        "/dev/zero",
        "\\\\host\\share",
        "%2e%2e%2fetc",
        ".",
        "/",
        "hf:facebook/esm2_t6_8M_UR50D",
        "callable:os:system",
    ]
    asked = [Malformed("POST", "/api/evaluations", json.dumps({"checkpoint": place}).encode()) for place in places]
    routes = [
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/static/../../../etc/passwd",
        "/static/%2e%2e%2fserver.py",
        "/api/evaluations/../../token",
        "/api/evaluations/abc",
        "/api/evaluations/-1",
        "/api/evaluations/0",
        "/api/evaluations/1.5",
        "/api/evaluations/99999999999999999999999",
        "/api/evaluations/1%00",
        "/api/evaluations/1;DROP TABLE evaluations",
        "/api/evaluations/' OR 1=1",
        "/token",
        "/service.json",
        "/queue.sqlite",
        "/.git/config",
        "/" + "a" * 3000,
    ]
    return [*asked, *(Malformed("GET", route) for route in routes)]


def _bad_tokens() -> list[Malformed]:
    headers = [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": f"Bearer {TOKEN[:-1]}"},
        {"authorization": f"bearer{TOKEN}"},
        {"authorization": TOKEN},
        {"authorization": f"Token {TOKEN}"},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": "Basic OjpT"},
        {"authorization": "Bearer " + "a" * 10_000},
        {"cookie": f"token={TOKEN}"},
        {"x-api-key": TOKEN},
    ]
    body = json.dumps({"checkpoint": "/a"}).encode()
    wrong = [Malformed("POST", path, body, {**AS_JSON, **one}) for path in POSTED for one in headers if one]
    wrong = [one for one in wrong if one.headers["authorization"] != WITH_TOKEN["authorization"]]
    bare = [Malformed("POST", path, body, {"content-type": "application/json"}) for path in POSTED]
    return [*wrong, *bare, Malformed("POST", f"/api/evaluations?token={TOKEN}", body, {})]


def _bad_queries() -> list[Malformed]:
    queries = [
        "/api/compare",
        "/api/compare?first=1",
        "/api/compare?first=a&second=b",
        "/api/compare?first=1&second=2",
        "/api/compare?first=-1&second=0",
        "/api/compare?first=nan&second=inf",
        "/api/evaluations?state=nonsense",
        "/api/evaluations?limit=-1",
        "/api/evaluations?limit=1e9",
        "/api/evaluations?offset=" + "9" * 400,
    ]
    return [Malformed("GET", query) for query in queries]


def _bad_methods() -> list[Malformed]:
    found = [Malformed(method, path) for method in ("PUT", "PATCH", "TRACE", "BREW") for path in POSTED]
    found += [Malformed("DELETE", path) for path in POSTED] + [Malformed("GET", path) for path in POSTED[1:]]
    found += [Malformed("POST", "/healthz", b"{}"), Malformed("DELETE", "/api/evaluations/1")]
    types = ("text/html", "multipart/form-data", "application/xml", "", "application/x-www-form-urlencoded")
    body = b'{"checkpoint": "/a"}'
    found += [Malformed("POST", path, body, {**WITH_TOKEN, "content-type": kind}) for path in POSTED for kind in types]
    lengths = ("-1", "abc", "9" * 30, "1e3", "0x10")
    found += [Malformed("POST", "/api/evaluations", body, {**AS_JSON, "content-length": length}) for length in lengths]
    return found


def _bad_fasta() -> list[Malformed]:
    bodies = (
        b"",
        b"ACD",
        b">",
        b">a",
        b">a\n>b\nACD",
        b">a\nAC D",
        b">a\n\x00",
        b"\xff",
        b">a\n123",
        b">a\n" + b"A" * 200_000,
    )
    return [Malformed("POST", path, body, AS_FASTA) for path in POSTED[1:] for body in bodies]
