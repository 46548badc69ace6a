"""Train, validation and test by cluster: by deposition date where one is given, else by fraction of the chains."""

import hashlib
import logging
from collections.abc import Iterable
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs.splits import SplitConfig
from data_pipeline.manifest import SPLITS
from data_pipeline.splits.components import first_of_each

log = logging.getLogger("data_pipeline")

MIN_CLUSTERS_TO_SPLIT = 3
UNDATED = np.iinfo(np.int32).min
"""Day of a chain without a date: older than any."""
_TRAIN, _VALIDATION, _TEST = (SPLITS.index(name) for name in ("train", "validation", "test"))
_EPOCH = date(1970, 1, 1)


def assign_splits(table: pa.Table, labels: np.ndarray, config: SplitConfig) -> tuple[np.ndarray, dict[str, Any]]:
    """int8 [S], each chain's number in `manifest.SPLITS`, and the rule in numbers for the manifest.

    Args:
        table: one row for each chain, with columns `key` and, for splits by date, `deposition_date` (ISO text or date).
        labels: int64 [S], clusters numbered by first appearance.

    A cluster stands in one split. With `test_from`, test has the clusters whose every chain was deposited on or after
    that day; of the rest, `validation_from` gives validation likewise. A cluster with one older or undated chain is
    not late, and its late chains train with it. A split without a day is filled by fraction from the clusters that are
    left. Some tens of bytes a chain are needed.
    """
    count = int(labels.max(initial=-1)) + 1
    sizes = np.bincount(labels, minlength=count)
    splits = np.full(count, _TRAIN, dtype=np.int8)
    facts: dict[str, Any] = {"seed": config.seed}
    days = None
    if config.validation_from or config.test_from:
        days = _days(table["deposition_date"])
        oldest = np.full(count, np.iinfo(np.int32).max, dtype=np.int32)
        np.minimum.at(oldest, labels, days)
        # The later day last: it has the last word.
        for name, code in (("validation_from", _VALIDATION), ("test_from", _TEST)):
            if first_day := getattr(config, name):
                facts[name] = first_day.isoformat()
                splits[oldest >= (first_day - _EPOCH).days] = code
    wanted = {}
    if not config.test_from:
        wanted[_TEST] = facts["test_fraction"] = config.test_fraction
    if not config.validation_from:
        wanted[_VALIDATION] = facts["validation_fraction"] = config.validation_fraction
    open_clusters = np.flatnonzero(splits == _TRAIN)
    names = table["key"].take(pa.array(first_of_each(labels)[open_clusters]))
    chosen = _by_fraction(_names(names), sizes[open_clusters], int(sizes.sum()), wanted, config.seed)
    splits[open_clusters] = chosen
    codes = splits[labels]
    facts["chains"] = {name: int((codes == code).sum()) for code, name in enumerate(SPLITS)}
    facts["clusters"] = {name: int((splits == code).sum()) for code, name in enumerate(SPLITS)}
    if days is not None:
        facts |= _date_facts(days, codes, config)
        for name in ("validation", "test"):
            if getattr(config, f"{name}_from") and not facts["chains"][name]:
                log.warning("no cluster is wholly of %s_from or later: %s is empty; choose an earlier day", name, name)
    return codes, facts


def _by_fraction(
    names: Iterable[str], sizes: np.ndarray, total: int, wanted: dict[int, float], seed: int
) -> np.ndarray:
    """int8 [C]: split of each cluster, filled in order of a hash of seed and name (the key of its first chain).

    Clusters fill test, then validation, whenever they still fit into the fraction of all chains; the rest trains. A
    held-out split with a fraction above 0 is never empty when there are three clusters or more; with fewer, everything
    trains.
    """
    splits = np.full(len(sizes), _TRAIN, dtype=np.int8)
    if len(sizes) < MIN_CLUSTERS_TO_SPLIT:
        return splits
    ranks = [hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8] for name in names]
    order = np.argsort(np.frombuffer(b"".join(ranks), dtype=">u8"), kind="stable")
    held_out = [code for code, fraction in wanted.items() if fraction > 0]
    for number, code in enumerate(held_out):
        # Every split after this one needs a cluster too.
        most = len(order) - (len(held_out) - number)
        taken = _that_fit(sizes[order], round(wanted[code] * total), most)
        if not len(taken):
            taken = np.array([np.argmin(sizes[order])])
        splits[order[taken]] = code
        order = np.delete(order, taken)
    return splits


def _that_fit(sizes: np.ndarray, room: int, most: int) -> np.ndarray:
    """Places of the sizes that, one after the other, still fit into the room; at most so many of them."""
    taken, waiting, free = [np.empty(0, dtype=np.int64)], np.arange(len(sizes)), most
    while free > 0:
        waiting = waiting[sizes[waiting] <= room]
        if not len(waiting):
            break
        run = int(np.searchsorted(np.cumsum(sizes[waiting]), room, side="right"))
        part, waiting = waiting[: min(run, free)], waiting[run:]
        taken.append(part)
        room -= int(sizes[part].sum())
        free -= len(part)
    return np.concatenate(taken)


def _names(keys: pa.ChunkedArray) -> Iterable[str]:
    for chunk in keys.chunks:
        yield from chunk.to_pylist()


def _days(column: pa.ChunkedArray) -> np.ndarray:
    """int32 [S]: days since 1970 of deposition, UNDATED where the date is missing or is none."""
    if not pa.types.is_date32(column.type):
        distinct = column.cast(pa.string()).combine_chunks().dictionary_encode()
        known = np.array([_day(text) for text in distinct.dictionary.to_pylist()] + [UNDATED], dtype=np.int32)
        return known[distinct.indices.fill_null(len(known) - 1).to_numpy(zero_copy_only=False)]
    return pc.fill_null(column.cast(pa.int32()), UNDATED).to_numpy().astype(np.int32)


def _day(text: str) -> int:
    try:
        return (date.fromisoformat(text) - _EPOCH).days
    except ValueError:
        return UNDATED


def _date_facts(days: np.ndarray, codes: np.ndarray, config: SplitConfig) -> dict[str, Any]:
    """What the rule by dates did: chains without one, and late chains that older cluster mates keep in training."""
    first_day = min(day for day in (config.validation_from, config.test_from) if day)
    late = days >= (first_day - _EPOCH).days
    return {
        "chains_without_date": int((days == UNDATED).sum()),
        "late_chains_in_train": int((late & (codes == _TRAIN)).sum()),
    }
