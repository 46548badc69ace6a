"""Secondary structure against mkdssp, where it is installed, and against biotite's annotation of the same chains."""

import shutil
import subprocess
from pathlib import Path

import biotite.structure as bs
import numpy as np
import pytest

from data_pipeline.structure.chain import ATOM_NAMES
from data_pipeline.structure.secondary import HELIX, STRAND, dssp_states, secondary_structure
from tests.unit.data_pipeline.structure.models import NAMES

MISSING = -32768
NUM_CHAINS = 50
MIN_AGREEMENT = 0.999
"""Of three states. Coordinates are rounded to 0.01 Angstrom, so a few energies at the threshold may fall either way."""
MIN_AGREEMENT_WITH_CA_GEOMETRY = 0.75
"""P-SEA sees CA positions only and is known to agree with DSSP on about four residues in five."""
HEADER = (
    "HEADER    PROTEIN                                 01-JAN-00   1ABC              \n"
    "CRYST1    1.000    1.000    1.000  90.00  90.00  90.00 P 1           1          \n"
)


@pytest.fixture(scope="module")
def chains(real_data: Path) -> list[tuple[str, np.ndarray]]:
    """(sequence, float64 [N, 5, 3]) of chains spread over the whole set."""
    packed = np.load(real_data / "structures" / "chains_backbone.npz", allow_pickle=False)
    xyz, offset, sequences = packed["xyz"], packed["offset"], str(packed["seq"])
    chosen = np.linspace(0, len(offset) - 2, NUM_CHAINS).astype(int)
    spans = [(int(offset[i]), int(offset[i + 1])) for i in chosen]
    return [(sequences[a:b], np.where(xyz[a:b] == MISSING, np.nan, xyz[a:b] / 100.0)) for a, b in spans]


def pdb_text(sequence: str, coordinates: np.ndarray) -> str:
    lines, serial = [], 0
    for i, (letter, atoms) in enumerate(zip(sequence, coordinates, strict=True), start=1):
        for name, (x, y, z) in zip(ATOM_NAMES, atoms, strict=True):
            if np.isfinite(x):
                serial += 1
                lines.append(
                    f"ATOM  {serial:5d}  {name:<3s} {NAMES.get(letter, 'UNK')} A{i:4d}    "
                    f"{x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00          {name[0]:>2s}  \n"
                )
    return HEADER + "".join(lines) + "TER\nEND\n"


def mkdssp_states(sequence: str, coordinates: np.ndarray, folder: Path) -> str:
    """Eight-state letters of the program, `X` for residues it leaves out."""
    source, result = folder / "in.pdb", folder / "out.dssp"
    source.write_text(pdb_text(sequence, coordinates))
    subprocess.run(["mkdssp", "--output-format", "dssp", source, result], check=True, capture_output=True, timeout=60)
    rows = result.read_text().split("  #  RESIDUE")[1].splitlines()[1:]
    states = ["X"] * len(sequence)
    for row in rows:
        if row[13] != "!":
            states[int(row[5:10]) - 1] = {" ": "-", "P": "-"}.get(row[16], row[16])
    return "".join(states)


def three_states(letters: str) -> np.ndarray:
    classes = {**dict.fromkeys("HGI", 0), **dict.fromkeys("EB", 1), "X": -1}
    return np.array([classes.get(letter, 2) for letter in letters])


@pytest.mark.data
def test_states_agree_with_mkdssp(chains: list[tuple[str, np.ndarray]], tmp_path: Path) -> None:
    if shutil.which("mkdssp") is None:
        pytest.skip("mkdssp is not installed (Debian package dssp)")
    agree = total = 0
    for sequence, coordinates in chains:
        expected = three_states(mkdssp_states(sequence, coordinates, tmp_path))
        found = three_states(dssp_states(coordinates, sequence))
        np.testing.assert_array_equal(found == -1, expected == -1)
        agree += int((found == expected)[found >= 0].sum())
        total += int((found >= 0).sum())
    assert agree / total >= MIN_AGREEMENT


@pytest.mark.data
def test_helices_and_strands_agree_with_ca_geometry(chains: list[tuple[str, np.ndarray]]) -> None:
    agree = total = 0
    for sequence, coordinates in chains:
        if not np.isfinite(coordinates[:, :4]).all():
            continue
        atoms = bs.AtomArray(len(sequence))
        atoms.coord = coordinates[:, 1].astype(np.float32)
        atoms.atom_name[:], atoms.chain_id[:] = "CA", "A"
        atoms.res_id = np.arange(1, len(sequence) + 1)
        atoms.res_name = np.array([NAMES.get(letter, "UNK") for letter in sequence])
        expected = np.array([{"a": HELIX, "b": STRAND}.get(state, 2) for state in bs.annotate_sse(atoms)])
        agree += int((secondary_structure(coordinates, sequence) == expected).sum())
        total += len(sequence)
    assert total > 1000
    assert agree / total >= MIN_AGREEMENT_WITH_CA_GEOMETRY
