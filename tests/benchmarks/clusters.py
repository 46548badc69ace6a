"""Clusters of the real chains by k-mers beside those by MMseqs2.

`recall_vs_mmseqs` is the fraction of the pairs that MMseqs2 links (at its highest sensitivity) that end in one k-mer
cluster, `chains_kept` the fraction of linked chains none of whose links is parted, `precision_vs_mmseqs` the fraction
of pairs within k-mer clusters that are also within one cluster of MMseqs2's links. `recall_...` of the other two are
those of MMseqs2 itself at the default sensitivity and in its own cascade. CPU seconds count child processes.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage

import numpy as np

from configs.splits import SplitConfig
from data_pipeline.splits.components import merge_clusters
from data_pipeline.splits.kmers import cluster_by_kmers
from data_pipeline.splits.mmseqs import cluster_by_mmseqs, linked_pairs, mmseqs_version
from tests.benchmarks._chains import real_chains
from tests.benchmarks._timing import report


def timed(run: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    """A result and the CPU seconds of this process and its children."""

    def spent() -> float:
        usages = [getrusage(who) for who in (RUSAGE_SELF, RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    begun = spent()
    result = run()
    return result, spent() - begun


def pairs_within(labels: np.ndarray) -> int:
    sizes = np.bincount(labels)
    return int((sizes * (sizes - 1)).sum())


def precision(found: np.ndarray, wanted: np.ndarray) -> float:
    """Pairs in one cluster of both, over pairs in one cluster of `found`."""
    _, both = np.unique(np.stack([found, wanted]), axis=1, return_inverse=True)
    return pairs_within(both.ravel()) / max(pairs_within(found), 1)


def main() -> None:
    sequences = sorted({sequence for sequence, _ in real_chains()})
    if mmseqs_version() is None:
        print("error: MMseqs2 is what is compared with; install it", flush=True)
        raise SystemExit(2)
    default = SplitConfig()
    kmers, kmers_seconds = timed(lambda: cluster_by_kmers(sequences, default.kmer, default.coverage))
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        sternest = SplitConfig(sensitivity=7.5)
        links = np.concatenate([np.stack(p) for p in linked_pairs(sequences, sternest, scratch)], axis=1)
        search, search_seconds = timed(lambda: cluster_by_mmseqs(sequences, len(sequences), default, scratch))
        cascaded = SplitConfig(mmseqs_mode="cluster")
        cascade, cascade_seconds = timed(lambda: cluster_by_mmseqs(sequences, len(sequences), cascaded, scratch))
    first, second = links[:, links[0] != links[1]]
    reference = merge_clusters(np.arange(len(sequences)), first, second)
    parted = np.zeros(len(sequences), dtype=bool)
    apart = kmers[first] != kmers[second]
    parted[first[apart]] = parted[second[apart]] = True
    linked = np.union1d(first, second)
    report(
        "clusters",
        {
            "chains": len(sequences),
            "linked_pairs": len(first),
            "recall_vs_mmseqs": float(1 - apart.mean()),
            "chains_kept": float(1 - parted[linked].mean()),
            "precision_vs_mmseqs": precision(kmers, reference),
            "recall_mmseqs_default": float((search[first] == search[second]).mean()),
            "recall_mmseqs_cascade": float((cascade[first] == cascade[second]).mean()),
            "clusters_kmers": len(np.unique(kmers)),
            "clusters_mmseqs": len(np.unique(search)),
            "clusters_mmseqs_cascade": len(np.unique(cascade)),
            "largest_cluster_kmers": int(np.bincount(kmers).max()),
            "largest_cluster_mmseqs": int(np.bincount(search).max()),
            "largest_cluster_mmseqs_cascade": int(np.bincount(cascade).max()),
            "seconds_kmers": kmers_seconds,
            "seconds_mmseqs": search_seconds,
            "seconds_mmseqs_cascade": cascade_seconds,
            "mmseqs_version": mmseqs_version(),
        },
    )


if __name__ == "__main__":
    main()
