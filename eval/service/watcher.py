"""Looks for new checkpoints, tells MLflow what was found, and has versions promoted; nothing here stops the service."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from configs.errors import UserError
from configs.service import ServeConfig
from eval.service.identity import identify, one_line
from eval.service.promotion import Compare, promote
from eval.service.registry import Registry, bound_waiting
from eval.service.store import Store
from eval.tracking import TRACKING_FILE, log_results
from pretrain.checkpoints import CHECKPOINTS, MANIFEST, list_checkpoints, open_checkpoint

LONGEST_PAUSE_SECONDS = 900.0
"""Between attempts to reach a tracker that does not answer."""
log = logging.getLogger("eval.service")


def runs_under(folder: Path) -> Iterator[Path]:
    """The folder where it is a run, else the runs directly in it."""
    if (folder / CHECKPOINTS).is_dir() or any(folder.glob(f"step_*/{MANIFEST}")):
        yield folder
    elif folder.is_dir():
        for inner in sorted(folder.iterdir()):
            if (inner / CHECKPOINTS).is_dir() or (inner.is_dir() and any(inner.glob(f"step_*/{MANIFEST}"))):
                yield inner


def has_no_trunk(path: Path) -> bool:
    """Whether a checkpoint is a teacher's, which no task can measure; a damaged one is for the queue to tell of."""
    try:
        return open_checkpoint(path, verify=False).config.trunk is None
    except UserError:
        return False


class RunWatcher:
    """Queues each complete checkpoint of the watched runs; one seen is known by its manifest's time and size."""

    def __init__(self, store: Store, config: ServeConfig, protocol: str) -> None:
        self._store = store
        self._runs = config.watch.runs
        self._protocol = protocol
        self._seen: set[tuple[Path, int, int]] = set()

    def look(self) -> int:
        """Queue what is new; returns the number of evaluations that were not there before."""
        new = 0
        for folder in self._runs:
            for run in runs_under(folder):
                for path in list_checkpoints(run):
                    new += self._take(path)
        return new

    def _take(self, path: Path) -> bool:
        try:
            facts = (path / MANIFEST).stat()
            key = (path, facts.st_mtime_ns, facts.st_size)
            if key in self._seen:
                return False
            if has_no_trunk(path):
                self._seen.add(key)
                return False
            evaluation, is_new = self._store.enqueue(identify(path), self._protocol)
        except (OSError, UserError) as error:
            # It may be removed at this moment, or still be uploaded: the next look sees.
            log.info("%s is left for now (%s)", path, one_line(error))
            return False
        self._seen.add(key)
        if is_new:
            log.info("evaluation %d is queued: %s", evaluation, path)
        return is_new


class RegistryWatcher:
    """Queues checkpoints of new model versions, and carries promotion out."""

    def __init__(self, store: Store, config: ServeConfig, protocol: str, registry: Registry, compare: Compare) -> None:
        self._store = store
        self._config = config
        self._protocol = protocol
        self._registry = registry
        self._compare = compare
        self._refused: set[tuple[str, int]] = set()

    def look(self) -> int:
        """Queue what is new and promote what is done; returns the number of new evaluations."""
        new = 0
        for found in self._registry.versions(frozenset(self._store.versions(self._protocol)) | self._refused):
            new += self._take(found.model, found.version, found.checkpoint)
        promote(self._store, self._registry, self._config.promotion, self._compare, self._protocol)
        return new

    def _take(self, model: str, version: int, checkpoint: Path | None) -> bool:
        try:
            if checkpoint is None:
                raise UserError("it names no checkpoint folder (tag `path`)")
            evaluation, is_new = self._store.enqueue(identify(checkpoint), self._protocol)
        except (OSError, UserError) as error:
            log.warning("%s version %d is left out: %s", model, version, one_line(error))
            self._refused.add((model, version))
            return False
        self._store.link_version(model, version, evaluation)
        if is_new:
            log.info("evaluation %d is queued: %s version %d", evaluation, model, version)
        return is_new


class Reporter:
    """Logs finished evaluations to the logged models of their checkpoints, as often as it takes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._next: dict[int, tuple[float, float]] = {}

    def look(self) -> int:
        """Try what is due; returns the number logged."""
        logged, now = 0, time.monotonic()
        found = {row.id: results for row, results in self._store.results()} if self._store.unlogged() else {}
        for row in self._store.unlogged():
            due, pause = self._next.get(row.id, (0.0, 1.0))
            if due > now or row.id not in found:
                continue
            run = Path(row.checkpoint).parent
            run = run.parent if run.name == CHECKPOINTS else run
            if (run / TRACKING_FILE).is_file() and log_results(run, found[row.id]):
                self._store.set_logged(row.id)
                logged += 1
            else:
                self._next[row.id] = (time.monotonic() + pause, min(2 * pause, LONGEST_PAUSE_SECONDS))
        return logged


class Rounds:
    """Calls `look` again and again in a thread; an error is told once and the next look is tried all the same."""

    def __init__(self, name: str, look: Callable[[], int], every_seconds: float, found: Callable[[], None]) -> None:
        bound_waiting()
        self._name, self._look, self._every, self._found = name, look, every_seconds, found
        self._closing = threading.Event()
        self._due = threading.Event()
        self._told: str | None = None
        self._thread = threading.Thread(target=self._follow, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def now(self) -> None:
        """Look without waiting for the next round."""
        self._due.set()

    def close(self, seconds: float) -> None:
        """End; a call that hangs in a dead server is left behind."""
        self._closing.set()
        self._due.set()
        self._thread.join(timeout=seconds)

    def _follow(self) -> None:
        while not self._closing.is_set():
            self._due.clear()
            try:
                if self._look():
                    self._found()
                self._told = None
            except Exception as error:
                text = f"{type(error).__name__}: {one_line(error, 200)}"
                if text != self._told:
                    log.warning("%s: %s; tried again later", self._name, text)
                self._told = text
            self._due.wait(self._every)
