"""From the small columns of all chains to the plan of every shard: duplicates, clusters, splits, order."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from configs.build import BuildConfig
from data_pipeline.clusters import cluster_sequences, split_of_clusters
from data_pipeline.manifest import SPLITS
from data_pipeline.quality import is_high_quality
from data_pipeline.shards import shard_name
from data_pipeline.spool import ChainRecord, Reject


@dataclass(frozen=True, slots=True)
class PlacedChain:
    """A chain that stays, with the tar of its parsed batch and its place in the build."""

    record: ChainRecord
    tar: str
    cluster: int
    high_quality: bool
    split: str


@dataclass(frozen=True)
class ShardTask:
    """One Ray task of writing: the chains of one shard in order."""

    name: str
    output: str
    scratch: str
    samples: tuple[PlacedChain, ...]


def place_chains(
    records: Sequence[tuple[str, ChainRecord]], config: BuildConfig
) -> tuple[list[PlacedChain], list[Reject]]:
    """Drop duplicates, cluster, split and flag all chains; the kept ones come in key order.

    Args:
        records: (name of the batch's tar, columns) of every parsed chain, in any order.
    """
    ordered = sorted(records, key=lambda item: (item[1].key, item[1].source, item[1].chain))
    kept, rejects = _without_duplicates(ordered, config.filters.drop_identical)
    if not kept:
        return [], rejects
    settings = config.split
    clusters = cluster_sequences([record.sequence for _, record in kept], settings.kmer, settings.min_shared_kmers)
    _, first = np.unique(clusters, return_index=True)
    splits = split_of_clusters([kept[i][1].key for i in first], np.bincount(clusters), settings)
    placed = [
        PlacedChain(record, tar, cluster, is_high_quality(record.quality, config.quality), splits[cluster])
        for (tar, record), cluster in zip(kept, clusters.tolist(), strict=True)
    ]
    return placed, rejects


def plan_shards(placed: Sequence[PlacedChain], samples_per_shard: int, output: str, scratch: str) -> list[ShardTask]:
    """Shards of every split in order; each holds the next `samples_per_shard` chains of its split by key."""
    tasks = []
    for split in SPLITS:
        chains = [chain for chain in placed if chain.split == split]
        for number, start in enumerate(range(0, len(chains), samples_per_shard)):
            part = tuple(chains[start : start + samples_per_shard])
            tasks.append(ShardTask(shard_name(split, number), output, scratch, part))
    return tasks


def _without_duplicates(
    ordered: Sequence[tuple[str, ChainRecord]], drop_identical: bool
) -> tuple[list[tuple[str, ChainRecord]], list[Reject]]:
    kept: list[tuple[str, ChainRecord]] = []
    rejects: list[Reject] = []
    source_of_key: dict[str, str] = {}
    key_of_sequence: dict[str, str] = {}
    for tar, record in ordered:
        if record.key in source_of_key:
            detail = f"key {record.key} is taken by {source_of_key[record.key]}"
            rejects.append(Reject(record.source, record.chain, "duplicate_key", detail))
        elif drop_identical and record.sequence in key_of_sequence:
            detail = f"same sequence as {key_of_sequence[record.sequence]}"
            rejects.append(Reject(record.source, record.chain, "duplicate_sequence", detail))
        else:
            source_of_key[record.key] = record.source
            key_of_sequence[record.sequence] = record.key
            kept.append((tar, record))
    return kept, rejects
