"""The chemistry that real files hold: hetero chains, models, numbering, conformers, names; synthetic and real."""

import re
from collections.abc import Callable
from pathlib import Path

import gemmi
import numpy as np
import pytest

from data_pipeline.sources import open_source, read_entry
from data_pipeline.structure.chain import Chain, StructureError
from data_pipeline.structure.geometry import CA
from data_pipeline.structure.parse import parse_structure
from tests.unit.data_pipeline.structure.models import (
    bcif_bytes,
    gemmi_structure,
    helix,
    mmcif_bytes,
    pdb_bytes,
    random_fold,
)

SEQUENCE = "ACDEFGHIKLMNPQRSTVWY"
FOLD = random_fold(20)


def simple() -> gemmi.Structure:
    return gemmi_structure({"A": (SEQUENCE, FOLD)})


def parse_all(structure: gemmi.Structure) -> list[list[Chain]]:
    mmcif = mmcif_bytes(structure)
    contents = {"x.pdb": pdb_bytes(structure), "x.cif": mmcif, "x.bcif": bcif_bytes(mmcif)}
    return [parse_structure(data, name) for name, data in contents.items()]


def residue_of(name: str, number: int, atoms: dict[str, tuple[float, float, float]]) -> gemmi.Residue:
    residue = gemmi.Residue()
    residue.name, residue.seqid = name, gemmi.SeqId(number, " ")
    for atom_name, place in atoms.items():
        atom = gemmi.Atom()
        atom.name, atom.pos, atom.element = atom_name, gemmi.Position(*place), gemmi.Element(atom_name[0])
        residue.add_atom(atom)
    return residue


def test_of_a_complex_with_dna_and_ligands_the_protein_is_read() -> None:
    structure = simple()
    dna = gemmi.Chain("D")
    for i in range(8):
        dna.add_residue(residue_of(("DA", "DC")[i % 2], i + 1, {"P": (6.0 * i, 50, 0), "C4'": (6.0 * i, 52, 0)}))
    structure[0].add_chain(dna)
    structure[0][0].add_residue(residue_of("ATP", 301, {"PG": (0, 90, 0), "CA": (2, 90, 0)}))
    structure[0][0].add_residue(residue_of("CA", 302, {"CA": (0, 95, 0)}))
    for residue in structure[0][0]:
        residue.entity_type = gemmi.EntityType.Unknown
    structure.entities.clear()
    structure.setup_entities()
    for (chain,) in parse_all(structure):
        assert (chain.key, chain.sequence) == ("1abc_A", SEQUENCE)
        np.testing.assert_array_equal(chain.coordinates[:, CA], FOLD[:, CA])


def test_label_and_author_names_are_both_kept_and_the_key_has_the_authors() -> None:
    mmcif = mmcif_bytes(simple()).replace(b" Axp ", b" Q7 ").replace(b" Axp\n", b" Q7\n").replace(b"\nAxp ", b"\nQ7 ")
    for data in (mmcif, bcif_bytes(mmcif)):
        (chain,) = parse_structure(data, "x.cif")
        assert (chain.key, chain.facts.chain_author, chain.facts.chain_label) == ("1abc_A", "A", "Q7")


def test_negative_numbers_gaps_and_a_falling_order_of_numbers_keep_the_files_order() -> None:
    structure = simple()
    numbers = [*range(-5, 3), *range(900, 906), *range(20, 26)]
    for residue, number in zip(structure[0][0], numbers, strict=True):
        residue.seqid = gemmi.SeqId(number, " ")
    for (chain,) in parse_all(structure):
        assert chain.sequence == SEQUENCE
        np.testing.assert_array_equal(chain.coordinates[:, CA], FOLD[:, CA])


def shifted(structure: gemmi.Structure, index: int, altloc: str, distance: float) -> gemmi.Residue:
    residue = structure[0][0][index].clone()
    for atom in residue:
        atom.altloc = altloc
        atom.pos += gemmi.Position(distance, 0, 0)
    return residue


def test_conformers_listed_one_after_another_are_those_listed_atom_by_atom() -> None:
    structure = simple()
    alternatives = [shifted(structure, index, "B", 1.0) for index in (4, 5, 6)]
    for index in (4, 5, 6):
        for atom in structure[0][0][index]:
            atom.altloc = "A"
    rows = mmcif_bytes(structure).splitlines(keepends=True)
    first_atom = next(i for i, row in enumerate(rows) if row.startswith(b"ATOM"))
    after = next(i for i, row in enumerate(rows) if i > first_atom and b" . LYS Axp A 9 " in row)
    extra = [row for row in rows if row.startswith(b"ATOM") and re.search(rb" A (PHE|GLY|HIS) Axp", row)]
    assert len(extra) == sum(map(len, alternatives))
    positions = [atom.pos for residue in alternatives for atom in residue]
    late = [row_at(row, position) for row, position in zip(extra, positions, strict=True)]
    mmcif = b"".join(rows[:after] + late + rows[after:])
    for data in (mmcif, bcif_bytes(mmcif)):
        (chain,) = parse_structure(data, "x.cif")
        assert chain.sequence == SEQUENCE
        moved = chain.coordinates[:, CA] - FOLD[:, CA]
        np.testing.assert_allclose(moved[4:7, 0], 1.0, atol=1e-9)  # sums of numbers with three decimals
        np.testing.assert_array_equal(np.delete(moved, [4, 5, 6], axis=0), 0.0)


def row_at(row: bytes, position: gemmi.Position) -> bytes:
    """An atom's mmCIF row, as alternative B at another position."""
    words = row.split()
    words[4] = b"B"
    words[10:13] = [f"{value:.3f}".encode() for value in position.tolist()]
    return b" ".join(words) + b"\n"


def test_residues_of_two_types_under_one_number_are_two_unless_they_are_alternatives() -> None:
    structure = simple()
    for residue, number in ((structure[0][0][3], 3), (structure[0][0][4], 5)):
        residue.seqid = gemmi.SeqId(number, " ")
    for (chain,) in parse_all(structure):
        assert chain.sequence == SEQUENCE, "ASP 3 and GLU 3 without an insertion code"
        np.testing.assert_array_equal(chain.coordinates[:, CA], FOLD[:, CA])


def test_unknown_residues_are_nodes() -> None:
    structure = simple()
    for i in range(5, 9):
        structure[0][0][i].name = "UNK"
    structure.entities[0].full_sequence = [residue.name for residue in structure[0][0]]
    for (chain,) in parse_all(structure):
        assert chain.sequence == SEQUENCE[:5] + "XXXX" + SEQUENCE[9:]
        assert chain.backbone_valid.all()


def test_more_atoms_and_residues_than_pdb_columns_number_are_read() -> None:
    chains = {name: ("A" * 7000, np.round(helix(7000) - 5000.0 + 9.0 * i, 3)) for i, name in enumerate("ABC")}
    structure = gemmi_structure(chains)
    # A straight helix of 7,000 residues leaves the columns, so that it is laid in a zigzag.
    for chain in structure[0]:
        for i, residue in enumerate(chain):
            for atom in residue:
                atom.pos = gemmi.Position(atom.pos.x % 900, atom.pos.y % 900, i / 10.0)
    for i, residue in enumerate(structure[0][2]):
        residue.seqid = gemmi.SeqId(5000 + i, " ")
    data = pdb_bytes(structure)
    assert re.search(rb"\nATOM  A0\w\w\w ", data), "serial numbers in hybrid-36"
    assert re.search(rb" ALA CA0\w\w ", data), "residue numbers in hybrid-36"
    parsed = parse_structure(data, "x.pdb")
    assert [(chain.key, len(chain.sequence)) for chain in parsed] == [(f"1abc_{name}", 7000) for name in "ABC"]
    assert all(chain.backbone_valid.all() for chain in parsed)
    np.testing.assert_allclose(parsed[2].coordinates[:, CA, 2], np.arange(7000) / 10.0, atol=1e-9)


REAL_CHAINS: dict[str, tuple[str, str, int, Callable[[Chain], bool]]] = {
    "18 models of NMR": ("1gya", "1gya_A", 105, lambda chain: chain.facts.method == "solution nmr"),
    "protein with DNA, label D for author A": ("5ugo", "5ugo_A", 326, lambda chain: chain.facts.chain_label != "B"),
    "insertion codes": ("1igy", "1igy_B", 434, lambda chain: chain.notes == ()),
    "alternative locations": ("3o5r", "3o5r_A", 128, lambda chain: "altloc" in chain.notes),
    "an unknown residue": ("5eil", "5eil_A", 158, lambda chain: chain.sequence.count("X") == 1),
    "residues not seen": ("5h73", "5h73_A", 363, lambda chain: "unobserved:27" in chain.notes),
    "a break": ("3wip", "3wip_C", 202, lambda chain: "chain_break:1" in chain.notes),
}


@pytest.fixture(scope="module")
def real_files(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    cache = tmp_path_factory.mktemp("cache")
    source = open_source(real_data / "structures" / "mixed_formats.tar.xz", cache=cache)
    wanted = {name for name, *_ in REAL_CHAINS.values()}
    return {Path(e.name).name: read_entry(e) for e in source.entries() if Path(e.name).stem in wanted}


@pytest.mark.data
@pytest.mark.parametrize("kind", REAL_CHAINS)
def test_real_entries_hold_what_their_authors_say(kind: str, real_files: dict[str, bytes]) -> None:
    entry, key, length, holds = REAL_CHAINS[kind]
    contents = {name: data for name, data in real_files.items() if name.startswith(entry)}
    assert contents
    for name, data in contents.items():
        chain = next(chain for chain in parse_structure(data, name) if chain.key == key)
        assert len(chain.sequence) == len(chain.coordinates) == len(chain.bfactor) == length
        assert holds(chain), (name, chain.notes)


@pytest.mark.data
def test_only_the_first_of_many_real_models_counts(real_files: dict[str, bytes]) -> None:
    text = real_files["1gya.pdb"]
    first = text[: text.index(b"ENDMDL")] + b"ENDMDL\nEND\n"
    one, many = (parse_structure(data, "1gya.pdb")[0] for data in (first, text))
    np.testing.assert_array_equal(one.coordinates, many.coordinates)


def test_a_chain_of_nothing_but_ligand_atoms_named_like_a_backbone_is_no_protein() -> None:
    data = (
        b"HETATM    1  CA  LIG A   1       0.000   0.000   0.000  1.00 10.00           C\n"
        b"HETATM    2  N   LIG A   1       1.400   0.000   0.000  1.00 10.00           N\nEND\n"
    )
    with pytest.raises(StructureError) as caught:
        parse_structure(data, "x.pdb")
    assert caught.value.reason == "no_protein"
