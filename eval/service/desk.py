"""Embeddings and 3Di tokens for clients: one model in memory, one request at a time, on a thread that gives way."""

import asyncio
import contextlib
import json
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import Any

from configs.evaluate import EvalConfig
from eval.models.protocol import ProteinModel
from eval.service.executors import threads_of
from eval.service.identity import one_line

MAX_WAITING = 8
"""Requests that wait for the model, the running one included."""
STREAM_SECONDS = 900.0
"""A client that reads more slowly than this is left."""
Work = Callable[[ProteinModel, Sequence[tuple[str, str]]], Iterator[dict[str, Any]]]
_Call = tuple[asyncio.Future, Callable[..., Any], tuple[Any, ...]]
Open = Callable[[str, EvalConfig], ProteinModel]
log = logging.getLogger("eval.service")


class Desk:
    """Opens the model a client names, keeps the last one, and streams rows of JSON."""

    def __init__(
        self, config: EvalConfig, niceness: int = 0, cpus: Sequence[int] = (), open_model: Open | None = None
    ) -> None:
        threads = threads_of(config.execution)
        self._config = config.model_copy(update={"execution": config.execution.model_copy(update={"threads": threads})})
        self._open = open_model or _open_model
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        # A daemon: the end of the service does not wait for what a client asked.
        threading.Thread(
            target=_answer_calls, args=(self._calls, niceness, tuple(cpus)), name="desk", daemon=True
        ).start()
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._kept: tuple[str, ProteinModel] | None = None

    @property
    def is_full(self) -> bool:
        """Whether no further request can wait."""
        return self._waiting >= MAX_WAITING

    async def stream(self, checkpoint: str, sequences: Sequence[tuple[str, str]], work: Work) -> AsyncIterator[bytes]:
        """One line of JSON per protein, then `{"done": number}`; what goes wrong on the way is `{"error": ...}`."""
        self._waiting += 1
        try:
            async with asyncio.timeout(STREAM_SECONDS), self._turn:
                model = await self._call(self._model, checkpoint)
                rows = iter(work(model, sequences))
                number = 0
                while (line := await self._call(_next_line, rows)) is not None:
                    yield line
                    number += 1
                yield json.dumps({"done": number}).encode() + b"\n"
        except Exception as error:
            log.warning("a request for embeddings or tokens failed: %s", one_line(error))
            yield json.dumps({"error": one_line(error) or type(error).__name__}).encode() + b"\n"
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """No call is answered any more."""
        self._calls.put(None)

    async def _call(self, function: Callable[..., Any], *values: Any) -> Any:
        """Call the function on the desk's thread."""
        future = asyncio.get_running_loop().create_future()
        self._calls.put((future, function, values))
        return await future

    def _model(self, checkpoint: str) -> ProteinModel:
        if self._kept is None or self._kept[0] != checkpoint:
            # The old one goes before the new one comes, so that both need not fit.
            self._kept = None
            self._kept = (checkpoint, self._open(checkpoint, self._config))
        return self._kept[1]


def _answer_calls(calls: "SimpleQueue[_Call | None]", niceness: int, cpus: tuple[int, ...]) -> None:
    _give_way(niceness, cpus)
    while (call := calls.get()) is not None:
        future, function, values = call
        try:
            settle, outcome = _set_result, function(*values)
        except Exception as error:
            settle, outcome = _set_exception, error
        # Once the service ends its loop is closed, and nobody waits.
        with contextlib.suppress(RuntimeError):
            future.get_loop().call_soon_threadsafe(settle, future, outcome)


def _set_result(future: asyncio.Future, result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _set_exception(future: asyncio.Future, error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _next_line(rows: Iterator[dict[str, Any]]) -> bytes | None:
    row = next(rows, None)
    return None if row is None else json.dumps(row).encode() + b"\n"


def _open_model(checkpoint: str, config: EvalConfig) -> ProteinModel:
    from eval.models.open import open_model

    return open_model(checkpoint, config)


def _give_way(niceness: int, cpus: tuple[int, ...]) -> None:
    """This thread, and the compute threads that it starts, but not those that answer clients."""
    thread = threading.get_native_id()
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, niceness)
        if cpus:
            os.sched_setaffinity(thread, cpus)
