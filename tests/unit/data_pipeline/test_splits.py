"""Splits by cluster, fraction and date."""

import hashlib
from datetime import date

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.splits import SplitConfig
from data_pipeline.manifest import SPLITS
from data_pipeline.splits.assignment import assign_splits
from data_pipeline.splits.components import number_by_appearance
from tests.unit.data_pipeline.homologs import chain_table

TRAIN, VALIDATION, TEST = range(3)


def split(labels: list[int], dates: list[str | None] = (), **options: object) -> tuple[list[int], dict]:
    numbered = number_by_appearance(np.array(labels, dtype=np.int64))
    codes, facts = assign_splits(chain_table(["ACDEF"] * len(labels), (), dates), numbered, SplitConfig(**options))
    assert codes.dtype == np.int8
    return codes.tolist(), facts


def by_definition(sizes: list[int], names: list[str], config: SplitConfig) -> list[int]:
    """The rule of fractions, cluster after cluster."""
    splits = [TRAIN] * len(sizes)
    if len(sizes) < 3:
        return splits
    order = sorted(range(len(sizes)), key=lambda c: hashlib.sha256(f"{config.seed}:{names[c]}".encode()).digest())
    held_out = [(TEST, config.test_fraction), (VALIDATION, config.validation_fraction)]
    held_out = [(code, fraction) for code, fraction in held_out if fraction > 0]
    for number, (code, fraction) in enumerate(held_out):
        room, taken = round(fraction * sum(sizes)), []
        for cluster in order:
            if sizes[cluster] <= room and len(order) - len(taken) > len(held_out) - number:
                taken.append(cluster)
                room -= sizes[cluster]
        taken = taken or [min(order, key=lambda c: sizes[c])]
        order = [cluster for cluster in order if cluster not in taken]
        for cluster in taken:
            splits[cluster] = code
    return splits


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=60),
    st.integers(0, 5),
    st.sampled_from([(0.1, 0.1), (0.0, 0.2), (0.3, 0.05), (0.0, 0.0), (0.45, 0.45)]),
)
def test_fractions_are_filled_as_the_rule_says(sizes: list[int], seed: int, fractions: tuple[float, float]) -> None:
    config = SplitConfig(validation_fraction=fractions[0], test_fraction=fractions[1], seed=seed)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    names = [f"{first:04d}_A" for first in np.cumsum([0, *sizes[:-1]])]
    codes, facts = assign_splits(chain_table(["ACDEF"] * len(labels)), labels, config)
    wanted = by_definition(sizes, names, config)
    assert codes.tolist() == np.repeat(wanted, sizes).tolist()
    assert facts["clusters"] == {name: wanted.count(code) for code, name in enumerate(SPLITS)}
    if len(sizes) >= 3:
        for code, fraction in ((VALIDATION, fractions[0]), (TEST, fractions[1])):
            held = [size for size, found in zip(sizes, wanted, strict=True) if found == code]
            assert bool(held) == (fraction > 0)
            # Where no cluster fits into the fraction, the smallest one at hand is taken alone.
            assert sum(held) <= round(fraction * sum(sizes)) or len(held) == 1


def test_the_split_depends_on_seed_and_names_and_not_on_the_order_of_rows() -> None:
    table, labels = chain_table(["ACDEF"] * 40), np.arange(40)
    codes, facts = assign_splits(table, labels, SplitConfig())
    assert facts["chains"] == {"train": 32, "validation": 4, "test": 4}
    assert facts["seed"] == 0
    turned, _ = assign_splits(table.take(pa.array(labels[::-1])), labels, SplitConfig())
    assert turned[::-1].tolist() == codes.tolist()
    assert assign_splits(table, labels, SplitConfig(seed=1))[0].tolist() != codes.tolist()


def test_two_clusters_only_train() -> None:
    assert split([0, 1, 1])[0] == [TRAIN] * 3
    assert split([])[0] == []


DATES = ["2019-12-31", "2020-01-01", "2021-05-01", "2022-01-01", "2023-07-07", None, "2023-07-08"]


def test_late_clusters_are_held_out_and_mixed_ones_train() -> None:
    labels = [0, 1, 2, 3, 3, 4, 0]
    codes, facts = split(labels, DATES, validation_from=date(2020, 1, 1), test_from=date(2022, 1, 1))
    # Cluster 0 has a chain of 2019 and one of 2023; the chain of cluster 4 has no date.
    assert codes == [TRAIN, VALIDATION, VALIDATION, TEST, TEST, TRAIN, TRAIN]
    assert (facts["validation_from"], facts["test_from"]) == ("2020-01-01", "2022-01-01")
    assert (facts["chains_without_date"], facts["late_chains_in_train"]) == (1, 1)
    assert "test_fraction" not in facts


def test_a_cluster_of_the_time_between_and_after_is_validation() -> None:
    codes, _ = split([0, 0, 1], ["2021-01-01", "2022-06-01", "2000-01-01"],
                     validation_from=date(2020, 1, 1), test_from=date(2022, 1, 1))  # fmt: skip
    assert codes == [VALIDATION, VALIDATION, TRAIN]


def test_the_split_without_a_day_is_filled_by_fraction_from_what_is_left() -> None:
    dates = ["2024-01-01"] * 10 + ["2000-01-01"] * 30
    codes, facts = split(list(range(40)), dates, test_from=date(2023, 1, 1), validation_fraction=0.25)
    assert codes[:10] == [TEST] * 10
    assert (codes[10:].count(VALIDATION), codes[10:].count(TRAIN)) == (10, 20)
    assert (facts["validation_fraction"], facts["late_chains_in_train"]) == (0.25, 0)


def test_dates_may_be_dates_and_what_is_none_counts_as_old() -> None:
    table = chain_table(["ACDEF"] * 3, (), ["2024-01-01", "2024-01", "2024-02-30"])
    config = SplitConfig(test_from=date(2023, 1, 1), validation_fraction=0)
    assert assign_splits(table, np.arange(3), config)[0].tolist() == [TEST, TRAIN, TRAIN]
    typed = table.set_column(3, "deposition_date", pa.array([date(2024, 1, 1), None, date(2022, 1, 1)], pa.date32()))
    assert assign_splits(typed, np.arange(3), config)[0].tolist() == [TEST, TRAIN, TRAIN]


def test_a_day_that_leaves_a_split_empty_is_told(caplog: pytest.LogCaptureFixture) -> None:
    codes, _ = split([0, 1, 2], ["2020-01-01"] * 3, test_from=date(2023, 1, 1), validation_fraction=0)
    assert codes == [TRAIN] * 3
    assert "test is empty; choose an earlier day" in caplog.text


days = st.one_of(st.none(), st.dates(date(2018, 1, 1), date(2024, 1, 1)).map(date.isoformat))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), days), min_size=1, max_size=60), st.booleans(), st.booleans())
def test_no_cluster_stands_in_two_splits_and_nothing_old_is_held_out(
    chains: list[tuple[int, str | None]], by_validation: bool, by_test: bool
) -> None:
    labels, dates = [label for label, _ in chains], [day for _, day in chains]
    starts = {}
    if by_validation:
        starts["validation_from"] = date(2020, 1, 1)
    if by_test:
        starts["test_from"] = date(2022, 1, 1)
    codes, facts = split(labels, dates, validation_fraction=0, test_fraction=0, **starts)
    assert len(set(zip(labels, codes, strict=True))) == len(set(labels))
    for code, day in zip(codes, dates, strict=True):
        if code != TRAIN:
            assert day is not None
            assert day >= starts[f"{SPLITS[code]}_from"].isoformat()
    assert sum(facts["chains"].values()) == len(chains)
