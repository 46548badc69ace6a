"""Synthetic proteins written as real mmCIF files: the default source when no structures are given."""

import gzip
import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.errors import UserError
from configs.source import SyntheticConfig
from data_pipeline.structure.chain import AMINO_ACIDS
from data_pipeline.structure.geometry import virtual_cb
from data_pipeline.synthetic.backbone import build_atoms
from data_pipeline.synthetic.folds import Backbone, fold, jittered
from data_pipeline.synthetic.layout import HELIX, STRAND, draw_layout, vary_layout
from data_pipeline.synthetic.mmcif import Experiment, Polymer, mmcif_text
from data_pipeline.synthetic.sequences import conserved_sites, diverge, draw_sequence, environments

log = logging.getLogger("data_pipeline")

GENERATOR_VERSION = 1
"""Raised whenever the same config gives other files."""
MARKER = ".complete.json"
MEMBER_JITTER = 1.5
"""Degrees of torsion noise between members of a family."""
PAIR_SHARE = 0.12
"""Share of entries with a second chain; half of those repeat the first chain's sequence."""
METHODS = ("X-RAY DIFFRACTION", "ELECTRON MICROSCOPY", "THEORETICAL MODEL")
METHOD_SHARES = (0.7, 0.15, 0.15)


@dataclass(frozen=True)
class Family:
    """What the members of one family share; N residues."""

    backbone: Backbone
    kinds: np.ndarray
    environments: np.ndarray
    ancestor: np.ndarray
    """int64 [N]: residues as indices into AMINO_ACIDS."""
    conserved: np.ndarray


def write_synthetic(config: SyntheticConfig, folder: Path) -> int:
    """Write one `<entry>.cif.gz` per family member into `folder`, skipping when all are there; returns their number.

    The files are a pure function of `config`. Files of another config in the same folder are replaced.

    Raises:
        UserError: min_residues above max_residues.
    """
    if config.min_residues > config.max_residues:
        raise UserError(
            f"source.synthetic: min_residues {config.min_residues} is above max_residues {config.max_residues}; "
            "lower the first or raise the second"
        )
    total = config.num_folds * config.families_per_fold * config.members_per_family
    marker = folder / MARKER
    facts = {"generator": GENERATOR_VERSION, "config": config.model_dump(mode="json"), "files": total}
    if _complete(marker, facts, folder):
        return total
    folder.mkdir(parents=True, exist_ok=True)
    marker.unlink(missing_ok=True)
    for stale in folder.glob("syn-*.cif.gz"):
        stale.unlink()
    began = logged = time.monotonic()
    for number, (entry, text) in enumerate(synthetic_entries(config), start=1):
        _replace(folder / f"{entry}.cif.gz", gzip.compress(text.encode(), compresslevel=6, mtime=0))
        if time.monotonic() - logged > 5:
            logged = time.monotonic()
            log.info("synthetic structures: %d of %d written", number, total)
    _replace(marker, json.dumps(facts, sort_keys=True).encode())
    log.info("synthetic structures: %d in %.1f s -> %s", total, time.monotonic() - began, folder)
    return total


def synthetic_entries(config: SyntheticConfig) -> Iterator[tuple[str, str]]:
    """Entry name and mmCIF text of every member; each fold and family depends only on the seed and its own number."""
    for fold_number in range(config.num_folds):
        canonical = _draw_fold(config, np.random.default_rng([config.seed, fold_number]))
        for family_number in range(config.families_per_fold):
            rng = np.random.default_rng([config.seed, fold_number, family_number])
            family = draw_family(config, canonical, rng)
            for member in range(config.members_per_family):
                entry = f"syn-f{fold_number:03d}-a{family_number:02d}-m{member:02d}"
                yield entry, _entry_text(config, family, entry, rng)


def _draw_fold(config: SyntheticConfig, rng: np.random.Generator) -> Backbone:
    num_residues = int(rng.integers(config.min_residues, config.max_residues + 1))
    return fold(draw_layout(num_residues, rng), rng)


def draw_family(config: SyntheticConfig, canonical: Backbone, rng: np.random.Generator) -> Family:
    """A family on the fold of `canonical`: own loops and lengths, own ancestral sequence, own motifs."""
    wished = canonical.layout.num_residues + int(rng.integers(-5, 6))
    num_residues = min(max(wished, config.min_residues), config.max_residues)
    layout = vary_layout(canonical.layout, num_residues, rng)
    backbone = fold(layout, rng, like=canonical)
    places = environments(layout.kinds, backbone.torsions, build_atoms(backbone.torsions))
    return Family(backbone, layout.kinds, places, draw_sequence(places, rng), conserved_sites(num_residues, rng))


def _entry_text(config: SyntheticConfig, family: Family, entry: str, rng: np.random.Generator) -> str:
    experiment = _draw_experiment(rng)
    first = _draw_polymer(config, family, experiment, rng)
    polymers = (first,)
    if not experiment.is_predicted and rng.random() < PAIR_SHARE:
        other = first if rng.random() < 0.5 else _draw_polymer(config, family, experiment, rng)
        polymers = (first, _beside(first, other))
    return mmcif_text(entry.upper(), experiment, polymers)


def _draw_experiment(rng: np.random.Generator) -> Experiment:
    method = METHODS[rng.choice(len(METHODS), p=METHOD_SHARES)]
    resolution = float(np.round(rng.uniform(1.2, 3.5), 2))
    r_free = float(np.round(0.15 + 0.04 * resolution + rng.normal(0.0, 0.015), 4))
    first_day, years = ("2021-07-01", 4) if method == "THEORETICAL MODEL" else ("1995-01-01", 30)
    date = np.datetime64(first_day) + int(rng.integers(365 * years))
    if method == "X-RAY DIFFRACTION":
        return Experiment(method, resolution, r_free, str(date))
    return Experiment(method, None if method == "THEORETICAL MODEL" else resolution + 0.5, None, str(date))


def _draw_polymer(config: SyntheticConfig, family: Family, experiment: Experiment, rng: np.random.Generator) -> Polymer:
    """A diverged member with its own small deformation, orientation, B-factors and disordered start."""
    residues = diverge(family.ancestor, family.environments, family.conserved, config.mutation_rate, rng)
    sequence = "".join(AMINO_ACIDS[residue] for residue in residues)
    torsions = jittered(family.backbone.torsions, rng.normal(0.0, MEMBER_JITTER, size=family.backbone.torsions.shape))
    atoms = build_atoms(torsions)
    beta = virtual_cb(atoms[:, 0], atoms[:, 1], atoms[:, 2])
    beta[residues == AMINO_ACIDS.index("G")] = np.nan
    atoms = np.concatenate([atoms, beta[:, None]], axis=1) - atoms[:, 1].mean(axis=0)
    atoms = atoms @ _random_rotation(rng).T + rng.uniform(-30.0, 30.0, size=3)
    if not experiment.is_predicted and rng.random() < 0.25:
        atoms[: int(rng.integers(1, 4))] = np.nan
    first_number = 1 if rng.random() < 0.7 else int(rng.integers(2, 300))
    return Polymer("A", "A", sequence, atoms, _draw_bfactor(family.kinds, experiment, rng), first_number)


def _draw_bfactor(kinds: np.ndarray, experiment: Experiment, rng: np.random.Generator) -> np.ndarray:
    """float64 [N]: B-factors that rise in loops and with resolution; for predictions a pLDDT that falls in loops."""
    loose = ((kinds != HELIX) & (kinds != STRAND)).astype(float)
    loose = np.convolve(np.pad(loose, 1, mode="edge"), [0.25, 0.5, 0.25], mode="valid")
    if experiment.is_predicted:
        return np.clip(rng.uniform(72.0, 98.0) - 14.0 * loose + rng.normal(0.0, 2.0, size=len(kinds)), 20.0, 99.0)
    base = 9.0 * experiment.resolution
    return np.clip(base + 20.0 * loose + rng.normal(0.0, 3.0, size=len(kinds)), 4.0, 180.0)


def _beside(first: Polymer, other: Polymer) -> Polymer:
    """`other` as chain B, turned by half a turn and moved until it stands beside `first`."""
    turned = other.atoms * np.array([-1.0, -1.0, 1.0])
    turned = turned + np.nanmean(first.atoms, axis=(0, 1)) - np.nanmean(turned, axis=(0, 1))
    gap = np.nanmax(first.atoms[..., 0]) - np.nanmin(turned[..., 0]) + 5.0
    return Polymer("B", "B", other.sequence, turned + np.array([gap, 0.0, 0.0]), other.bfactor, other.first_number)


def _random_rotation(rng: np.random.Generator) -> np.ndarray:
    """A uniform random rotation [3, 3]."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q if np.linalg.det(q) > 0 else -q


def _complete(marker: Path, facts: dict[str, object], folder: Path) -> bool:
    try:
        same = json.loads(marker.read_text()) == facts
    except (OSError, ValueError):
        return False
    return same and sum(1 for _ in folder.glob("syn-*.cif.gz")) == facts["files"]


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)
