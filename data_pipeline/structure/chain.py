"""The central value of the structure package: one protein chain, as parsed."""

from dataclasses import dataclass, field

import numpy as np

ATOM_NAMES = ("N", "CA", "C", "O", "CB")
"""Order of the atom axis wherever coordinates are stored."""
AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
"""The 20 standard residues in alphabetical one-letter order; `X` stands for any other."""
UNKNOWN_RESIDUE = "X"
THREEDI_STATES = "ACDEFGHIKLMNPQRSTVWY"
"""Letters of the 20 3Di states, by state index."""


class StructureError(ValueError):
    """A structure that cannot be used: `reason` is a stable code for counting, `detail` a line for people."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail

    def __reduce__(self) -> tuple:
        return StructureError, (self.reason, self.detail)


@dataclass(frozen=True)
class ExperimentFacts:
    """What is known about where a chain came from; None where the file does not say."""

    source: str
    """Path (and member of a tar) it was read from, relative to the source's root."""
    entry: str
    """Entry identifier, e.g. `1ABC` or `AF-P12345-F1`."""
    chain_label: str
    """mmCIF label_asym_id (equals `chain_author` for PDB files)."""
    chain_author: str
    """auth_asym_id, as biologists cite it."""
    method: str | None = None
    """`x-ray diffraction`, `electron microscopy`, `solution nmr`, `predicted`, ... in lower case."""
    resolution: float | None = None
    """Angstrom."""
    r_free: float | None = None
    deposition_date: str | None = None
    """ISO date."""
    model_version: str | None = None
    """Version of a predicted model's database, read from the entry or file name, never assumed."""
    assemblies: tuple[str, ...] | None = None
    """Identifiers of the biological assemblies that the chain is part of; empty where the file has others only."""

    @property
    def is_predicted(self) -> bool:
        return self.method == "predicted"


@dataclass(frozen=True)
class Chain:
    """One protein chain of N residues; every array has N rows."""

    key: str
    """Sample key without dots, e.g. `1abc_A`, `AF-P12345-F1_A`."""
    sequence: str
    coordinates: np.ndarray
    """float64 [N, 5, 3], Angstrom, atoms as in ATOM_NAMES; NaN where missing (CB of glycine included)."""
    bfactor: np.ndarray
    """float32 [N]: B-factor of CA, or pLDDT in a predicted model; NaN where CA is missing."""
    facts: ExperimentFacts
    notes: tuple[str, ...] = field(default=())
    """Remarks such as `altloc`, `modified_residue:MSE`, `chain_break`."""

    def __post_init__(self) -> None:
        n = len(self.sequence)
        assert self.coordinates.shape == (n, len(ATOM_NAMES), 3), (self.key, self.coordinates.shape, n)
        assert self.bfactor.shape == (n,), (self.key, self.bfactor.shape, n)

    @property
    def backbone_valid(self) -> np.ndarray:
        """bool [N]: N, CA and C are all present."""
        return np.isfinite(self.coordinates[:, :3]).all(axis=(1, 2))
