"""Retrieval ranks by cosine of centred means, leaves near relatives out, and counts only queries with an answer."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from sklearn.metrics.pairwise import cosine_similarity

from configs.evaluate import EvalConfig
from eval.datasets.proteins import LAYOUTS
from eval.datasets.records import Dataset, Record
from eval.intervals import Measurement
from eval.tasks.proteins import TASKS
from eval.tasks.protocol import Context
from eval.tasks.retrieval import RetrievalTask, cosine, ranking_scores

TASK = RetrievalTask()


class Means:
    """Embeddings by sequence, as the shared features give them."""

    def __init__(self, vectors: dict[str, list[float]]) -> None:
        self.vectors = vectors

    def means(self, sequences: list[str]) -> torch.Tensor:
        return torch.tensor([self.vectors[sequence] for sequence in sequences], dtype=torch.float32)


class One:
    """The dataset under every name."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def get(self, name: str) -> Dataset:
        return self.dataset


def dataset_of(test: list[tuple], database: list[tuple], levels: tuple[str, ...]) -> Dataset:
    """Of (sequence, fold, superfamily, family, ...) as far as `levels` go; the last database entry is validation."""
    rows = [[(level, group) for level, group in zip(levels, row[1:], strict=True)] for row in (*test, *database)]
    classes = tuple(sorted({f"{level} {group}" for row in rows for level, group in row}))

    def records(part: list[tuple], start: str) -> tuple[Record, ...]:
        return tuple(
            Record(
                f"{start}{i}",
                (row[0],),
                np.array(sorted(classes.index(f"{v} {g}") for v, g in zip(levels, row[1:], strict=True))),
                i,
            )
            for i, row in enumerate(part)
        )

    whole = records(database, "d")
    splits = {"train": whole[:-1], "validation": whole[-1:], "test": records(test, "t")}
    return Dataset("remote_homology", "made up", "0" * 64, "labels", classes, splits)


def measured(dataset: Dataset, vectors: dict[str, list[float]]) -> dict[str, Measurement]:
    context = Context(EvalConfig(), None, One(dataset), Means(vectors))
    return {m.metric: m for m in TASK.run(context).measurements}


LEVELS = ("fold", "superfamily", "family")
VECTORS = {
    "q": [1.0, 0.0],
    "same": [0.9, 0.1],
    "super": [0.8, 0.3],
    "fold": [0.5, 0.6],
    "other": [0.7, 0.3],
    "far": [-1.0, -1.0],
}
DATABASE = [("same", 1, 1, 1), ("super", 1, 1, 2), ("fold", 1, 2, 3), ("other", 2, 3, 4), ("far", 3, 4, 5)]


def test_near_relatives_leave_the_ranking_and_the_next_level_counts() -> None:
    found = measured(dataset_of([("q", 1, 1, 1)], DATABASE, LEVELS), VECTORS)
    order = sorted(VECTORS.keys() - {"q"}, key=lambda s: -cosine_of("q", s))
    assert order[0] == "same", "the family is nearest, and does not count"
    assert found["top1_superfamily"].columns["values"].tolist() == [float(order[1] == "super")]
    # Of other, fold and far, once family and superfamily are gone.
    left = [s for s in order if s not in ("same", "super")]
    assert found["map_fold"].columns["values"].tolist() == [1.0 / (left.index("fold") + 1)]
    assert set(found) == {"top1_superfamily", "map_superfamily", "top1_fold", "map_fold"}


def test_queries_that_training_did_not_see_are_measured_apart_where_they_are_marked() -> None:
    known = replace(
        dataset_of([("q", 1, 1, 1), ("same", 1, 1, 1)], DATABASE, LEVELS), groups={"unseen": np.array([False, True])}
    )
    found = measured(known, VECTORS)
    assert set(found) == set(TASK.metrics)
    assert found["map_fold"].keys == ("t0", "t1")
    assert found["map_fold_unseen"].keys == ("t1",)


def cosine_of(a: str, b: str) -> float:
    centre = np.mean([VECTORS[row[0]] for row in DATABASE], axis=0)
    return float(cosine_similarity([np.array(VECTORS[a]) - centre], [np.array(VECTORS[b]) - centre])[0, 0])


def test_queries_without_a_relative_are_not_counted() -> None:
    found = measured(dataset_of([("q", 1, 1, 1), ("far", 9, 9, 9)], DATABASE, LEVELS), VECTORS)
    assert found["top1_fold"].keys == ("t0",)


def test_where_only_folds_and_families_are_known_the_fold_level_is_measured_without_the_family() -> None:
    levels = ("fold", "family")
    database = [("same", 1, 1), ("super", 1, 2), ("fold", 1, 3), ("other", 2, 4), ("far", 3, 5)]
    context = Context(EvalConfig(), None, One(dataset_of([("q", 1, 1)], database, levels)), Means(VECTORS))
    outcome = TASK.run(context)
    found = {m.metric: m for m in outcome.measurements}
    assert set(found) == {"top1_fold", "map_fold"}
    assert outcome.remarks[1:] == ("superfamily: not measured, no query has a known relative at this level",)
    order = sorted((s for s in VECTORS if s not in ("q", "same")), key=lambda s: -cosine_of("q", s))
    relevant = np.array([s in ("super", "fold") for s in order])
    expected = average_precision_score(relevant, -np.arange(len(order)))
    # Exact but for rounding of a mean of two fractions.
    assert found["map_fold"].columns["values"][0] == pytest.approx(expected, abs=1e-12)


def test_without_any_relative_the_task_says_so() -> None:
    context = Context(EvalConfig(), None, One(dataset_of([("q", 7, 7, 7)], DATABASE, LEVELS)), Means(VECTORS))
    assert TASK.run(context).skipped == "no query has a relative in the database"


@pytest.mark.parametrize("seed", range(20))
def test_average_precision_is_that_of_scikit_learn(seed: int) -> None:
    generator = np.random.default_rng(seed)
    similarity = generator.normal(size=200)
    relevant, ignored = generator.random(200) < 0.1, generator.random(200) < 0.2
    relevant &= ~ignored
    top, precision = ranking_scores(similarity, relevant, ignored) or (np.nan, np.nan)
    # Float64 sums of at most 40 fractions.
    assert precision == pytest.approx(average_precision_score(relevant[~ignored], similarity[~ignored]), abs=1e-12)
    assert top == float(relevant[np.argmax(np.where(ignored, -np.inf, similarity))])


def test_ties_count_against_the_model() -> None:
    assert ranking_scores(np.zeros(3), np.array([True, False, False]), np.zeros(3, dtype=bool)) == (0.0, 1 / 3)


def test_cosines_are_those_of_scikit_learn_after_centring_on_the_database() -> None:
    generator = np.random.default_rng(0)
    queries, database = generator.normal(5.0, 1.0, (300, 16)), generator.normal(5.0, 1.0, (40, 16))
    found = cosine(torch.tensor(queries), torch.tensor(database))
    expected = cosine_similarity(queries - database.mean(axis=0), database - database.mean(axis=0))
    # Products are in float32.
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_it_wants_the_mean_of_every_chain_once_named() -> None:
    dataset = dataset_of([("q", 1, 1, 1)], DATABASE, LEVELS)
    context = Context(EvalConfig(), None, One(dataset), Means(VECTORS))
    assert sorted(TASK.wants(context).means) == sorted(VECTORS)
    assert TASK.wants(context).residues == ()
    facts = TASK.facts(context)
    assert (facts.frozen, facts.head, facts.data_sha256) == ("trunk", "none", "0" * 64)
    assert facts.data.startswith("made up")


def test_every_task_has_a_dataset_and_a_name_of_its_own() -> None:
    names = [task.name for task in TASKS]
    assert len(set(names)) == len(names)
    assert set(names) == set(LAYOUTS)
    assert {task.dataset for task in TASKS} == set(LAYOUTS)
