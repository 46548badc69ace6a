import gzip

import gemmi
import numpy as np
import pytest

from data_pipeline.structure.chain import AMINO_ACIDS, Chain, StructureError
from data_pipeline.structure.geometry import CA, CB, N
from data_pipeline.structure.parse import REASONS, parse_structure
from tests.unit.data_pipeline.structure.models import (
    as_dna,
    bcif_bytes,
    gemmi_structure,
    helix,
    mmcif_bytes,
    pdb_bytes,
    random_fold,
)

SEQUENCE = "ACDEFGHIKLMNPQRSTVWY"


def simple() -> gemmi.Structure:
    return gemmi_structure({"A": (SEQUENCE, helix(20))})


def all_formats(structure: gemmi.Structure) -> dict[str, bytes]:
    mmcif = mmcif_bytes(structure)
    return {"x.pdb": pdb_bytes(structure), "x.cif": mmcif, "x.bcif": bcif_bytes(mmcif)}


def parse_all(structure: gemmi.Structure) -> list[list[Chain]]:
    return [parse_structure(data, name) for name, data in all_formats(structure).items()]


def reason_of(data: bytes, name: str = "x.cif") -> str:
    with pytest.raises(StructureError) as caught:
        parse_structure(data, name)
    assert caught.value.reason in REASONS
    return caught.value.reason


@pytest.mark.parametrize("name", ["x.pdb", "x.cif", "x.bcif"])
@pytest.mark.parametrize("is_compressed", [False, True])
def test_every_format_gives_sequence_coordinates_and_b_factors(name: str, is_compressed: bool) -> None:
    data = all_formats(simple())[name]
    (chain,) = parse_structure(gzip.compress(data) if is_compressed else data, name)
    assert (chain.key, chain.sequence) == ("1abc_A", SEQUENCE)
    expected = helix(20)
    expected[SEQUENCE.index("G"), CB] = np.nan
    np.testing.assert_array_equal(chain.coordinates, expected)
    np.testing.assert_array_equal(chain.bfactor, np.arange(11, 31, dtype=np.float32))
    assert chain.facts.chain_author == "A"
    assert chain.facts.source == name
    assert chain.notes == ()


def test_the_format_is_seen_in_the_content_not_in_the_name() -> None:
    formats = all_formats(simple())
    assert {parse_structure(data, "1abc.dat")[0].sequence for data in formats.values()} == {SEQUENCE}


def test_every_protein_chain_is_read_with_its_author_name() -> None:
    structure = gemmi_structure(
        {"A": ("A" * 12, helix(12)), "b": ("L" * 15, helix(15) + 30), "1": ("K" * 9, helix(9) + 60)}
    )
    for chains in parse_all(structure):
        assert [(chain.key, len(chain.sequence)) for chain in chains] == [("1abc_A", 12), ("1abc_b", 15), ("1abc_1", 9)]


def test_chain_names_of_several_characters_are_kept_however_long() -> None:
    structure = gemmi_structure({"AA1": ("A" * 12, helix(12)), "Heavy-chain-of-antibody.1": ("L" * 12, helix(12) + 30)})
    mmcif = mmcif_bytes(structure)
    for data in (mmcif, bcif_bytes(mmcif)):
        chains = parse_structure(data, "x.cif")
        assert [chain.key for chain in chains] == ["1abc_AA1", "1abc_Heavy-chain-of-antibody-1"]
        assert chains[1].facts.chain_author == "Heavy-chain-of-antibody.1"


def test_only_the_first_model_is_read() -> None:
    structure = simple()
    second = structure[0].clone()
    second.num = 2
    for cra in second.all():
        cra.atom.pos += gemmi.Position(5, 5, 5)
    structure.add_model(second)
    for (chain,) in parse_all(structure):
        np.testing.assert_array_equal(chain.coordinates[:, CA], helix(20)[:, CA])


def test_the_last_alternative_location_of_each_atom_counts() -> None:
    structure = simple()
    _give_two_locations(structure[0][0][4], {"CA": helix(20)[4, CA], "CB": helix(20)[4, CB]})
    for (chain,) in parse_all(structure):
        moved = chain.coordinates[4] - helix(20)[4]
        np.testing.assert_allclose(moved[[CA, CB], 0], 1.0, atol=1e-9)  # sums of numbers with three decimals
        np.testing.assert_array_equal(moved[N], 0.0)
        assert "altloc" in chain.notes


def _give_two_locations(residue: gemmi.Residue, places: dict[str, np.ndarray]) -> None:
    """The named atoms as A at their place, with the higher occupancy, and as B one Angstrom further along x."""
    for i in reversed(range(len(residue))):
        if residue[i].name in places:
            del residue[i]
    for name, place in places.items():
        for altloc, shift, occupancy in (("A", 0.0, 0.7), ("B", 1.0, 0.3)):
            atom = gemmi.Atom()
            atom.name, atom.altloc, atom.occ, atom.element = name, altloc, occupancy, gemmi.Element("C")
            atom.pos = gemmi.Position(place[0] + shift, place[1], place[2])
            residue.add_atom(atom)


def test_of_two_residue_types_at_one_position_the_first_counts() -> None:
    structure = simple()
    chain = structure[0][0]
    for altloc, residue in (("A", chain[9]), ("B", chain[9].clone())):
        for atom in residue:
            atom.altloc = altloc
        if altloc == "B":
            residue.name = "SER"
            for atom in residue:
                atom.pos += gemmi.Position(0, 3, 0)
            chain.add_residue(residue, 10)
    for (parsed,) in parse_all(structure):
        assert parsed.sequence == SEQUENCE
        np.testing.assert_array_equal(parsed.coordinates[9], helix(20)[9])


def test_insertion_codes_make_residues_of_their_own() -> None:
    structure = simple()
    for residue, (number, code) in zip(structure[0][0], [(i // 2, " A"[i % 2]) for i in range(20)], strict=True):
        residue.seqid = gemmi.SeqId(number, code)
    for (chain,) in parse_all(structure):
        assert chain.sequence == SEQUENCE
        np.testing.assert_array_equal(chain.coordinates[:, CA], helix(20)[:, CA])


def test_modified_residues_read_as_their_parent_and_unknown_ones_as_x() -> None:
    structure = simple()
    for position, name in ((3, "MSE"), (7, "SEP"), (11, "SEC"), (15, "UNK"), (17, "QQQ")):
        structure[0][0][position].name = name
    _declare_what_is_there(structure)
    for (chain,) in parse_all(structure):
        assert [chain.sequence[i] for i in (3, 7, 11, 15, 17)] == ["M", "S", "C", "X", "X"]
        assert {"modified_residue:MSE", "modified_residue:SEC", "modified_residue:SEP"} <= set(chain.notes)
        assert set(chain.sequence) <= set(AMINO_ACIDS + "X")


def test_a_cap_without_alpha_carbon_is_no_residue() -> None:
    structure = simple()
    cap = structure[0][0][0]
    cap.name = "ACE"
    for i in reversed(range(len(cap))):
        if cap[i].name not in ("C", "O"):
            del cap[i]
    _declare_what_is_there(structure)
    for (chain,) in parse_all(structure):
        assert chain.sequence == SEQUENCE[1:]


def _declare_what_is_there(structure: gemmi.Structure) -> None:
    structure.entities[0].full_sequence = [residue.name for residue in structure[0][0]]


def test_missing_backbone_atoms_leave_a_residue_in_place() -> None:
    structure = simple()
    residue = structure[0][0][6]
    del residue[1]
    for (chain,) in parse_all(structure):
        assert chain.sequence == SEQUENCE
        assert np.isnan(chain.coordinates[6, CA]).all()
        assert np.isnan(chain.bfactor[6])
        assert chain.backbone_valid.tolist() == [i != 6 for i in range(20)]


def test_unobserved_residues_are_no_nodes_but_counted_and_a_gap_is_noted() -> None:
    structure = gemmi_structure({"A": (SEQUENCE, random_fold(20))})
    for i in reversed(range(8, 12)):
        del structure[0][0][i]
    for (chain,) in parse_all(structure):
        assert chain.sequence == SEQUENCE[:8] + SEQUENCE[12:]
        assert set(chain.notes) == {"chain_break:1", "unobserved:4"}


def test_water_and_ligands_are_left_out() -> None:
    structure = simple()
    water = gemmi.Residue()
    water.name, water.seqid, water.het_flag, water.entity_type = (
        "HOH",
        gemmi.SeqId(301, " "),
        "H",
        gemmi.EntityType.Water,
    )
    calcium = gemmi.Residue()
    calcium.name, calcium.seqid, calcium.het_flag = "CA", gemmi.SeqId(302, " "), "H"
    calcium.entity_type = gemmi.EntityType.NonPolymer
    for residue, name, element in ((water, "O", "O"), (calcium, "CA", "Ca")):
        atom = gemmi.Atom()
        atom.name, atom.element, atom.pos = name, gemmi.Element(element), gemmi.Position(1, 2, 3)
        residue.add_atom(atom)
        structure[0][0].add_residue(residue)
    structure.assign_subchains(force=True)
    structure.ensure_entities()
    for (chain,) in parse_all(structure):
        assert chain.sequence == SEQUENCE


def test_numbers_that_mean_missing_are_missing() -> None:
    mmcif = mmcif_bytes(simple()).decode().replace(" 0 0 0 1 11 ", " ? ? ? 1 11 ", 1)
    assert "? ? ? 1 11" in mmcif
    (chain,) = parse_structure(mmcif.encode(), "x.cif")
    assert np.isnan(chain.coordinates[0, N]).all()
    assert np.isfinite(chain.coordinates[0, CA]).all()


def test_old_pdb_files_with_their_name_beyond_column_72_are_read() -> None:
    lines = pdb_bytes(simple()).decode().splitlines()
    old = [f"{line[:72]}1ABC{i:4d}" if line.startswith("ATOM") else line for i, line in enumerate(lines)]
    assert parse_structure("\n".join(old).encode() + b"\n", "x.pdb")[0].sequence == SEQUENCE


def test_remarks_in_an_old_encoding_do_not_matter() -> None:
    data = b"REMARK   1 M\xfcller\n" + pdb_bytes(simple())
    assert parse_structure(data, "x.pdb")[0].sequence == SEQUENCE


def test_a_key_is_never_longer_than_shards_allow_and_has_no_dot() -> None:
    (chain,) = parse_structure(
        pdb_bytes(gemmi_structure({"A": ("A" * 9, helix(9))}, entry="")), f"v1.2_{'n' * 300}.pdb"
    )
    assert len(chain.key) == 100
    assert "." not in chain.key


def test_other_content_has_a_reason_of_its_own() -> None:
    dna = as_dna(gemmi_structure({"A": ("A" * 10, helix(10))}))
    assert reason_of(pdb_bytes(dna), "x.pdb") == "no_protein"
    assert reason_of(b"") == "empty_file"
    assert reason_of(b" \n\n") == "empty_file"
    assert reason_of(gzip.compress(b"")) == "empty_file"
    assert reason_of(b"<!DOCTYPE html><html><body>404 not found</body></html>") == "not_a_structure"
    assert reason_of(b'{"error": "no such entry"}') == "not_a_structure"
    assert reason_of(b"PK\x03\x04" + bytes(range(256)) * 8) == "not_a_structure"
    assert reason_of(np.random.default_rng(0).bytes(5000)) == "not_a_structure"
    assert reason_of(b"data_TYR\n#\n_chem_comp.id TYR\n#\n") == "no_coordinates"
    assert reason_of(b"HEADER    PROTEIN\nREMARK   1\nEND\n", "x.pdb") == "no_coordinates"


def test_damaged_content_has_a_reason_of_its_own() -> None:
    mmcif = mmcif_bytes(simple())
    compressed = bytearray(gzip.compress(mmcif))
    compressed[len(compressed) // 2] ^= 0xFF
    assert reason_of(bytes(compressed)) == "damaged_gzip"
    assert reason_of(gzip.compress(mmcif) + b"trailing") == "damaged_gzip"
    assert reason_of(mmcif.replace(b"ATOM 7 ", b"ATOM ")) == "parse_error"
    assert reason_of(mmcif.replace(b" CA . ALA", b" CA . 'ALA", 1)) == "parse_error"
    assert reason_of(bcif_bytes(mmcif) + b"more") == "parse_error"
    assert reason_of(bcif_bytes(mmcif).replace(b"StringArray", b"StringArrai")) == "parse_error"
    moved_away = mmcif.replace(b" 1.458 0 0 1 ", b" 1458000.5 0 0 1 ", 1)
    assert moved_away != mmcif
    assert reason_of(moved_away) == "parse_error"
