"""The evaluation service, killed, hurt and asked for nonsense: nothing is lost, and nothing is done twice."""

import json
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from eval.service.work import EVALUATION
from tests.faults.service_runs import Service, wait_for_end_of
from tests.unit.eval.makers import train_config, write_checkpoint, write_test_shards
from tests.unit.eval.service.makers import tiny_checkpoint, wait_until
from tests.unit.eval.service.stand_in import TASKS

STEPS = ("plan", "embed", *TASKS, "finish")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    made: list[Service] = []

    def make(**changes: Any) -> Service:
        made.append(Service(tmp_path, **changes))
        return made[-1].start()

    yield make
    for one in made:
        if one.is_alive():
            one.end()


def order(folder: Path, **orders: Any) -> None:
    (folder / "runs" / "small").mkdir(parents=True, exist_ok=True)
    (folder / "runs" / "small" / "stand_in.json").write_text(json.dumps(orders))


def let_go(one: Service) -> None:
    """Every held step may go on, now and later."""
    order(one.folder, hold=[])
    for folder in (one.config.folder / "results").glob("*"):
        for step in STEPS:
            (folder / f"go-{step}").touch()


def wait_for_step(one: Service, step: str) -> None:
    folder = one.config.folder / "results"
    wait_until(lambda: any(path.read_text() for path in folder.glob(f"*/pid-{step}")), f"step {step}; {one.log()}")


def check_all_done(one: Service, checkpoints: list[Path]) -> None:
    wait_until(lambda: one.states() == {"done": len(checkpoints)}, f"the end of all evaluations; {one.log()}")
    measured = {f"{path.name} {step}" for path in checkpoints for step in TASKS}
    assert set(one.recorded().values()) == {1}
    assert len(one.recorded()) == len(measured), "one result for each of (weights, task, version)"
    counts = one.measured()
    assert {name: counts[name] for name in measured} == dict.fromkeys(measured, 1), "no task was measured twice"


def kill_at(
    make: Callable[..., Service], folder: Path, step: str, steps: tuple[int, ...] = (10, 20), **changes: Any
) -> int | None:
    """Kill the service while a step runs, start it again, and look at what came of it; returns its exit code."""
    order(folder, hold=[step])
    checkpoints = [tiny_checkpoint(folder / "runs", number) for number in steps]
    one = make(**changes)
    wait_for_step(one, step)
    one.end(signal.SIGKILL)
    assert one.rows("SELECT name FROM tasks WHERE state = 'running'") == [(step,)]
    wait_for_end_of(one.pids())
    let_go(one)
    one.start()
    check_all_done(one, checkpoints)
    return one.end(signal.SIGTERM)


def test_killed_while_a_task_runs_it_goes_on_where_it_was(service: Callable[..., Service], tmp_path: Path) -> None:
    assert kill_at(service, tmp_path, TASKS[1], (10,)) == 0


@pytest.mark.long
@pytest.mark.parametrize("step", [step for step in STEPS if step != TASKS[1]])
def test_killed_in_any_step_it_goes_on_where_it_was(service: Callable[..., Service], tmp_path: Path, step: str) -> None:
    assert kill_at(service, tmp_path, step) == 0


@pytest.mark.long
def test_killed_while_a_ray_task_runs_it_goes_on_where_it_was(service: Callable[..., Service], tmp_path: Path) -> None:
    assert kill_at(service, tmp_path, TASKS[1], (10,), executor="ray") == 0


@pytest.mark.long
@pytest.mark.parametrize("seconds", [0.02 * 1.45**n for n in range(12)])
def test_killed_at_any_moment_again_and_again_nothing_is_lost(
    service: Callable[..., Service], tmp_path: Path, seconds: float
) -> None:
    checkpoints = [tiny_checkpoint(tmp_path / "runs", number) for number in (10, 20)]
    one = service()
    for _ in range(3):
        # The moments are spread over the evaluations; which one is hit does not matter.
        time.sleep(seconds)
        one.end(signal.SIGKILL)
        one.start()
    wait_until(lambda: one.states() == {"done": 2}, f"the end of all evaluations; {one.log()}")
    assert len(one.recorded()) == len(checkpoints) * len(TASKS)
    assert set(one.recorded().values()) == {1}
    wait_for_end_of(one.pids())


def test_told_to_end_it_ends_soon_and_what_ran_waits_in_the_queue(
    service: Callable[..., Service], tmp_path: Path
) -> None:
    order(tmp_path, hold=["fold"])
    checkpoint = tiny_checkpoint(tmp_path / "runs", 10)
    one = service()
    wait_for_step(one, "fold")
    began = time.monotonic()
    assert one.end(signal.SIGTERM) == 0
    assert time.monotonic() - began < 10, "seconds, while the held step would have taken a minute"
    wait_for_end_of(one.pids(), 1.0)
    assert one.rows("SELECT state, attempts FROM tasks WHERE name = 'fold'") == [("queued", 0)]
    let_go(one)
    one.start()
    check_all_done(one, [checkpoint])


def test_on_a_real_socket_duplicates_run_once_damage_fails_and_nonsense_is_refused(
    service: Callable[..., Service], tmp_path: Path
) -> None:
    whole, damaged, dying = (tiny_checkpoint(tmp_path / "parked" / "runs", number) for number in (10, 20, 30))
    weights = next(damaged.glob("weights-*"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    order(tmp_path, die={"ec": 1}, **{"raise": {"stability": "no labels\nhere"}})
    # The watcher looks once, when there is nothing: the requests are the only ones to ask.
    one = service(watch__runs=[str(tmp_path / "runs" / "asked")], watch__every_seconds=3600.0)
    asked = tmp_path / "runs" / "asked" / "later"
    shutil.move(tmp_path / "parked" / "runs" / "small", asked)
    (asked / "stand_in.json").write_text((tmp_path / "runs" / "small" / "stand_in.json").read_text())
    places = [asked / "checkpoints" / path.name for path in (whole, damaged, dying)]
    with one.client() as client, ThreadPoolExecutor(10) as pool:
        asking = threading.Barrier(10)

        def ask(_: int) -> httpx.Response:
            asking.wait()
            return client.post("/api/evaluations", json={"checkpoint": str(places[0])})

        answers = list(pool.map(ask, range(10)))
        assert {answer.status_code for answer in answers} <= {200, 201}
        assert len({answer.json()["id"] for answer in answers}) == 1
        for place in places[1:]:
            client.post("/api/evaluations", json={"checkpoint": str(place)}).raise_for_status()
        _speak_nonsense(client.base_url.port)
        wait_until(lambda: one.states() == {"failed": 3}, f"the end of all; {one.log()}")
        rows = {row["step"]: row for row in client.get("/api/evaluations").json()}
        assert rows[10]["reason"] == "1 of its tasks failed: stability: no labels here"
        assert "is damaged (sha256 differs)" in rows[20]["reason"]
        attempts = dict(one.rows("SELECT name, attempts FROM tasks WHERE evaluation = 1"))
        assert (attempts["ec"], attempts["stability"], attempts["fold"]) == (2, 1, 1), "only the dead one is run again"
        assert one.measured()[f"{whole.name} fold"] == 1
        assert client.get("/healthz").json() == {"ok": True}
        for page in ("/", "/queue", "/docs", "/openapi.json"):
            assert client.get(page).status_code == 200, page
    assert one.end(signal.SIGTERM) == 0
    assert "Traceback" not in one.log()


@pytest.mark.long
@pytest.mark.parametrize("executor", ["process", "ray"])
def test_a_real_run_is_evaluated_to_its_results_and_gives_embeddings(tmp_path: Path, executor: str) -> None:
    write_test_shards(tmp_path / "shards")
    config = train_config(tmp_path / "runs", tmp_path / "shards")
    write_checkpoint(config, 10)
    evaluation = {
        "data": {"shards": str(tmp_path / "shards")},
        "tasks": ["pseudo_perplexity", "threedi"],
        "execution": {"threads": 1},
        "device": "cpu",
    }
    one = Service(tmp_path, evaluation=evaluation, executor=executor)
    one.evaluation = EVALUATION
    one.start()
    try:
        wait_until(lambda: one.states()["done"] + one.states()["failed"], f"the evaluation's end; {one.log()}")
        with one.client() as client:
            (found,) = client.get("/api/results").json()
            assert found["evaluation"]["state"] == "done", found["evaluation"]["reason"]
            assert {result["task"] for result in found["results"]["results"]} == {"pseudo_perplexity", "threedi"}
            body = {"sequences": [{"name": "a", "sequence": "MKTAYIAKQRBZX"}]}
            lines = [json.loads(line) for line in client.post("/api/embed", json=body).text.splitlines()]
            assert (len(lines[0]["embedding"]), lines[1]) == (32, {"done": 1})
            lines = [json.loads(line) for line in client.post("/api/tokens", json=body).text.splitlines()]
            assert (len(lines[0]["threedi"]), len(lines[0]["confidence"])) == (13, 13)
            assert client.get("/").status_code == 200
    finally:
        assert one.end(signal.SIGTERM) == 0


def _speak_nonsense(port: int) -> None:
    """What no HTTP library sends, on sockets of its own; each gets a 4xx or a closed connection."""
    head = b"Host: 127.0.0.1\r\n"
    for sent in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64 + b"\r\n\r\n",
        b"NONSENSE\r\n\r\n",
        b"GET / HTTP/9.9\r\n" + head + b"\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /../../etc/passwd HTTP/1.1\r\n" + head + b"\r\n",
        b"GET //etc/passwd HTTP/1.1\r\n" + head + b"\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n" + head + b"\r\n",
        b"GET /nowhere HTTP/1.1\r\n" + head + b"X: " + b"a" * 100_000 + b"\r\n\r\n",
        b"POST /api/evaluations HTTP/1.1\r\n" + head + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /api/evaluations HTTP/1.1\r\n" + head + b"Content-Length: -5\r\n\r\n",
        b"POST /api/evaluations HTTP/1.1\r\n" + head + b"Content-Length: 99999999999\r\n\r\n{",
        b"POST /api/evaluations HTTP/1.1\r\n" + head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            try:
                answer = connection.recv(65536)
            except ConnectionResetError:
                answer = b""
        assert not answer or answer.startswith(b"HTTP/1.1 4"), (sent[:60], answer[:100])
