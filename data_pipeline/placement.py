"""From the small columns of all chains to the plan of every shard: duplicates, clusters, splits, leaks, order."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from configs.build import BuildConfig
from data_pipeline.manifest import SPLITS
from data_pipeline.quality import high_quality_mask
from data_pipeline.shards import shard_name
from data_pipeline.splits.assignment import assign_splits
from data_pipeline.splits.clusters import assign_clusters
from data_pipeline.splits.leakage import find_leaks
from data_pipeline.spool import MappedTable, Reject

ROWS_PER_PART = 65_536
PLACED_NAME = "placed.arrow"


@dataclass(frozen=True)
class Placement:
    """The S chains that stay, in key order, and where each belongs."""

    table: pa.Table
    """Columns of `spool.COLUMNS`."""
    path: Path
    """The file that holds the table."""
    cluster: np.ndarray
    """int64 [S]."""
    split: np.ndarray
    """int8 [S]: number in `manifest.SPLITS`."""
    high_quality: np.ndarray
    """bool [S]."""
    clustering: dict[str, Any]
    """How clusters were found; `splitting` and `leakage` likewise, for the manifest."""
    splitting: dict[str, Any]
    leakage: tuple[dict[str, Any], ...]

    def __len__(self) -> int:
        return self.table.num_rows


@dataclass(frozen=True, eq=False)
class ShardTask:
    """One Ray task of writing: the rows of the placed chains that one shard holds, in order."""

    name: str
    output: str
    scratch: str
    parsed: str
    """Folder of the parsed batches."""
    placed: str
    """File of the placed chains' columns."""
    rows: np.ndarray
    """int64 [samples]."""
    cluster: np.ndarray
    """int64 [samples]."""
    high_quality: np.ndarray
    """bool [samples]."""


def place_chains(table: pa.Table, config: BuildConfig, scratch: Path) -> tuple[Placement, list[Reject]]:
    """Drop duplicates, cluster, split, drop leaks and flag all chains.

    Args:
        table: columns of every parsed chain, in any order.
        scratch: folder for files of the build; the placed chains' columns stay there.
    """
    order = _key_order(table)
    kept, rejects = _without_duplicates(table, order, config.filters.drop_identical)
    placed = _stored(table, kept, scratch)
    clustering = assign_clusters(placed, config.split, scratch)
    split, splitting = assign_splits(placed, clustering.labels, config.split)
    leaks = find_leaks(placed, clustering.labels, split, config.leakage, scratch)
    cluster = clustering.labels
    if len(leaks.drop):
        rejects += _leak_rejects(placed, leaks.drop, leaks.details)
        stays = np.ones(placed.num_rows, dtype=bool)
        stays[leaks.drop] = False
        placed, cluster, split = _stored(table, kept[stays], scratch), cluster[stays], split[stays]
    quality = high_quality_mask(placed, config.quality)
    placement = Placement(
        table=placed,
        path=scratch / PLACED_NAME,
        cluster=cluster,
        split=split,
        high_quality=quality,
        clustering=dict(clustering.facts),
        splitting=splitting,
        leakage=tuple(leaks.facts),
    )
    return placement, rejects


def plan_shards(
    placement: Placement, samples_per_shard: int, output: Path, scratch: Path, parsed: Path
) -> list[ShardTask]:
    """Shards of every split in order; each holds the next `samples_per_shard` chains of its split by key."""
    tasks = []
    for code, split in enumerate(SPLITS):
        rows = np.flatnonzero(placement.split == code)
        for number, start in enumerate(range(0, len(rows), samples_per_shard)):
            part = rows[start : start + samples_per_shard]
            tasks.append(
                ShardTask(
                    name=shard_name(split, number),
                    output=str(output),
                    scratch=str(scratch),
                    parsed=str(parsed),
                    placed=str(placement.path),
                    rows=part,
                    cluster=placement.cluster[part],
                    high_quality=placement.high_quality[part],
                )
            )
    return tasks


def _key_order(table: pa.Table) -> np.ndarray:
    """int64 [S]: rows by key, then source and chain."""
    keys = [(name, "ascending") for name in ("key", "source", "chain")]
    return pc.sort_indices(table.select(["key", "source", "chain"]), sort_keys=keys).to_numpy().astype(np.int64)


def _without_duplicates(table: pa.Table, order: np.ndarray, drop_identical: bool) -> tuple[np.ndarray, list[Reject]]:
    """Rows that stay, in key order: of equal keys the first source, then of equal sequences the first key."""
    first_of_key = _first_of_equal(table["key"].take(pa.array(order)))
    rejects = _duplicates(table, order, first_of_key, "duplicate_key", "key {key} is taken by {source}")
    order = order[first_of_key == np.arange(len(order))]
    if drop_identical:
        first_of_sequence = _first_of_equal(table["digest"].take(pa.array(order)))
        rejects += _duplicates(table, order, first_of_sequence, "duplicate_sequence", "same sequence as {key}")
        order = order[first_of_sequence == np.arange(len(order))]
    return order, rejects


def _first_of_equal(column: pa.ChunkedArray) -> np.ndarray:
    """int64: for each value the number of its first appearance."""
    codes = pc.dictionary_encode(column.combine_chunks()).indices.to_numpy()
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    return first[inverse]


def _duplicates(table: pa.Table, order: np.ndarray, first: np.ndarray, reason: str, detail: str) -> list[Reject]:
    """Rejects of the rows whose value stood before; `detail` is filled with key and source of that earlier row."""
    repeated = np.flatnonzero(first != np.arange(len(order)))
    names = table.select(["key", "source", "chain"])
    dropped = names.take(pa.array(order[repeated])).to_pylist()
    taken_by = names.take(pa.array(order[first[repeated]])).to_pylist()
    return [
        Reject(row["source"], row["chain"], reason, detail.format(**other))
        for row, other in zip(dropped, taken_by, strict=True)
    ]


def _leak_rejects(placed: pa.Table, rows: np.ndarray, details: Sequence[str]) -> list[Reject]:
    named = placed.select(["source", "chain"]).take(pa.array(rows)).to_pylist()
    return [Reject(row["source"], row["chain"], "leakage", detail) for row, detail in zip(named, details, strict=True)]


def _stored(table: pa.Table, rows: np.ndarray, scratch: Path) -> pa.Table:
    """The given rows of a table, in a file of their own."""
    stored = MappedTable(scratch / PLACED_NAME, table.schema)
    for start in range(0, len(rows), ROWS_PER_PART):
        stored.append(table.take(pa.array(rows[start : start + ROWS_PER_PART])))
    return stored.finish()
