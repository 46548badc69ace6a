"""Benchmarks of mutations where the configuration says that they lie, each read once."""

import os
from functools import lru_cache
from pathlib import Path

from configs.benchmarks import BenchmarksConfig
from eval.datasets.files import matching, open_files
from eval.datasets.residue_readers import Source
from eval.datasets.sav import flip_savs
from eval.datasets.variants import (
    AssayLayout,
    Assays,
    clinical,
    fireprot,
    hub_clinical,
    hub_scans,
    scans,
    single_sites,
)
from eval.tasks.protocol import DatasetMissing

_GYM = "OATML-Markslab+ProteinGym"
ASSAY_LAYOUTS: dict[str, tuple[AssayLayout, ...]] = {
    "proteingym": (
        AssayLayout(
            "ProteinGym",
            _GYM,
            ("reference_files/DMS_substitutions.csv", "DMS_ProteinGym_substitutions/*.csv"),
            scans("reference_files/DMS_substitutions.csv"),
        ),
        AssayLayout(
            "ProteinGym, zipped",
            _GYM,
            ("reference_files/DMS_substitutions.csv", "DMS_ProteinGym_substitutions.zip"),
            scans("reference_files/DMS_substitutions.csv"),
        ),
        AssayLayout(
            "ProteinGym, one folder",
            _GYM,
            ("DMS_substitutions.csv", "DMS_ProteinGym_substitutions*"),
            scans("DMS_substitutions.csv"),
        ),
        AssayLayout("hf://datasets/OATML-Markslab/ProteinGym_v1", "", ("DMS_substitutions/*.parquet",), hub_scans),
        AssayLayout("ProteinGym single sites", "", ("*gym_single/mutant/*.csv",), single_sites),
    ),
    "clinical": (
        AssayLayout(
            "ProteinGym clinical",
            _GYM,
            ("reference_files/clinical_substitutions.csv", "clinical_ProteinGym_substitutions*"),
            clinical("reference_files/clinical_substitutions.csv"),
        ),
        AssayLayout(
            "ProteinGym clinical, one folder",
            _GYM,
            ("clinical_substitutions.csv", "clinical_ProteinGym_substitutions*"),
            clinical("clinical_substitutions.csv"),
        ),
        AssayLayout(
            "hf://datasets/OATML-Markslab/ProteinGym_v1", "", ("clinical_substitutions/*.parquet",), hub_clinical
        ),
    ),
    "sav": tuple(
        AssayLayout(f"FLIP sav{words}", "J-SNACKKB+FLIP/splits/sav", (path,), flip_savs(path))
        for words, path in (("", "splits.zip/splits/mixed.csv"), (", unpacked", "splits/mixed.csv"))
    ),
    "ddg": (
        AssayLayout(
            "ThermoMPNN FireProt", "Kuhlman-Lab+ThermoMPNN/data_all/training", ("fireprot_train.csv",), fireprot
        ),
    ),
}
"""By name in `benchmarks.sources`."""


def assays_of(name: str, config: BenchmarksConfig) -> Assays:
    """Assays of the first layout that is there.

    Raises:
        DatasetMissing: none is, or no place is named.
        UserError: a file of it is damaged or lacks a column.
    """
    named = config.sources.get(name)
    return _read(name, named or _root(name, config.root), named is not None)


def _root(name: str, root: Path | None) -> str:
    if root is not None:
        return str(root)
    if os.environ.get("SAPLM_DATA"):
        return str(Path(os.environ["SAPLM_DATA"]) / "benchmarks")
    raise DatasetMissing(
        f"dataset {name}: no place is named; set benchmarks.sources.{name} or benchmarks.root, or SAPLM_DATA"
    )


@lru_cache(maxsize=8)
def _read(name: str, place: str, own: bool) -> Assays:
    files = open_files(place)
    for layout in ASSAY_LAYOUTS[name]:
        for prefix in dict.fromkeys(("", layout.prefix) if own else (layout.prefix,)):
            if all(matching(files, f"{prefix}/{needed}" if prefix else needed) for needed in layout.needs):
                return layout.read(Source(files, prefix))
    wanted = "; ".join(f"{layout.name}: {', '.join(layout.needs)}" for layout in ASSAY_LAYOUTS[name])
    raise DatasetMissing(f"dataset {name}: {place} holds none of its layouts ({wanted}); set benchmarks.sources.{name}")
