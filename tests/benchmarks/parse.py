"""mmCIF files to chain arrays: beside gemmi's own reading of the same bytes, and beside Biopython's.

`ratio_to_gemmi` is CPU time of parse_structure over that of gemmi.read_structure_string, which builds no arrays;
`speedup_vs_biopython` that of Bio.PDB's MMCIFParser with backbone arrays over parse_structure. The files are the real
mmCIF entries with protein of mixed_formats.tar.xz. `pip install biopython` is needed beside the project's own packages.
"""

import io
import sys
import tarfile
import warnings
from collections.abc import Callable
from functools import partial

import gemmi
import numpy as np

from data_pipeline.structure.chain import ATOM_NAMES, StructureError
from data_pipeline.structure.parse import parse_structure
from tests.benchmarks._chains import data_folder
from tests.benchmarks._timing import interleaved, report

try:
    from Bio.PDB.MMCIFParser import MMCIFParser
except ImportError:
    print("error: this benchmark compares with Biopython, which is missing; pip install biopython", file=sys.stderr)
    raise SystemExit(2) from None

ROUNDS = 9
PEER_ROUNDS = 3
PEER_FILES = slice(1, None, 3)
"""Files that Biopython reads, which takes far longer: every third by size, so that the mix stays."""

File = tuple[str, bytes]


def real_files() -> list[File]:
    """Name and bytes of every mmCIF entry with a protein chain, smallest first."""
    files = []
    with tarfile.open(data_folder() / "structures" / "mixed_formats.tar.xz") as archive:
        for member in archive:
            if member.isfile() and member.name.endswith(".cif"):
                data = archive.extractfile(member).read()
                try:
                    parse_structure(data, member.name)
                except StructureError:
                    continue
                files.append((member.name, data))
    return sorted(files, key=lambda file: len(file[1]))


def ours(file: tuple[str, bytes]) -> int:
    return sum(len(chain.sequence) for chain in parse_structure(file[1], file[0]))


def by_gemmi(file: tuple[str, bytes]) -> int:
    return len(gemmi.read_structure_string(file[1]))


def by_biopython(file: tuple[str, bytes]) -> int:
    """Backbone arrays of every chain of the first model, as a script with Bio.PDB makes them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        structure = MMCIFParser(QUIET=True).get_structure(file[0], io.StringIO(file[1].decode()))
    residues = 0
    for chain in structure[0]:
        rows = [
            [residue[atom].coord if atom in residue else [np.nan] * 3 for atom in ATOM_NAMES]
            for residue in chain
            if residue.id[0] == " "
        ]
        residues += len(np.array(rows))
    return residues


def cpu_seconds(files: list[File], readers: dict[str, Callable[[File], int]], rounds: int) -> dict[str, float]:
    """Sums over the files of each reader's median; the readers take turns at each file, to meet the same conditions."""
    total = dict.fromkeys(readers, 0.0)
    for file in files:
        contestants = {name: partial(read, file) for name, read in readers.items()}
        for name, timing in interleaved(contestants, rounds).items():
            total[name] += timing.cpu_seconds
    return total


def main() -> None:
    files = real_files()
    seconds = cpu_seconds(files, {"ours": ours, "gemmi": by_gemmi}, ROUNDS)
    beside = cpu_seconds(files[PEER_FILES], {"ours": ours, "biopython": by_biopython}, PEER_ROUNDS)
    residues, megabytes = sum(map(ours, files)), sum(len(data) for _, data in files) / 1e6
    report(
        "parse",
        {
            "files": len(files),
            "residues": residues,
            "megabytes": megabytes,
            "ratio_to_gemmi": seconds["ours"] / seconds["gemmi"],
            "speedup_vs_biopython": beside["biopython"] / beside["ours"],
            "microseconds_per_residue": seconds["ours"] / residues * 1e6,
            "megabytes_per_second": megabytes / seconds["ours"],
        },
    )


if __name__ == "__main__":
    main()
