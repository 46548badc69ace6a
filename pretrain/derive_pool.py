"""Tasks on Ray actors that open something costly once: lost actors are replaced, a task that kills them is named."""

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from configs.errors import UserError

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")
MAX_DEATHS = 3
"""Actors lost over one task before it is given up."""
_OPENING = -1
SECONDS_UNTIL_A_WORD = 30.0
"""When nobody works for so long because the cluster is busy, say it."""
log = logging.getLogger("pretrain.derive")


@dataclass(frozen=True)
class PoolSize:
    """Actors and what each one needs."""

    actors: int
    gpus_each: int = 0


class PoolActor:
    """Opens once, then works on one task after another."""

    def __init__(self) -> None:
        self._work: Callable[[Any], Any] | None = None

    def open(self, open_worker: Callable[[Any], Callable[[Any], Any]], settings: Any) -> None:
        """Here and not in the constructor, so that what goes wrong comes back as what it is."""
        self._work = open_worker(settings)

    def run(self, task: Any) -> Any:
        assert self._work is not None
        return self._work(task)


class Pool(Generic[S, T, R]):
    """Actors that stay open from one list of tasks to the next; Ray must be initialised. Close it, or use `with`.

    Args:
        open_worker: importable; called once in each actor, gives what is called with each task.
        name: what to call a task in messages.
    """

    def __init__(
        self,
        open_worker: Callable[[S], Callable[[T], R]],
        settings: S,
        size: PoolSize,
        name: Callable[[T], str],
    ) -> None:
        import ray

        self._make = ray.remote(num_cpus=1, num_gpus=size.gpus_each)(PoolActor)
        self._arguments = (open_worker, settings)
        self._size = size
        self._name = name
        self._idle: list[Any] = []
        self._tasks: Sequence[T] = ()
        self._waiting: deque[int] = deque()
        self._deaths: Counter[int] = Counter()
        self._under_way: dict[Any, tuple[Any, int | None]] = {}
        """Future -> its actor, and the number of the task or None while the actor opens."""

    def run(self, tasks: Sequence[T]) -> Iterator[R]:
        """Results as they finish, in any order.

        Raises:
            UserError: raised by a task, or a task ended MAX_DEATHS actors.
        """
        self._tasks, self._waiting, left = tasks, deque(range(len(tasks))), len(tasks)
        self._deaths.clear()
        idle, self._idle = self._idle, []
        for actor in idle:
            self._give(actor)
        while len(self._under_way) + len(self._idle) < min(self._size.actors, len(tasks)):
            self._start()
        # Until the last task is done, not the last actor: one that the cluster has no room for may never open.
        while left:
            for actor, number, result in self._finished():
                self._give(actor)
                if number is not None:
                    left -= 1
                    yield result

    def close(self) -> None:
        import ray

        for actor in [*self._idle, *(actor for actor, _ in self._under_way.values())]:
            ray.kill(actor)
        self._idle.clear()
        self._under_way.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _finished(self) -> Iterator[tuple[Any, int | None, Any]]:
        """Actors that have finished something, what it was, and the result; lost ones are replaced."""
        import ray
        from ray.exceptions import RayActorError, RayTaskError, WorkerCrashedError

        done, _ = ray.wait(list(self._under_way), timeout=SECONDS_UNTIL_A_WORD)
        if not done and all(number is None for _, number in self._under_way.values()):
            log.info("waiting until the Ray cluster has room for a worker, or a worker has opened its teacher")
        for future in done:
            actor, number = self._under_way.pop(future)
            try:
                result = ray.get(future)
            except (RayActorError, WorkerCrashedError) as error:
                self._replace(number, error)
                continue
            except RayTaskError as error:
                # UserError crosses as the cause; anything else is a fault of ours and keeps its traceback.
                raise (UserError(str(error.cause)) if isinstance(error.cause, UserError) else error) from None
            if number is None:
                self._deaths[_OPENING] = 0
            yield actor, number, result

    def _start(self) -> None:
        actor = self._make.remote()
        # A task waits for an actor that has opened, never behind one that the cluster has no room for yet.
        self._under_way[actor.open.remote(*self._arguments)] = (actor, None)

    def _give(self, actor: Any) -> None:
        if self._waiting:
            number = self._waiting.popleft()
            self._under_way[actor.run.remote(self._tasks[number])] = (actor, number)
        else:
            self._idle.append(actor)

    def _replace(self, number: int | None, error: Exception) -> None:
        """A fresh actor for a lost one; its task comes next."""
        what = "opening the teacher" if number is None else self._name(self._tasks[number])
        key = _OPENING if number is None else number
        self._deaths[key] += 1
        cause = " ".join(str(error).split())[:200]
        log.warning("%s: its worker was lost (%d of %d): %s", what, self._deaths[key], MAX_DEATHS, cause)
        if self._deaths[key] >= MAX_DEATHS:
            raise UserError(
                f"{what}: ended {MAX_DEATHS} workers, got {cause}; allowed: less than the memory of a worker;"
                " lower derive.batch_residues or derive.num_workers, and run again: finished shards are kept"
            )
        if number is not None:
            self._waiting.appendleft(number)
        if self._waiting:
            self._start()
