import gzip

import gemmi
import numpy as np
import pytest

from data_pipeline.structure.chain import ATOM_NAMES, StructureError
from data_pipeline.structure.formats import (
    ATOM_CODES,
    atom_index,
    decompressed,
    name_code,
    recognise,
    without_unread_loops,
)
from data_pipeline.structure.parse import parse_structure
from tests.unit.data_pipeline.structure.models import gemmi_structure, mmcif_bytes, random_fold

ANISOTROP = (
    b"loop_\n_atom_site_anisotrop.id\n_atom_site_anisotrop.U[1][1]\n_atom_site_anisotrop.U[2][2]\n"
    + b"".join(b"%d 0.1 0.2\n" % i for i in range(1, 60))
    + b"#\n"
)
BONDS = b"loop_\n_chem_comp_bond.comp_id\n_chem_comp_bond.atom_id_1\nALA CA\nALA N\n#\n"
SITES = b"loop_\n_struct_site.id\n_struct_site.details\nAC1 'for a ligand'\n#\n"


@pytest.fixture(scope="module")
def mmcif() -> bytes:
    return mmcif_bytes(gemmi_structure({"A": ("ACDEFGHIKL", random_fold(10))}))


def test_large_loops_that_nothing_is_read_from_are_left_out(mmcif: bytes) -> None:
    data = mmcif + ANISOTROP + SITES + BONDS
    left = without_unread_loops(data)
    assert b"anisotrop" not in left
    assert b"chem_comp_bond" not in left
    assert gemmi.cif.read_string(left)[0].find_value("_struct_site.id") is not None
    (one,), (other,) = parse_structure(data, "x.cif"), parse_structure(mmcif, "x.cif")
    assert one.sequence == other.sequence
    np.testing.assert_array_equal(one.coordinates, other.coordinates)


@pytest.mark.parametrize(
    "extra",
    [
        SITES,
        ANISOTROP.replace(b"#\n", b""),
        ANISOTROP.replace(b"\n", b"\r\n"),
        b"loop_\n_chem_comp_atom.comp_id\n_chem_comp_atom.details\nALA\n;starts here\n#\n;\n#\n",
    ],
)
def test_what_might_be_something_else_stays(extra: bytes, mmcif: bytes) -> None:
    assert without_unread_loops(mmcif + extra) == mmcif + extra


def test_a_loop_named_within_a_text_field_leaves_the_text_readable(mmcif: bytes) -> None:
    data = mmcif + b"_struct.title\n;as in\n" + BONDS + b"of another file\n;\n#\n"
    assert gemmi.cif.read_string(without_unread_loops(data))[0].find_value("_struct.title") is not None
    assert parse_structure(data, "x.cif")[0].sequence == "ACDEFGHIKL"


def test_atoms_are_found_by_their_names_codes() -> None:
    names = [*ATOM_NAMES, "CG", "OXT", "", "CA"]
    assert atom_index(np.array([name_code(name) for name in names])).tolist() == [0, 1, 2, 3, 4, -1, -1, -1, 1]
    assert len(set(ATOM_CODES.tolist())) == len(ATOM_NAMES)


def test_the_byte_order_mark_is_no_content() -> None:
    for data in (b"\xef\xbb\xbfdata_x\n", gzip.compress(b"\xef\xbb\xbfdata_x\n")):
        assert decompressed(data) == b"data_x\n"
        assert recognise(decompressed(data)) == "mmcif"


@pytest.mark.parametrize("blanks", [0, 4090, 4094, 4096, 9000])
def test_the_first_word_counts_wherever_it_stands(blanks: int) -> None:
    assert recognise(b" " * blanks + b"\ndata_x\n_entry.id x\n") == "mmcif"
    assert recognise(b"#" * blanks + b"\ndata_x\n_entry.id x\n") == "mmcif"


def test_content_of_a_known_other_kind_is_named() -> None:
    with pytest.raises(StructureError, match="not_a_structure: xz"):
        recognise(b"\xfd7zXZ\x00" + bytes(range(40)))
