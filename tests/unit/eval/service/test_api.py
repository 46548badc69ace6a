"""The HTTP API in this process: what it does for those who may ask, and that it survives those who may not."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

from configs.errors import UserError
from configs.service import ServeConfig
from eval.service.api import Parts
from eval.service.app import make_app
from eval.service.conductor import Conductor
from eval.service.desk import Desk
from eval.service.sequences import embedding_rows, token_rows
from eval.service.store import Store
from tests.unit.eval.service.makers import STAND_IN, Script, held, serve_config, tiny_checkpoint, wait_until
from tests.unit.eval.service.malformed import TOKEN, malformed_requests

AUTHORISED = {"Authorization": f"Bearer {TOKEN}"}
LOCAL = "http://127.0.0.1"


@dataclass(frozen=True)
class Difference:
    difference: float
    p_holm: float


class Letters:
    """A model whose states count letters; its 3Di head always says D."""

    name = "letters"
    max_residues = 1000

    def hidden(self, sequences: Sequence[str]) -> list[Any]:
        import torch

        return [torch.tensor([[float(letter == "A"), 1.0] for letter in s]) for s in sequences]

    def threedi_logits(self, sequences: Sequence[str]) -> list[Any]:
        import torch

        return [torch.eye(20)[2].expand(len(s), 20) * 50 for s in sequences]


@dataclass
class Running:
    """An application with its parts, its client and what its executor does."""

    client: TestClient
    store: Store
    script: Script
    runs: Path
    opened: list[str]

    def post(self, path: str, content: Any, **options: Any) -> httpx.Response:
        return self.client.post(path, json=content, headers=AUTHORISED, **options)


def start(folder: Path, address: str = "127.0.0.1", **changes: Any) -> Iterator[Running]:
    config: ServeConfig = serve_config(folder, **changes)
    config.folder.mkdir()
    (folder / "runs").mkdir()
    store, script, opened = Store(config.folder), Script(), []
    conductor = Conductor(store, script, config, STAND_IN)

    def open_model(checkpoint: str, _: Any) -> Any:
        opened.append(Path(checkpoint).name)
        return Letters()

    def compare(first: Path, second: Path) -> dict[str, Difference]:
        if first == second:
            raise UserError("comparison: the same\nevaluation")
        return {"fold/accuracy": Difference(0.1, 0.01)}

    desk = Desk(config.evaluation, open_model=open_model)
    parts = Parts(config, store, desk, "p" * 64, conductor.wake, conductor.cancel, compare, embedding_rows, token_rows)
    app = make_app(parts, TOKEN, None)
    conductor.start()
    try:
        with TestClient(app, base_url=LOCAL, client=(address, 5000), raise_server_exceptions=False) as client:
            yield Running(client, store, script, folder / "runs", opened)
    finally:
        conductor.close()
        desk.close()
        store.close()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    yield from start(tmp_path)


@pytest.fixture
def starting(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Start with other settings."""
    begun: list[Iterator[Running]] = []

    def begin(**changes: Any) -> Running:
        begun.append(start(tmp_path, **changes))
        return next(begun[-1])

    yield begin
    for one in begun:
        next(one, None)


def evaluate(running: Running, step: int = 10, **content: Any) -> int:
    """Ask for a checkpoint and wait for its end."""
    path = tiny_checkpoint(running.runs, step)
    number = running.post("/api/evaluations", {"checkpoint": str(path), **content}).json()["id"]
    wait_until(lambda: running.store.evaluation(number).finished, "the evaluation's end")
    return number


def test_an_evaluation_is_asked_for_followed_and_found_among_the_others(running: Running) -> None:
    path = tiny_checkpoint(running.runs, 10)
    answer = running.post("/api/evaluations", {"checkpoint": str(path), "priority": 2})
    assert answer.status_code == 201
    number = answer.json()["id"]
    wait_until(lambda: running.store.evaluation(number).state == "done", "the evaluation's end")
    assert running.post("/api/evaluations", {"checkpoint": str(path)}).status_code == 200
    found = running.client.get(f"/api/evaluations/{number}").json()
    assert (found["state"], found["priority"], found["step"]) == ("done", 2, 10)
    assert [task["task"] for task in found["tasks"]] == ["plan", "embed", "fold", "ec", "finish"]
    assert [row["id"] for row in running.client.get("/api/evaluations?state=done").json()] == [number]
    assert running.client.get("/api/evaluations?state=failed").json() == []
    assert running.client.get("/api/evaluations/99").status_code == 404
    assert running.client.get("/api/metrics").json()["evaluations"]["done"] == 1


def test_ten_requests_at_a_time_for_one_checkpoint_run_it_once(running: Running) -> None:
    path = tiny_checkpoint(running.runs, 10)
    start_together = threading.Barrier(10)

    def ask(_: int) -> httpx.Response:
        start_together.wait()
        return running.post("/api/evaluations", {"checkpoint": str(path)})

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(ask, range(10)))
    assert sorted(answer.status_code for answer in answers) == [200] * 9 + [201]
    assert {answer.json()["id"] for answer in answers} == {1}
    wait_until(lambda: running.store.evaluation(1).state == "done", "the evaluation's end")
    assert [step.name for step in running.script.steps] == ["plan", "embed", "fold", "ec", "finish"]


def test_a_running_evaluation_is_cancelled_and_asked_for_again(running: Running) -> None:
    path = tiny_checkpoint(running.runs, 10)
    with held(running.script, "fold"):
        running.post("/api/evaluations", {"checkpoint": str(path)})
        wait_until(lambda: running.script.steps and running.script.steps[-1].name == "fold", "the held step")
        assert [task["task"] for task in running.client.get("/api/queue").json()] == ["fold", "ec", "finish"]
        assert running.client.delete("/api/evaluations/1", headers=AUTHORISED).json()["state"] == "failed"
        assert running.client.delete("/api/evaluations/1", headers=AUTHORISED).status_code == 409
    assert running.client.delete("/api/evaluations/9", headers=AUTHORISED).status_code == 404
    assert running.post("/api/evaluations", {"checkpoint": str(path), "again": True}).status_code == 201
    wait_until(lambda: running.store.evaluation(1).state == "done", "the evaluation's end")


def test_checkpoints_elsewhere_are_refused_whether_they_exist_or_not(running: Running, tmp_path: Path) -> None:
    outside = tiny_checkpoint(tmp_path / "elsewhere", 10)
    (running.runs / "link").symlink_to(outside)
    inside = tiny_checkpoint(running.runs, 10)
    (running.runs / "known").symlink_to(inside)
    for path in (outside, running.runs / "link", running.runs / "../elsewhere/small", "/nowhere", "relative", "\0"):
        answer = running.post("/api/evaluations", {"checkpoint": str(path)})
        assert answer.status_code == 403, path
        assert "elsewhere" not in answer.text
    assert running.post("/api/evaluations", {"checkpoint": str(running.runs)}).status_code == 422
    assert running.post("/api/evaluations", {"checkpoint": str(running.runs / "known")}).status_code == 201


def test_two_evaluations_are_compared(running: Running) -> None:
    first, second = evaluate(running, 10), evaluate(running, 20)
    found = running.client.get(f"/api/compare?first={first}&second={second}").json()
    assert found["metrics"] == {"fold/accuracy": {"difference": 0.1, "p_holm": 0.01}}
    refused = running.client.get(f"/api/compare?first={first}&second={first}")
    assert (refused.status_code, refused.json()["detail"]) == (409, "comparison: the same evaluation")


def test_embeddings_and_tokens_are_streamed_a_line_for_each_protein(running: Running) -> None:
    number = evaluate(running)
    body = {"sequences": [{"name": "a", "sequence": "AAC"}, {"name": "b", "sequence": "c"}]}
    lines = [json.loads(line) for line in running.post(f"/api/embed?model={number}", body).text.splitlines()]
    assert [line.get("name") for line in lines] == ["a", "b", None]
    np.testing.assert_allclose(lines[0]["embedding"], [2 / 3, 1.0], rtol=1e-6)
    assert lines[-1] == {"done": 2}
    lines = running.post("/api/embed?per=residues", body).text.splitlines()
    assert json.loads(lines[0])["embedding"] == [[1.0, 1.0], [1.0, 1.0], [0.0, 1.0]]
    fasta = ">a first protein\nAA\nC*\n\n>b\nc\n"
    headers = {**AUTHORISED, "content-type": "text/x-fasta"}
    lines = running.client.post("/api/tokens", content=fasta, headers=headers).text.splitlines()
    assert json.loads(lines[0]) == {"name": "a", "length": 3, "threedi": "DDD", "confidence": [1.0, 1.0, 1.0]}
    assert running.opened == ["step_00000010"], "the model was opened once for all three"


def test_one_model_is_kept(running: Running) -> None:
    first, second = evaluate(running, 10), evaluate(running, 20)
    body = {"sequences": [{"name": "a", "sequence": "AAC"}]}
    for model in (first, first, second, first):
        assert running.post(f"/api/embed?model={model}", body).status_code == 200
    assert [int(name[-2:]) for name in running.opened] == [10, 20, 10]


def test_what_goes_wrong_in_a_stream_is_its_last_line(running: Running) -> None:
    evaluate(running)
    body = {"sequences": [{"name": "a", "sequence": "A" * 1001}]}
    answer = running.post("/api/embed", body)
    assert json.loads(answer.text) == {"error": "a: 1001 residues, the model takes at most 1000"}


def test_limits_on_sequences(starting: Callable[..., Running]) -> None:
    running = starting(limits__max_residues=10)
    body = {"sequences": [{"name": "a", "sequence": "AAC"}]}
    assert running.post("/api/embed", body).status_code == 409, "nothing is evaluated yet"
    evaluate(running)
    assert running.post("/api/embed", {"sequences": [{"name": "a", "sequence": "A" * 11}]}).status_code == 413
    assert running.post("/api/embed", {"sequences": [{"name": "a", "sequence": "A1"}]}).status_code == 422
    assert running.post("/api/embed?model=77", body).status_code == 404
    text = {**AUTHORISED, "content-type": "text/x-fasta"}
    for fasta, status in (("AAA", 400), (">a\n", 422), (">a\nA-A", 422), ("", 422), (b"\xff", 400)):
        assert running.client.post("/api/tokens", content=fasta, headers=text).status_code == status


def test_a_checkpoint_that_is_gone_gives_no_embeddings(running: Running) -> None:
    evaluate(running)
    running.store._database.execute("UPDATE evaluations SET checkpoint = '/gone'")
    answer = running.post("/api/embed", {"sequences": [{"name": "a", "sequence": "AAC"}]})
    assert answer.status_code == 410


def test_a_full_queue_is_told(starting: Callable[..., Running]) -> None:
    running = starting(limits__max_queued=1)
    paths = [str(tiny_checkpoint(running.runs, step)) for step in (10, 20, 30)]
    with held(running.script, "plan"):
        for path in paths[:2]:
            running.post("/api/evaluations", {"checkpoint": path})
            wait_until(lambda: running.script.steps, "the first one's start")
        full = running.post("/api/evaluations", {"checkpoint": paths[2]})
    assert (full.status_code, full.headers["retry-after"]) == (429, "30")


def test_reading_is_open_on_this_host_and_nothing_else_is(running: Running) -> None:
    client = running.client
    assert client.get("/api/evaluations").status_code == 200
    assert client.get("/api/evaluations", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert client.post("/api/evaluations", json={}).status_code == 401
    assert client.delete("/api/evaluations/1").status_code == 401
    assert client.post("/api/embed", json={}, auth=("me", TOKEN)).status_code == 401, "Basic is for reading"
    assert client.get("/api/queue", auth=("me", TOKEN)).status_code == 200
    assert client.get("/healthz", headers={"Host": "evil.example"}).status_code == 421


def test_without_public_pages_reading_needs_the_token_too(starting: Callable[..., Running]) -> None:
    client = starting(public_pages=False).client
    refused = client.get("/api/queue")
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"].startswith("Basic"), "so that a browser asks its user"
    assert client.get("/api/queue", headers=AUTHORISED).status_code == 200
    assert client.get("/healthz").json() == {"ok": True}


def test_other_machines_need_the_token_for_reading_too(starting: Callable[..., Running]) -> None:
    client = starting(address="192.0.2.7", host="0.0.0.0").client
    assert client.get("/api/queue").status_code == 401
    assert client.get("/api/queue", headers=AUTHORISED).status_code == 200


def test_who_asks_too_often_waits(starting: Callable[..., Running]) -> None:
    client = starting(limits__requests_per_minute=3).client
    assert [client.get("/api/queue").status_code for _ in range(4)] == [200, 200, 200, 429]
    assert 1 <= int(client.get("/api/queue").headers["retry-after"]) <= 20
    assert client.get("/api/queue", headers=AUTHORISED).status_code == 200, "the token's holder has an own share"


def test_every_answer_carries_security_headers_and_docs_load_nothing_from_elsewhere(running: Running) -> None:
    for path in ("/healthz", "/api/queue", "/nowhere", "/docs", "/openapi.json"):
        headers = running.client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert (headers["x-content-type-options"], headers["x-frame-options"]) == ("nosniff", "DENY")
    assert "http" not in running.client.get("/docs").text
    schema = running.client.get("/openapi.json").json()
    expected = {"/api/evaluations", "/api/results", "/api/compare", "/api/queue", "/api/embed", "/api/tokens"}
    assert expected <= set(schema["paths"])
    assert "requestBody" in schema["paths"]["/api/embed"]["post"]


def test_two_hundred_malformed_requests_give_only_4xx_and_the_service_lives(running: Running) -> None:
    requests = malformed_requests()
    assert len(requests) >= 200
    for request in requests:
        answer = running.client.request(
            request.method, request.path, content=request.body, headers=request.headers, follow_redirects=False
        )
        assert 400 <= answer.status_code < 500, (request, answer.status_code, answer.text[:200])
        assert "Traceback" not in answer.text
    assert running.store.evaluations() == []
    assert running.client.get("/healthz").json() == {"ok": True}
    assert evaluate(running) == 1


def test_a_body_without_a_length_is_counted_while_it_comes(running: Running) -> None:
    sent = []

    async def ask() -> int:
        async def parts() -> Any:
            for _ in range(100):
                sent.append(1)
                yield b"x" * 2**16

        transport = httpx.ASGITransport(running.client.app)
        async with httpx.AsyncClient(transport=transport, base_url=LOCAL) as client:
            answer = await client.post("/api/evaluations", content=parts(), headers=AUTHORISED)
        return answer.status_code

    assert asyncio.run(ask()) == 413
    assert len(sent) <= 18, "not read to its end: 16 parts are allowed"
