"""Filters, facts and the high-quality subset."""

from typing import Any

import numpy as np
import pytest

from configs.build import FilterConfig, QualityConfig
from data_pipeline.quality import QUALITY_FACTS, chain_facts, is_high_quality, reason_to_drop
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


@pytest.mark.parametrize(
    ("change", "good"),
    [
        ({}, True),
        ({"resolution": 2.6}, False),
        ({"r_free": 0.29}, False),
        ({"missing_fraction": 0.06}, False),
        # Outlying geometry is asked only where an experiment's own figures are missing.
        ({"geometry_outlier_fraction": 0.5}, True),
        ({"r_free": None}, True),
        ({"r_free": None, "geometry_outlier_fraction": 0.06}, False),
        ({"r_free": None, "resolution": 3.0}, False),
        ({"resolution": None, "r_free": None, "geometry_outlier_fraction": None}, False),
        ({"method": "predicted", "mean_bfactor": 79.0}, False),
        ({"method": "predicted", "mean_bfactor": 81.0, "resolution": None, "r_free": None}, True),
        ({"method": "predicted", "mean_bfactor": None}, False),
    ],
)
def test_the_high_quality_rule(change: dict[str, Any], good: bool) -> None:
    facts = {
        "method": "x-ray diffraction",
        "resolution": 1.9,
        "r_free": 0.22,
        "missing_fraction": 0.01,
        "geometry_outlier_fraction": 0.01,
        "mean_bfactor": 25.0,
    }
    assert is_high_quality({**facts, **change}, QualityConfig()) is good
