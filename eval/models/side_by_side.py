"""Forward passes side by side on the cores of a CPU."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

CPU_TOKENS = 1280
"""Of one forward pass on a CPU at most: the activations of more leave its caches."""
Item = TypeVar("Item")
Result = TypeVar("Result")


def batch_tokens_on(device: torch.device, batch_tokens: int) -> int:
    """Tokens of one forward pass on a device."""
    return min(batch_tokens, CPU_TOKENS) if device.type == "cpu" else batch_tokens


def side_by_side(work: Callable[[Item], Result], items: Sequence[Item], device: torch.device) -> Iterator[Result]:
    """work(item) of every item, in order and without gradients; a few results are ready before they are asked for.

    On a CPU as many run at once as torch has threads for, each with its share of them. A pass of a small model over a
    thousand tokens is hundreds of operations of a few milliseconds: threads that divide each operation spend a third
    of their time waiting for each other, threads that take a pass each do not.
    """

    def quietly(item: Item) -> Result:
        with torch.no_grad():
            return work(item)

    threads = torch.get_num_threads()
    workers = min(threads, len(items)) if device.type == "cpu" else 1
    if workers < 2:
        yield from map(quietly, items)
        return
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,)) as pool:
        try:
            for item in items:
                pending.append(pool.submit(quietly, item))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
            # What a worker sets is the default of threads to come, too.
            torch.set_num_threads(threads)
