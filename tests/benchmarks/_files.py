"""Real chains as structure files, for benchmarks that start where users start."""

import gzip
import itertools
import re
from collections.abc import Iterator
from pathlib import PurePath

import gemmi
import numpy as np

from data_pipeline.structure.chain import AMINO_ACIDS, ATOM_NAMES, UNKNOWN_RESIDUE
from tests.benchmarks._chains import MISSING, data_folder

THREE_LETTERS = {letter: gemmi.expand_one_letter(letter, gemmi.ResidueKind.AA) for letter in AMINO_ACIDS}
THREE_LETTERS[UNKNOWN_RESIDUE] = "UNK"


def pdb_files(limit: int | None = None) -> Iterator[tuple[str, bytes]]:
    """Name and gzipped PDB text of every real chain."""
    data = np.load(data_folder() / "structures" / "chains_backbone.npz")
    xyz, bfactor, sequence = data["xyz"], data["bfac"] / 100.0, str(data["seq"])
    identifiers = str(data["ids"]).split("\n")
    bounds = itertools.pairwise(data["offset"].tolist())
    for number, (identifier, (first, last)) in enumerate(zip(identifiers[:limit], bounds, strict=False)):
        _, file, chain = identifier.split(":")[:3]
        entry = re.sub(r"[^A-Za-z0-9]", "-", PurePath(file).name.split(".")[0])[:40]
        coordinates = np.where(xyz[first:last] == MISSING, np.nan, xyz[first:last] / 100.0)
        text = pdb_text(sequence[first:last], coordinates, bfactor[first:last])
        name = f"{number:05d}_{entry}_{chain.strip() or 'A'}.pdb.gz"
        yield name, gzip.compress(text.encode(), 1, mtime=0)


def pdb_text(sequence: str, coordinates: np.ndarray, bfactor: np.ndarray) -> str:
    """One chain as PDB records; coordinates [N, 5, 3] in Angstrom, NaN where an atom is missing."""
    lines, serial = [], 0
    for number, (letter, residue, b) in enumerate(zip(sequence, coordinates, bfactor, strict=True), 1):
        for name, (x, y, z) in zip(ATOM_NAMES, residue.tolist(), strict=True):
            # NaN is not equal to itself.
            if x == x:  # noqa: PLR0124
                serial += 1
                lines.append(
                    f"ATOM  {serial % 100000:5d}  {name:<3s} {THREE_LETTERS[letter]} A{number % 10000:4d}    "
                    f"{x:8.3f}{y:8.3f}{z:8.3f}  1.00{min(b, 999.99):6.2f}          {name[0]:>2s}"
                )
    return "\n".join([*lines, "TER", "END", ""])
