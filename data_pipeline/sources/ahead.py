"""Reading a batch of entries with downloads ahead of their turn, so that the network is not waited for file by file."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from data_pipeline.sources.entries import Entry, read_named_entry

Read = Callable[[], tuple[str, bytes]]


def reading_ahead(entries: Sequence[Entry]) -> Iterator[tuple[Entry, Read]]:
    """Each entry, in order, with a function that returns its name and bytes or raises like `read_named_entry`.

    Local entries are read when that function is called; of remote ones up to `source.remote.parallel` are on their
    way. Call the function before the next entry is asked for.
    """
    parallel = max((getattr(entry.reader, "parallel", 0) for entry in entries), default=0)
    if parallel < 2:
        yield from ((entry, _reading(entry)) for entry in entries)
        return
    executor = ThreadPoolExecutor(parallel)
    try:
        waiting: deque[tuple[Entry, Future[tuple[str, bytes]]]] = deque()
        for entry in entries:
            waiting.append((entry, executor.submit(read_named_entry, entry)))
            if len(waiting) >= parallel:
                first, future = waiting.popleft()
                yield first, future.result
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result
    finally:
        # A download that hangs must not hold up whoever gave up on it.
        executor.shutdown(wait=False, cancel_futures=True)


def _reading(entry: Entry) -> Read:
    return lambda: read_named_entry(entry)
