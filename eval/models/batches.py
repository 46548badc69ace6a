"""Which sequences share a forward pass."""

from collections.abc import Iterator, Sequence

SPECIAL_TOKENS = 2
"""Before and after every sequence."""


def batches_of(lengths: Sequence[int], batch_tokens: int, padded: bool = False) -> Iterator[list[int]]:
    """Numbers of sequences of similar length whose lengths sum to at most `batch_tokens`, the longest first.

    With `padded`, every sequence counts as the longest of its batch. A longer sequence gets a batch of its own. The
    longest first: when memory does not suffice, that shows at once.
    """
    batch: list[int] = []
    total = longest = 0
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        cost = longest if batch and padded else lengths[i]
        if batch and total + cost > batch_tokens:
            yield batch
            batch, total, cost = [], 0, lengths[i]
        if not batch:
            longest = lengths[i]
        batch.append(i)
        total += cost
    if batch:
        yield batch
