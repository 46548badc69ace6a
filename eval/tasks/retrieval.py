"""Remote-homology retrieval: nearest neighbours of mean embeddings by cosine, nothing fitted."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eval.datasets.records import Dataset, Record
from eval.intervals import Measurement, measurement_of
from eval.leakage import UNSEEN, apply_leakage
from eval.tasks.protocol import Context, Outcome, TaskFacts, Wants

LEVELS = ("superfamily", "fold")
CLOSER = {"superfamily": "family", "fold": "superfamily"}
"""What is left out of the ranking at a level: relatives that a sequence search would find."""
QUERIES_PER_BLOCK = 256


@dataclass(frozen=True)
class RetrievalTask:
    """Test chains look for their relatives among the chains of the other splits."""

    name: str = "remote_homology"
    dataset: str = "remote_homology"
    version: str = "1"
    needs_shards: bool = False
    label: str = "remote-homology retrieval"

    @property
    def metrics(self) -> tuple[str, ...]:
        """Of both levels, as far as the files name them, and of the queries that training did not see."""
        names = [f"{kind}_{level}" for level in LEVELS for kind in ("top1", "map")]
        return (*names, *(f"{name}_{UNSEEN}" for name in names))

    def facts(self, context: Context) -> TaskFacts:
        """What it measures, on the dataset at hand."""
        data = context.datasets.get(self.dataset)
        return TaskFacts(
            version=self.version,
            frozen="trunk",
            head="none",
            method="residue states averaged over the chain, centred on the mean of the database, ranked by cosine; "
            "top1: share of queries whose nearest neighbour is of their superfamily (fold), map: mean over queries of "
            "the average precision of the whole ranking; the query's own family (superfamily, or family where "
            "superfamilies are not known) is taken out of its ranking; queries without a relative left are not counted",
            data="; ".join((data.source, *data.notes)),
            data_sha256=data.sha256,
        )

    def wants(self, context: Context) -> Wants:
        """The mean of every chain."""
        data, _ = _without_leaks(context)
        return Wants(means=tuple(r.sequences[0] for records in data.splits.values() for r in records))

    def run(self, context: Context) -> Outcome:
        """Both levels, as far as the labels are there."""
        data, leaks = _without_leaks(context)
        queries = data.splits["test"]
        database = (*data.splits["train"], *data.splits["validation"])
        of_queries, of_database = (
            context.features.means([record.sequences[0] for record in records]) for records in (queries, database)
        )
        similarity = cosine(of_queries, of_database)
        measurements: list[Measurement] = []
        remarks = [leaks]
        for level in LEVELS:
            found = _measured(level, similarity, data, database)
            measurements += found
            if not found:
                remarks.append(f"{level}: not measured, no query has a known relative at this level")
        if not measurements:
            return Outcome(skipped="no query has a relative in the database", remarks=tuple(remarks))
        return Outcome(tuple(measurements), remarks=tuple(remarks))


def _without_leaks(context: Context) -> tuple[Dataset, str]:
    config = context.config
    data = context.datasets.get(RetrievalTask.dataset)
    return apply_leakage(data, config.benchmarks, config.benchmarks.training_shards, config.features.cache)


def cosine(queries: Tensor, database: Tensor) -> np.ndarray:
    """float32 [Q, B] cosines of vectors [Q, D] and [B, D] from which the mean of the database is taken."""
    centre = database.double().mean(dim=0)
    queries, database = (
        torch.nn.functional.normalize(vectors.double() - centre, dim=1).float() for vectors in (queries, database)
    )
    return torch.cat([block @ database.T for block in queries.split(QUERIES_PER_BLOCK)]).numpy()


def ranking_scores(similarity: np.ndarray, relevant: np.ndarray, ignored: np.ndarray) -> tuple[float, float] | None:
    """Whether the nearest entry is relevant (1 or 0), and the average precision of the ranking of one query.

    Args:
        similarity: float [B]; of equally similar entries the relevant ones come last.
        relevant: bool [B].
        ignored: bool [B], entries taken out of the ranking; none of them is relevant.

    None where no entry is relevant.
    """
    chosen = np.flatnonzero(~ignored)
    hits = relevant[chosen]
    if not hits.any():
        return None
    order = np.lexsort((hits, -similarity[chosen]))
    hits = hits[order]
    places = np.flatnonzero(hits) + 1
    return float(hits[0]), float(np.mean(np.arange(1, len(places) + 1) / places))


def _measured(level: str, similarity: np.ndarray, data: Dataset, database: tuple[Record, ...]) -> list[Measurement]:
    """Both metrics of a level over all queries, and over those that training did not see where they are marked."""
    queries = data.splits["test"]
    of_queries, of_database = _groups(data, level, queries), _groups(data, level, database)
    closer = CLOSER[level]
    if (_groups(data, closer, queries) < 0).all():
        closer = "family"
    near_queries, near_database = _groups(data, closer, queries), _groups(data, closer, database)
    unseen = data.groups.get(UNSEEN, np.zeros(len(queries), dtype=bool))
    rows: dict[str, list[tuple[str, int, float, float]]] = defaultdict(list)
    for i, record in enumerate(queries):
        ignored = (near_database == near_queries[i]) & (near_queries[i] >= 0)
        relevant = (of_database == of_queries[i]) & (of_queries[i] >= 0) & ~ignored
        scores = ranking_scores(similarity[i], relevant, ignored)
        for kind, score in zip(("top1", "map"), scores or (), strict=False):
            for suffix in ("", f"_{UNSEEN}") if unseen[i] else ("",):
                rows[f"{kind}_{level}{suffix}"].append((record.key, record.cluster, score, 1.0))
    found = [measurement_of(metric, of_metric) for metric, of_metric in rows.items()]
    return [measurement for measurement in found if measurement is not None]


def _groups(data: Dataset, level: str, records: tuple[Record, ...]) -> np.ndarray:
    """int64: number of the label of a level (named `<level> ...`) of every record, -1 where it has none."""
    numbers = {i for i, name in enumerate(data.classes) if name.startswith(f"{level} ")}
    return np.array([next((int(n) for n in record.label if int(n) in numbers), -1) for record in records])
