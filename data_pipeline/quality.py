"""What makes a chain fit for training, and what makes it high-quality."""

from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from configs.build import FilterConfig, QualityConfig, ReliabilityConfig
from data_pipeline.structure.chain import UNKNOWN_RESIDUE, Chain
from data_pipeline.structure.geometry import geometry_outlier_fraction

FACT_DECIMALS = 4
QUALITY_FACTS = (
    "method",
    "resolution",
    "r_free",
    "missing_fraction",
    "observed_fraction",
    "geometry_outlier_fraction",
    "mean_bfactor",
)
"""The facts that `high_quality_mask` reads."""
UNOBSERVED_NOTE = "unobserved:"
"""Begins the parser's note of how many residues the sequence record lists beyond those with coordinates."""


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


def chain_facts(chain: Chain, angles: np.ndarray | None = None) -> dict[str, Any]:
    """The `facts` of a stored sample: where it came from, the parser's notes and quality figures.

    Args:
        angles: float [N, 3], the backbone's dihedrals in radians where they are known already.
    """
    known = chain.bfactor[np.isfinite(chain.bfactor)]
    outliers = geometry_outlier_fraction(chain.coordinates, angles)
    return {
        **asdict(chain.facts),
        "notes": list(chain.notes),
        "missing_fraction": round(missing_fraction(chain), FACT_DECIMALS),
        "observed_fraction": round(observed_fraction(chain), FACT_DECIMALS),
        "unknown_fraction": round(unknown_fraction(chain), FACT_DECIMALS),
        "geometry_outlier_fraction": round(float(outliers), FACT_DECIMALS) if np.isfinite(outliers) else None,
        "mean_bfactor": round(float(known.mean(dtype=np.float64)), FACT_DECIMALS) if len(known) else None,
    }


def observed_fraction(chain: Chain) -> float:
    """Fraction of the residues in the entry's sequence record that have coordinates; 1 where there is no record."""
    notes = [note for note in chain.notes if note.startswith(UNOBSERVED_NOTE)]
    unobserved = int(notes[0].removeprefix(UNOBSERVED_NOTE)) if notes else 0
    return len(chain.sequence) / (len(chain.sequence) + unobserved)


def reliability_mask(chain: Chain, config: ReliabilityConfig) -> np.ndarray:
    """bool [N]: residues with a backbone whose position can be trusted.

    In a predicted model those of sufficient pLDDT. In an experiment those of a B-factor not above the limit; where all
    B-factors are equal or missing, the file states none and every residue with a backbone counts.
    """
    reliable = chain.backbone_valid.copy()
    known = np.isfinite(chain.bfactor)
    if chain.facts.is_predicted:
        return reliable & known & (np.nan_to_num(chain.bfactor) >= config.min_plddt)
    if config.max_bfactor is None or not known.any() or np.ptp(chain.bfactor[known]) == 0:
        return reliable
    return reliable & ~(np.nan_to_num(chain.bfactor) > config.max_bfactor)


def high_quality_mask(table: pa.Table, config: QualityConfig) -> np.ndarray:
    """bool [S]: which chains belong to the high-quality subset.

    A predicted model must reach the mean pLDDT. An experiment must reach resolution, R-free and completeness; where
    resolution or R-free is unknown, the fraction of residues with outlying bond lengths or Ramachandran angles stands
    in as a proxy.

    Args:
        table: has the columns QUALITY_FACTS, null where unknown.
    """

    def values(name: str) -> np.ndarray:
        return table[name].to_numpy()

    predicted = np.array([method == "predicted" for method in table["method"].to_pylist()], dtype=bool)
    resolution, r_free = values("resolution"), values("r_free")
    plausible = values("geometry_outlier_fraction") <= config.max_geometry_outliers
    too_poor = (resolution > config.max_resolution) | (r_free > config.max_r_free)
    stated = np.isfinite(resolution) & np.isfinite(r_free)
    complete = ~(values("observed_fraction") < config.min_observed_fraction)
    experiment = ~too_poor & (stated | plausible) & complete
    model = values("mean_bfactor") >= config.min_plddt
    whole = values("missing_fraction") <= config.max_missing_fraction
    return whole & np.where(predicted, model, experiment)
