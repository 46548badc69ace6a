"""What makes a chain fit for training, and what makes it high-quality."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from configs.build import FilterConfig, QualityConfig
from data_pipeline.structure.chain import UNKNOWN_RESIDUE, Chain
from data_pipeline.structure.geometry import geometry_outlier_fraction

FACT_DECIMALS = 4
QUALITY_FACTS = (
    "method",
    "resolution",
    "r_free",
    "missing_fraction",
    "geometry_outlier_fraction",
    "mean_bfactor",
)
"""The facts that `is_high_quality` reads."""


def reason_to_drop(chain: Chain, config: FilterConfig) -> tuple[str, str] | None:
    """Reason code and detail when the chain fails a filter, else None."""
    n = len(chain.sequence)
    if n < config.min_residues:
        return "too_short", f"{n} residues, at least {config.min_residues} wanted"
    if n > config.max_residues:
        return "too_long", f"{n} residues, at most {config.max_residues} wanted"
    missing = missing_fraction(chain)
    if missing > config.max_missing_fraction:
        return "missing_backbone", f"{missing:.2f} of the residues lack N, CA or C"
    unknown = unknown_fraction(chain)
    if unknown > config.max_unknown_fraction:
        return "unknown_residues", f"{unknown:.2f} of the residues are of unknown type"
    return None


def missing_fraction(chain: Chain) -> float:
    """Fraction of residues without complete N, CA, C."""
    return float(1.0 - chain.backbone_valid.mean())


def unknown_fraction(chain: Chain) -> float:
    return chain.sequence.count(UNKNOWN_RESIDUE) / len(chain.sequence)


def chain_facts(chain: Chain) -> dict[str, Any]:
    """The `facts` of a stored sample: where it came from, the parser's notes and quality figures."""
    known = chain.bfactor[np.isfinite(chain.bfactor)]
    outliers = geometry_outlier_fraction(chain.coordinates)
    return {
        **asdict(chain.facts),
        "notes": list(chain.notes),
        "missing_fraction": round(missing_fraction(chain), FACT_DECIMALS),
        "unknown_fraction": round(unknown_fraction(chain), FACT_DECIMALS),
        "geometry_outlier_fraction": round(float(outliers), FACT_DECIMALS) if np.isfinite(outliers) else None,
        "mean_bfactor": round(float(known.mean(dtype=np.float64)), FACT_DECIMALS) if len(known) else None,
    }


def is_high_quality(facts: Mapping[str, Any], config: QualityConfig) -> bool:
    """Whether a chain belongs to the high-quality subset.

    A predicted model must reach the mean pLDDT. An experiment must reach resolution and R-free; where either is
    unknown, the fraction of residues with outlying bond lengths or Ramachandran angles stands in as a proxy.
    """
    if facts["missing_fraction"] > config.max_missing_fraction:
        return False
    if facts["method"] == "predicted":
        return facts["mean_bfactor"] is not None and facts["mean_bfactor"] >= config.min_plddt
    known = [
        (facts["resolution"], config.max_resolution),
        (facts["r_free"], config.max_r_free),
    ]
    if any(value is not None and value > limit for value, limit in known):
        return False
    if all(value is not None for value, _ in known):
        return True
    outliers = facts["geometry_outlier_fraction"]
    return outliers is not None and outliers <= config.max_geometry_outliers
