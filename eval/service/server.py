"""`python -m eval serve`: all parts of the service put together, started and ended."""

import fcntl
import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from configs.errors import UserError
from configs.loading import dump_config
from configs.service import ServeConfig
from eval.service.access import check_host, read_token
from eval.service.api import Parts
from eval.service.app import make_app
from eval.service.conductor import Conductor
from eval.service.desk import Desk
from eval.service.executors import Executor, ProcessExecutor, RayExecutor
from eval.service.identity import protocol_of
from eval.service.promotion import Compare
from eval.service.registry import Registry
from eval.service.sequences import embedding_rows, token_rows
from eval.service.store import Store
from eval.service.watcher import RegistryWatcher, Reporter, Rounds, RunWatcher
from eval.service.work import EVALUATION

SERVICE_FILE = "service.json"
LOCK_FILE = "service.lock"
LEFT_BEHIND_SECONDS = 3.0
"""How long the end waits for a call to a tracker that does not answer."""
MAX_CONNECTIONS = 256
REPORT_SECONDS = 15.0
log = logging.getLogger("eval.service")


def serve(config: ServeConfig, evaluation: str = EVALUATION) -> int:
    """Serve until SIGTERM or SIGINT; what runs then is queued again. Returns the exit code.

    Args:
        config: the service.
        evaluation: module with `Job`, `plan`, `embed`, `run_task` and `finish`.

    Raises:
        UserError: the folder is in use, the port is taken, no such CPUs, or a token that others may read.
    """
    check_host(config.host, config.token_file)
    _check_cpus(config.cpus)
    import_module(evaluation)
    config.folder.mkdir(parents=True, exist_ok=True)
    ending = threading.Event()
    with ExitStack() as stack:
        stack.enter_context(_only_service(config.folder))
        token = read_token(config.token_file, config.folder)
        listener = stack.enter_context(_listen(config.host, config.port))
        store = Store(config.folder)
        stack.callback(store.close)
        if recovered := store.recover():
            log.info("%d steps that were cut off are queued again", recovered)
        executor: Executor = RayExecutor(config.evaluation.execution) if config.executor == "ray" else ProcessExecutor()
        stack.callback(executor.close)
        rounds: list[Rounds] = []
        conductor = Conductor(store, executor, config, evaluation, lambda: [one.now() for one in rounds[1:]])
        protocol = protocol_of(config.evaluation)
        store.set_protocol(protocol, dump_config(config.evaluation))
        rounds += _rounds(config, store, protocol, conductor)
        desk = Desk(config.evaluation, config.niceness, config.cpus)
        stack.callback(desk.close)
        parts = Parts(
            config, store, desk, protocol, conductor.wake, conductor.cancel, _compare(), embedding_rows, token_rows
        )
        from eval.service.pages import add_pages

        server, thread = _start_http(make_app(parts, token, add_pages), listener)
        stack.callback(thread.join, 10.0)
        stack.callback(setattr, server, "should_exit", True)
        _end_on_signals(ending)
        conductor.start()
        stack.callback(conductor.close)
        for one in rounds:
            one.start()
            stack.callback(one.close, LEFT_BEHIND_SECONDS)
        _announce(config, listener)
        while thread.is_alive() and not ending.wait(0.5):
            # Ray, which starts with the first step, takes SIGTERM for itself and aborts; only this thread may undo it.
            _end_on_signals(ending)
        log.info("ending; what runs is queued again")
    return 0 if ending.is_set() else 1


def _rounds(config: ServeConfig, store: Store, protocol: str, conductor: Conductor) -> list[Rounds]:
    """What looks around: the runs first, then what should also look when an evaluation has ended."""
    every = config.watch.every_seconds
    rounds = [Rounds("run folders", RunWatcher(store, config, protocol).look, every, conductor.wake)]
    if config.evaluation.mlflow:
        rounds.append(Rounds("metrics", Reporter(store).look, max(every, REPORT_SECONDS), lambda: None))
    if config.watch.registry is not None:
        registry = Registry(config.watch.registry, config.watch.models)
        watcher = RegistryWatcher(store, config, protocol, registry, _compare())
        rounds.append(Rounds("registry", watcher.look, every, conductor.wake))
    return rounds


def _compare() -> Compare:
    from eval.comparison import compare

    return compare


@contextmanager
def _only_service(folder: Path) -> Iterator[None]:
    """Two services over one queue would run everything twice."""
    with (folder / LOCK_FILE).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"folder {folder}: another service uses it; end that one, or set folder=...") from None
        yield


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise UserError(f"host {host}, port {port}: {error.strerror}; set port=0 for any free one") from None
    return listener


def _check_cpus(cpus: tuple[int, ...]) -> None:
    allowed = os.sched_getaffinity(0)
    if wrong := sorted(set(cpus) - allowed):
        raise UserError(f"cpus: {wrong} cannot be used; allowed: {sorted(allowed)}")


def _start_http(app: FastAPI, listener: socket.socket) -> tuple[uvicorn.Server, threading.Thread]:
    """Serve in a thread; signals stay with the main thread."""
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            http="h11",
            lifespan="off",
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=2,
        )
    )
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="http", daemon=True)
    thread.start()
    return server, thread


def _end_on_signals(ending: threading.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())


def _announce(config: ServeConfig, listener: socket.socket) -> None:
    """Say where the service is: in the log, and in `service.json` for programs."""
    port = listener.getsockname()[1]
    host = f"[{config.host}]" if ":" in config.host else config.host
    facts = {"url": f"http://{host}:{port}", "port": port, "pid": os.getpid()}
    path = config.folder / SERVICE_FILE
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(facts, indent=1) + "\n")
    os.replace(partial, path)
    log.info("%s  (token: %s)", facts["url"], config.token_file or config.folder / "token")
