"""Real chains for benchmarks, from the folder that SAPLM_DATA names."""

import itertools
import os
import sys
from pathlib import Path

import numpy as np

MISSING = -32768


def data_folder() -> Path:
    """The folder of real data; ends the benchmark with exit code 2 where there is none."""
    folder = os.environ.get("SAPLM_DATA")
    if not folder or not Path(folder).is_dir():
        print("error: SAPLM_DATA must name the folder of real structures", file=sys.stderr)
        raise SystemExit(2)
    return Path(folder)


def real_chains(limit: int | None = None) -> list[tuple[str, np.ndarray]]:
    """Sequence and float64 [N, 5, 3] coordinates (Angstrom, NaN where missing) of the real chains, in file order."""
    data = np.load(data_folder() / "structures" / "chains_backbone.npz")
    xyz, offset, sequence = data["xyz"], data["offset"], str(data["seq"])
    bounds = list(itertools.pairwise(offset))[:limit]
    return [(sequence[a:b], np.where(xyz[a:b] == MISSING, np.nan, xyz[a:b] / 100.0)) for a, b in bounds]
