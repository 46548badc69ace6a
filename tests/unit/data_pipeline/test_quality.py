"""Filters, facts and the high-quality subset."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from configs.build import FilterConfig, QualityConfig, ReliabilityConfig
from data_pipeline.quality import (
    QUALITY_FACTS,
    chain_facts,
    high_quality_mask,
    observed_fraction,
    reason_to_drop,
    reliability_mask,
)
from data_pipeline.spool import COLUMNS
from data_pipeline.structure.chain import Chain, ExperimentFacts

N = 40


def chain(sequence: str = "A" * N, missing: int = 0, bfactor: float = 20.0, **facts: Any) -> Chain:
    n = len(sequence)
    coordinates = np.random.default_rng(0).normal(size=(n, 5, 3)) * 10
    coordinates[:missing, 2] = np.nan
    experiment = ExperimentFacts("a.pdb", "1ABC", "A", "A", **facts)
    return Chain("1abc_A", sequence, coordinates, np.full(n, bfactor, np.float32), experiment)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (chain("A" * 29), "too_short"),
        (chain("A" * 101), "too_long"),
        (chain(missing=9), "missing_backbone"),
        (chain("A" * 31 + "X" * 9), "unknown_residues"),
    ],
)
def test_each_filter_names_its_reason(bad: Chain, reason: str) -> None:
    dropped = reason_to_drop(bad, FilterConfig(max_residues=100))
    assert dropped is not None
    assert dropped[0] == reason


def test_a_chain_at_every_limit_stays() -> None:
    assert reason_to_drop(chain("A" * 32 + "X" * 8, missing=8), FilterConfig(max_residues=40)) is None


def test_facts_hold_what_json_can_and_all_that_quality_needs() -> None:
    facts = chain_facts(chain(missing=4, bfactor=np.nan, resolution=1.8))
    assert facts["missing_fraction"] == 0.1
    assert facts["mean_bfactor"] is None
    assert (facts["entry"], facts["resolution"], facts["notes"]) == ("1ABC", 1.8, [])
    assert set(QUALITY_FACTS) <= set(facts)


def test_residues_without_coordinates_lower_the_observed_fraction() -> None:
    assert observed_fraction(chain()) == 1
    assert observed_fraction(replace(chain(), notes=("altloc", "unobserved:10"))) == 0.8


GOOD = {
    "method": "x-ray diffraction",
    "resolution": 1.9,
    "r_free": 0.22,
    "missing_fraction": 0.01,
    "observed_fraction": 0.95,
    "geometry_outlier_fraction": 0.01,
    "mean_bfactor": 25.0,
}


@pytest.mark.parametrize(
    ("change", "good"),
    [
        ({}, True),
        ({"resolution": 2.5, "r_free": 0.28}, True),
        ({"resolution": 2.6}, False),
        ({"r_free": 0.29}, False),
        ({"missing_fraction": 0.06}, False),
        ({"observed_fraction": 0.6}, False),
        # Outlying geometry is asked only where an experiment's own figures are missing.
        ({"geometry_outlier_fraction": 0.5}, True),
        ({"r_free": None}, True),
        ({"r_free": None, "geometry_outlier_fraction": 0.06}, False),
        ({"r_free": None, "resolution": 3.0}, False),
        ({"resolution": None, "r_free": None, "geometry_outlier_fraction": None}, False),
        ({"method": "predicted", "mean_bfactor": 79.0}, False),
        ({"method": "predicted", "mean_bfactor": 81.0, "resolution": None, "r_free": None}, True),
        ({"method": "predicted", "mean_bfactor": None}, False),
        ({"method": None}, True),
    ],
)
def test_the_high_quality_rule(change: dict[str, Any], good: bool) -> None:
    # Beside a chain that always passes, so that one answer for all would be seen.
    rows = [{**GOOD, **change}, GOOD]
    table = pa.Table.from_pylist(rows, schema=pa.schema([COLUMNS.field(name) for name in QUALITY_FACTS]))
    assert high_quality_mask(table, QualityConfig()).tolist() == [good, True]


def test_a_residue_of_low_plddt_is_not_reliable() -> None:
    model = chain(method="predicted", bfactor=90.0)
    model.bfactor[3:6] = 69.9
    expected = np.ones(N, dtype=bool)
    expected[3:6] = False
    np.testing.assert_array_equal(reliability_mask(model, ReliabilityConfig()), expected)
    assert not reliability_mask(chain(method="predicted", bfactor=np.nan), ReliabilityConfig()).any()


def test_a_residue_of_high_bfactor_is_not_reliable_unless_all_are_alike() -> None:
    experiment = chain(bfactor=30.0)
    experiment.bfactor[7] = 121.0
    assert np.flatnonzero(~reliability_mask(experiment, ReliabilityConfig())).tolist() == [7]
    assert reliability_mask(experiment, ReliabilityConfig(max_bfactor=None)).all()
    assert reliability_mask(chain(bfactor=500.0), ReliabilityConfig()).all()


def test_a_residue_without_backbone_is_never_reliable() -> None:
    assert np.flatnonzero(~reliability_mask(chain(missing=4), ReliabilityConfig())).tolist() == [0, 1, 2, 3]
