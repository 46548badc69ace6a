"""Takes steps from the queue and has them carried out, until told to stop."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from configs.errors import UserError
from configs.loading import dump_config
from configs.service import ServeConfig
from eval.service.executors import Ended, Executor, threads_of
from eval.service.identity import one_line
from eval.service.store import Claim, Store
from eval.service.work import EVALUATION, Step

IDLE_SECONDS = 5.0
"""How long a worker waits for a sign of new work before it looks by itself."""
STOP_SECONDS = 15.0
log = logging.getLogger("eval.service")


class Conductor:
    """Worker threads over one queue; each has one evaluation's step in hand at a time."""

    def __init__(
        self,
        store: Store,
        executor: Executor,
        config: ServeConfig,
        evaluation: str = EVALUATION,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        """`ended` is called whenever an evaluation may have ended."""
        self._store = store
        self._executor = executor
        self._config = config
        self._evaluation = evaluation
        self._ended = ended
        self._text = dump_config(config.evaluation)
        self._closing = threading.Event()
        self._work = threading.Condition()
        self._stops: dict[int, threading.Event] = {}
        names = range(config.concurrent)
        self._threads = [threading.Thread(target=self._follow, name=f"evaluation-{n}", daemon=True) for n in names]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """There may be work."""
        with self._work:
            self._work.notify_all()

    def cancel(self, evaluation: int) -> bool:
        """End an evaluation, and the step of it that runs; false where it has ended already.

        Raises:
            KeyError: no such evaluation.
        """
        cancelled = self._store.cancel(evaluation)
        stop = self._stops.get(evaluation)
        if cancelled and stop is not None:
            stop.set()
        return cancelled

    def close(self) -> None:
        """End what runs, which is queued again, and the threads."""
        self._closing.set()
        for stop in list(self._stops.values()):
            stop.set()
        self.wake()
        for thread in self._threads:
            thread.join(timeout=STOP_SECONDS)

    def _follow(self) -> None:
        while not self._closing.is_set():
            claim = None
            try:
                with self._work:
                    # Claimed under the lock: no sign of new work falls between the look and the wait.
                    claim = self._store.claim()
                    if claim is None:
                        self._work.wait(IDLE_SECONDS)
                        continue
                self._run(claim)
            except Exception:
                log.exception("a step could not be run; it is tried again")
                if claim is not None:
                    self._store.again(claim, counts=False)
                self._closing.wait(IDLE_SECONDS)

    def _run(self, claim: Claim) -> None:
        stop = self._stops[claim.evaluation] = threading.Event()
        if self._closing.is_set() or self._store.evaluation(claim.evaluation).state != "running":
            # Cancelled or closed before there was something to tell.
            stop.set()
        try:
            ended = self._carry_out(claim, stop)
        finally:
            self._stops.pop(claim.evaluation, None)
        self._record(claim, ended)
        self._ended()

    def _carry_out(self, claim: Claim, stop: threading.Event) -> Ended:
        config = self._config
        step = Step(
            kind=claim.kind,
            name=claim.name,
            checkpoint=claim.checkpoint,
            output=str(Path(self._store.folder_of(claim.evaluation)).absolute()),
            config=claim.config or self._text,
            num_embedded=claim.num_embedded,
            seconds=claim.seconds,
            failed=tuple(claim.failed.items()),
            evaluation=self._evaluation,
            niceness=config.niceness,
            cpus=config.cpus,
            threads=threads_of(config.evaluation.execution),
        )
        limit = config.task_timeouts.get(claim.name, config.task_timeout_seconds)
        log.info("evaluation %d: %s of %s", claim.evaluation, claim.name, claim.checkpoint)
        try:
            return self._executor.run(step, limit, stop)
        except UserError as error:
            # The executor cannot work (no such cluster): that is no fault of the step, which waits.
            log.warning("%s", error)
            self._closing.wait(IDLE_SECONDS)
            return Ended("stopped", 0.0)

    def _record(self, claim: Claim, ended: Ended) -> None:
        store, seconds = self._store, ended.seconds
        if ended.how == "done" and claim.kind == "plan":
            store.planned(claim, ended.answer["names"], seconds)
        elif ended.how == "done":
            answer = ended.answer
            store.done(claim, seconds, answer.get("version"), answer.get("num_embedded", 0))
        elif ended.how == "stopped":
            store.again(claim, counts=False)
        elif ended.how == "died" and claim.attempts < self._config.max_attempts:
            log.warning("evaluation %d: %s: %s; it is tried again", claim.evaluation, claim.name, ended.reason)
            store.again(claim, counts=True)
        else:
            times = f" ({claim.attempts} attempts)" if ended.how == "died" else ""
            reason = f"{one_line(ended.reason)}{times}"
            log.warning("evaluation %d: %s failed: %s", claim.evaluation, claim.name, reason)
            store.failed(claim, seconds, reason)
