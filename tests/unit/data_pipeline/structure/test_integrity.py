"""Files cut at any point are rejected, or marked where nothing in the file could show the cut."""

import gzip

import gemmi
import numpy as np
import pytest

from data_pipeline.structure.chain import StructureError
from data_pipeline.structure.integrity import UNTERMINATED, check_pdb_numbers
from data_pipeline.structure.parse import parse_structure
from data_pipeline.synthetic.mmcif import Experiment, Polymer, mmcif_text
from tests.unit.data_pipeline.structure.models import bcif_bytes, gemmi_structure, mmcif_bytes, pdb_bytes, random_fold


@pytest.fixture(scope="module")
def structure() -> gemmi.Structure:
    random = np.random.default_rng(0)
    sequence = "".join(random.choice(list("ACDEFGHIKLMNPQRSTVWY"), 40))
    return gemmi_structure({"A": (sequence, random_fold(40)), "B": (sequence, random_fold(40) + 60.0)})


def outcome(data: bytes, name: str) -> str:
    """The reason of rejection, `marked` or `accepted`."""
    try:
        chains = parse_structure(data, name)
    except StructureError as error:
        return error.reason
    return "marked" if all(UNTERMINATED in chain.notes for chain in chains) else "accepted"


def cuts(data: bytes, count: int) -> list[int]:
    """Evenly spread byte positions and line ends, without those that only take blanks at the end."""
    ends = np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == ord("\n")) + 1
    chosen = np.concatenate([np.linspace(1, len(data), count), ends[np.linspace(0, len(ends) - 1, count).astype(int)]])
    return sorted({int(cut) for cut in chosen if cut < len(data.rstrip())})


def test_a_whole_file_is_accepted(structure: gemmi.Structure) -> None:
    mmcif = mmcif_bytes(structure)
    whole = {"x.pdb": pdb_bytes(structure), "x.cif": mmcif, "x.bcif": bcif_bytes(mmcif), "y.cif": gzip.compress(mmcif)}
    assert {name: outcome(data, name) for name, data in whole.items()} == dict.fromkeys(whole, "accepted")
    assert outcome(mmcif.rstrip(), "x.cif") == "accepted"
    assert outcome(pdb_bytes(structure).rstrip(), "x.pdb") == "accepted"
    assert outcome(mmcif.replace(b"\n", b"\r\n"), "x.cif") == "accepted"


def test_an_mmcif_file_cut_anywhere_in_its_atoms_is_truncated(structure: gemmi.Structure) -> None:
    data = mmcif_bytes(structure)
    start = data.index(b"_atom_site.group_PDB")
    outcomes = {cut: outcome(data[:cut], "x.cif") for cut in cuts(data, 60) if cut > start}
    assert len(outcomes) > 80
    assert set(outcomes.values()) == {"truncated"}, outcomes


def test_an_mmcif_file_cut_in_its_header_is_rejected(structure: gemmi.Structure) -> None:
    data = mmcif_bytes(structure)
    header = data[: data.index(b"_atom_site.group_PDB")]
    outcomes = {outcome(header[:cut], "x.cif") for cut in cuts(header, 40)}
    assert outcomes <= {"truncated", "no_coordinates", "parse_error", "not_a_structure"}, outcomes


def test_without_category_marks_a_declared_chain_without_atoms_shows_the_cut(structure: gemmi.Structure) -> None:
    data = b"".join(line for line in mmcif_bytes(structure).splitlines(keepends=True) if not line.startswith(b"#"))
    assert outcome(data, "x.cif") == "marked"
    rows = data.splitlines(keepends=True)
    second_chain = next(i for i, row in enumerate(rows) if row.startswith(b"ATOM") and b" Bxp " in row)
    assert outcome(b"".join(rows[:second_chain]), "x.cif") == "truncated"
    assert outcome(b"".join(rows[: second_chain + 50]), "x.cif") == "marked"


def test_a_pdb_file_of_the_database_cut_anywhere_is_rejected(structure: gemmi.Structure) -> None:
    data = pdb_bytes(structure)
    assert data.startswith(b"HEADER")
    outcomes = {cut: outcome(data[:cut], "x.pdb") for cut in cuts(data, 60)}
    assert set(outcomes.values()) <= {"truncated", "not_a_structure"}, outcomes
    assert sum(value == "truncated" for value in outcomes.values()) > 0.9 * len(outcomes)


def test_a_pdb_file_of_atoms_alone_is_marked_or_rejected_when_cut(structure: gemmi.Structure) -> None:
    data = b"".join(line for line in pdb_bytes(structure).splitlines(keepends=True) if line.startswith(b"ATOM"))
    assert outcome(data, "x.pdb") == "marked"
    outcomes = {cut: outcome(data[:cut], "x.pdb") for cut in cuts(data, 60)}
    assert set(outcomes.values()) <= {"marked", "truncated", "not_a_structure", "no_protein"}, outcomes
    line = data.index(b"\n") + 1
    assert outcome(data[: 20 * line + 50], "x.pdb") == "truncated"
    assert outcome(data[: 20 * line + 66], "x.pdb") == "marked", "what follows the B-factor is optional"


def test_an_open_model_is_truncated(structure: gemmi.Structure) -> None:
    atoms = b"".join(line for line in pdb_bytes(structure).splitlines(keepends=True) if line.startswith(b"ATOM"))
    model = b"MODEL        1\n" + atoms
    assert outcome(model, "x.pdb") == "truncated"
    assert outcome(model + b"ENDMDL\n", "x.pdb") == "accepted"


@pytest.mark.parametrize("kind", ["bcif", "gzip"])
def test_a_binary_stream_cut_anywhere_is_truncated(structure: gemmi.Structure, kind: str) -> None:
    mmcif = mmcif_bytes(structure)
    data = bcif_bytes(mmcif) if kind == "bcif" else gzip.compress(mmcif)
    outcomes = {outcome(data[:cut], "x") for cut in range(300, len(data) - 1, max(1, len(data) // 60))}
    assert outcomes == {"truncated"}


def archived(method: str, unobserved: tuple[int, ...] = ()) -> bytes:
    """An entry of two chains as archives write it, without `#` lines."""
    chains = []
    for name, place in (("A", 0.0), ("B", 60.0)):
        atoms = random_fold(40, seed=3) + place
        atoms[list(unobserved)] = np.nan
        chains.append(Polymer(name, name, "ACDEFGHIKLMNPQRSTVWY" * 2, atoms, np.full(40, 80.0), first_number=1))
    text = mmcif_text("1ABC", Experiment(method, 2.0, 0.2, "2020-02-29"), tuple(chains))
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#")).encode()


def test_residues_called_observed_must_have_atoms() -> None:
    data = archived("X-RAY DIFFRACTION", unobserved=(0, 17, 39))
    assert outcome(data, "x.cif") == "marked"
    rows = data.splitlines(keepends=True)
    last_residue = next(i for i, row in enumerate(rows) if row.startswith(b"ATOM") and b" B 1 39 " in row)
    for end in (last_residue, last_residue - 100):
        assert outcome(b"".join(rows[:end]), "x.cif") == "truncated"
    assert outcome(b"".join(rows[: last_residue + 3]), "x.cif") == "marked", "an atom short, which nothing tells"


def test_a_predicted_model_has_its_whole_sequence() -> None:
    whole = archived("THEORETICAL MODEL")
    rows = [row for row in whole.splitlines(keepends=True) if b" ? ? " not in row]
    start = next(i for i, row in enumerate(rows) if b"_pdbx_poly_seq_scheme.asym_id" in row) - 1
    stop = next(i for i, row in enumerate(rows) if b"_atom_site.group_PDB" in row) - 1
    rows = rows[:start] + rows[stop:]
    assert outcome(b"".join(rows), "x.cif") == "marked"
    last_residue = next(i for i, row in enumerate(rows) if row.startswith(b"ATOM") and b" B 1 40 " in row)
    assert outcome(b"".join(rows[:last_residue]), "x.cif") == "truncated"
    experimental = b"".join(rows[:last_residue]).replace(b"THEORETICAL MODEL", b"SOLUTION NMR")
    assert outcome(experimental, "x.cif") == "marked"


def test_a_pdb_file_that_ends_with_a_chain_is_marked(structure: gemmi.Structure) -> None:
    data = b"".join(
        line for line in pdb_bytes(structure).splitlines(keepends=True) if line.startswith((b"ATOM", b"TER"))
    )
    assert outcome(data, "x.pdb") == "marked"
    assert outcome(data[: data.index(b"TER") + 27], "x.pdb") == "marked", "nothing tells of the second chain"
    assert outcome(data + b"END\n", "x.pdb") == "accepted"


@pytest.mark.parametrize(
    ("fields", "is_number"),
    [
        (b"  12.345 -67.890 123.456", True),
        (b"1234.567-234.567-1234.56", True),
        (b" 12.345-  67.890 123.456", False),
        (b"  12.34x -67.890 123.456", False),
        (b"  12.345         123.456", False),
        (b"12.345   -67.890 123.456", False),
    ],
)
def test_pdb_coordinates_stand_at_their_columns(fields: bytes, is_number: bool) -> None:
    first = b"ATOM      1  N   ALA A   1      10.000  20.000  30.000  1.00 20.00           N\n"
    data = first + b"ATOM      2  CA  ALA A   1    " + fields + b"  1.00 20.00           C\n"
    if is_number:
        check_pdb_numbers(data)
        return
    with pytest.raises(StructureError, match="parse_error"):
        check_pdb_numbers(data)


def test_columns_do_not_matter_to_programs_that_never_keep_to_them() -> None:
    check_pdb_numbers(
        b"".join(b"ATOM      1  CA  ALA A   1    12.3    -67.8   123.4    1.00 20.00\n" for _ in range(3))
    )
