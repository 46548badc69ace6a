"""Every kind of bad structure file that is known to occur has its reason; what only looks bad is read."""

import bz2
import gzip
import json
import lzma
import re
from collections.abc import Callable

import gemmi
import msgpack
import numpy as np
import pytest

from configs.build import FilterConfig
from data_pipeline.quality import reason_to_drop
from data_pipeline.structure import formats
from data_pipeline.structure.chain import StructureError
from data_pipeline.structure.integrity import UNTERMINATED
from data_pipeline.structure.parse import REASONS, parse_structure
from tests.unit.data_pipeline.structure.models import (
    as_dna,
    bcif_bytes,
    gemmi_structure,
    mmcif_bytes,
    pdb_bytes,
    random_fold,
)

LENGTH = 40
SEQUENCE = "ACDEFGHIKLMNPQRSTVWY" * 2
ZSTANDARD = b"\x28\xb5\x2f\xfd" + bytes(range(64))
ERROR_PAGE = b"<!DOCTYPE html>\n<html><head><title>503</title></head><body>try again later</body></html>\n"
OF_THE_BUILD = {"unreadable", "not_found", "superseded", "crashed", "timed_out"}
OF_THE_BUILD |= {"duplicate_sequence", "duplicate_key", "leakage"}
"""Reasons that no file's content gives: sources, isolation and the build have tests of their own for them."""


def fold(length: int = LENGTH, second_chain: bool = True) -> gemmi.Structure:
    chains = {"A": ((SEQUENCE * 200)[:length], random_fold(length))}
    if second_chain:
        chains["B"] = (SEQUENCE, random_fold(LENGTH) + 80.0)
    return gemmi_structure(chains)


STRUCTURE = fold()
PDB, CIF = pdb_bytes(STRUCTURE), mmcif_bytes(STRUCTURE)
BCIF = bcif_bytes(CIF)
ATOMS_START = CIF.index(b"_atom_site.group_PDB")


def replaced(data: bytes, old: bytes, new: bytes, count: int = 1) -> bytes:
    assert old in data, old
    return data.replace(old, new, count)


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0x55]) + data[position + 1 :]


def cut_at_line(data: bytes, marker: bytes, lines: int = 0) -> bytes:
    """The text before the line that holds `marker`, and so many lines more."""
    rows = data.splitlines(keepends=True)
    return b"".join(rows[: next(i for i, row in enumerate(rows) if marker in row) + lines])


def lines_of(data: bytes, *records: bytes) -> bytes:
    return b"".join(line for line in data.splitlines(keepends=True) if line.startswith(records))


def renamed(name: str, keep_atoms: Callable[[str], bool] = lambda atom: True, length: int = LENGTH) -> bytes:
    """The one chain with every residue of another type, and only some of its atoms, as PDB text."""
    structure = fold(length, second_chain=False)
    for residue in structure[0][0]:
        residue.name = name or residue.name
        for i in reversed(range(len(residue))):
            if not keep_atoms(residue[i].name):
                del residue[i]
    structure.entities.clear()
    structure.setup_entities()
    return pdb_bytes(structure)


def dna() -> bytes:
    return mmcif_bytes(as_dna(fold(second_chain=False)))


def water() -> bytes:
    line = "HETATM{:5d}  O   HOH A{:4d}    {:8.3f}{:8.3f}{:8.3f}  1.00 20.00           O\n"
    return "".join(line.format(i, i, 3.0 * i, 0, 0) for i in range(1, 30)).encode() + b"END\n"


def edited_bcif(edit: Callable[[dict], None]) -> bytes:
    tree = msgpack.unpackb(BCIF)
    edit({category["name"]: category for category in tree["dataBlocks"][0]["categories"]})
    return msgpack.packb(tree)


def without_category(name: str) -> bytes:
    tree = msgpack.unpackb(BCIF)
    block = tree["dataBlocks"][0]
    block["categories"] = [category for category in block["categories"] if category["name"] != name]
    return msgpack.packb(tree)


def column_of(category: dict, name: str) -> dict:
    return next(column for column in category["columns"] if column["name"] == name)


def without_column(category: dict, name: str) -> None:
    category["columns"] = [column for column in category["columns"] if column["name"] != name]


def two_chains_of_one_name() -> bytes:
    """Two molecules numbered alike without chain names: nobody can tell their atoms apart."""
    atoms = lines_of(PDB, b"ATOM").decode().splitlines(keepends=True)
    return "".join(line[:21] + " " + line[22:] for line in atoms).encode() + b"END\n"


def shifted_line() -> bytes:
    """One character lost in the middle of a PDB line moves the coordinates out of their columns."""
    line = next(line for line in PDB.splitlines(keepends=True) if b" CA  PHE" in line)
    return replaced(PDB, line, line[:28] + line[29:])


def with_master(data: bytes, num_atoms: int) -> bytes:
    master = f"MASTER        0    0    0    0    0    0    0    0{num_atoms:5d}    2    0    8          \n"
    return replaced(lines_of(data, b"ATOM", b"TER", b"END"), b"END", master.encode() + b"END")


BAD_FILES: dict[str, tuple[str, bytes]] = {
    "nothing": ("empty_file", b""),
    "blanks": ("empty_file", b" \r\n\t\n" * 2000),
    "gzip of nothing": ("empty_file", gzip.compress(b"")),
    "HTML error page": ("not_a_structure", ERROR_PAGE),
    "gzipped HTML error page": ("not_a_structure", gzip.compress(ERROR_PAGE)),
    "JSON error": ("not_a_structure", json.dumps({"error": "no such entry", "status": 404}).encode()),
    "XML error": ("not_a_structure", b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>'),
    "random bytes": ("not_a_structure", np.random.default_rng(0).bytes(5000)),
    "zeros, as left by a full disk": ("not_a_structure", bytes(5000)),
    "FASTA": ("not_a_structure", b">1ABC:A\n" + SEQUENCE.encode() + b"\n"),
    "xz": ("not_a_structure", lzma.compress(CIF)),
    "bzip2": ("not_a_structure", bz2.compress(CIF)),
    "Zstandard": ("not_a_structure", ZSTANDARD),
    "zip": ("not_a_structure", b"PK\x03\x04" + bytes(range(1, 200))),
    "gzip within gzip": ("not_a_structure", gzip.compress(gzip.compress(CIF))),
    "UTF-16 with a mark": ("not_a_structure", CIF.decode().encode("utf-16")),
    "UTF-16 without a mark": ("not_a_structure", PDB.decode().encode("utf-16-le")),
    "MessagePack of something else": ("not_a_structure", msgpack.packb({"data": list(range(300))})),
    "gzip cut": ("truncated", gzip.compress(CIF)[:-200]),
    "gzip without its checksum": ("truncated", gzip.compress(CIF)[:-8]),
    "gzip with a changed byte": ("damaged_gzip", flipped(gzip.compress(CIF), 3000)),
    "gzip with a wrong checksum": ("damaged_gzip", flipped(gzip.compress(CIF), len(gzip.compress(CIF)) - 7)),
    "gzip with bytes behind it": ("damaged_gzip", gzip.compress(CIF) + b"trailing"),
    "gzip header alone": ("truncated", gzip.compress(CIF)[:10]),
    "mmCIF cut in a row": ("truncated", CIF[: ATOMS_START + 4321]),
    "mmCIF cut between rows": ("truncated", cut_at_line(CIF, b" CA . TRP")),
    "mmCIF cut before its atoms": ("truncated", cut_at_line(CIF, b"_atom_site.group_PDB")),
    "mmCIF cut in a text field": ("truncated", CIF[:ATOMS_START] + b"_struct.title\n;A title that\ngoes on"),
    "mmCIF cut in a quoted value": ("truncated", CIF[:ATOMS_START] + b"_struct.title 'A title that"),
    "mmCIF with a missing value": ("parse_error", replaced(CIF, b"ATOM 7 ", b"ATOM ")),
    "mmCIF with a value too many": ("parse_error", replaced(CIF, b"ATOM 7 ", b"ATOM 7 7 ")),
    "mmCIF with an open quote": ("parse_error", replaced(CIF, b" CA . ALA", b" CA . 'ALA")),
    "mmCIF with a tag twice": ("parse_error", replaced(CIF, b"_entry.id", b"_entry.id 1XYZ\n_entry.id")),
    "mmCIF without atoms": ("no_coordinates", b"data_TYR\n#\n_chem_comp.id TYR\n_chem_comp.name TYROSINE\n#\n"),
    "mmCIF with a word for a coordinate": ("parse_error", re.sub(rb" -?\d+\.\d+ ", b" 1.2.3 ", CIF, count=1)),
    "mmCIF with NaN for a coordinate": ("parse_error", re.sub(rb" -?\d+\.\d+ ", b" nan ", CIF, count=1)),
    "mmCIF with infinity for a coordinate": ("parse_error", re.sub(rb" -?\d+\.\d+ ", b" inf ", CIF, count=1)),
    "mmCIF with a huge coordinate": ("parse_error", re.sub(rb" -?\d+\.\d+ ", b" 1e300 ", CIF, count=1)),
    "mmCIF without coordinate columns": ("no_coordinates", CIF.replace(b"_atom_site.Cartn_", b"_atom_site.fract_")),
    "mmCIF of DNA": ("no_protein", dna()),
    "PDB cut in a line": ("truncated", PDB[: len(PDB) // 2 + 17]),
    "PDB cut between lines": ("truncated", cut_at_line(PDB, b" CA  TRP A")),
    "PDB cut after a chain, SEQRES listing more": ("truncated", cut_at_line(PDB, b" N   ALA B")),
    "PDB without its END": ("truncated", replaced(PDB, b"END", b"")),
    "PDB cut in a model": ("truncated", b"MODEL        1\n" + lines_of(PDB, b"ATOM")),
    "PDB cut in the second model": (
        "truncated",
        b"MODEL        1\n" + lines_of(PDB, b"ATOM") + b"ENDMDL\nMODEL        2\n" + lines_of(PDB, b"ATOM")[:2430],
    ),
    "PDB header alone": ("no_coordinates", b"HEADER    HYDROLASE\nREMARK   2\nEND\n"),
    "PDB of water": ("no_protein", water()),
    "PDB with a word for a coordinate": ("parse_error", replaced(PDB, b"   1.458 ", b"   nulls ")),
    "PDB with a character lost": ("parse_error", shifted_line()),
    "PDB with blank coordinates": ("parse_error", replaced(PDB, b"   1.458   0.000   0.000", b" " * 24)),
    "PDB of two chains without names": ("parse_error", two_chains_of_one_name()),
    "BinaryCIF cut": ("truncated", BCIF[: len(BCIF) // 2]),
    "BinaryCIF with bytes behind it": ("parse_error", BCIF + b"more"),
    "BinaryCIF of no MessagePack": ("parse_error", flipped(BCIF, 0)[:1] + b"\xa6dataBlocks\xc1" + BCIF[20:]),
    "BinaryCIF without atoms": ("no_coordinates", without_category("_atom_site")),
    "BinaryCIF without a needed column": (
        "parse_error",
        edited_bcif(lambda categories: without_column(categories["_atom_site"], "Cartn_y")),
    ),
    "BinaryCIF with an unknown encoding": ("parse_error", replaced(BCIF, b"StringArray", b"StringArrai", -1)),
    "BinaryCIF with fewer rows than it claims": (
        "parse_error",
        edited_bcif(lambda categories: categories["_atom_site"].update(rowCount=5000)),
    ),
    "BinaryCIF that claims a billion rows": (
        "parse_error",
        edited_bcif(lambda categories: categories["_atom_site"].update(rowCount=10**9)),
    ),
    "BinaryCIF with a run of a billion values": (
        "parse_error",
        edited_bcif(
            lambda categories: column_of(categories["_atom_site"], "auth_seq_id").update(
                data={
                    "data": np.array([1, 10**9], dtype="<i4").tobytes(),
                    "encoding": [{"kind": "RunLength", "srcType": 3}, {"kind": "ByteArray", "type": 3}],
                }
            )
        ),
    ),
}
"""Kind -> reason and content."""

BAD_CHAINS: dict[str, tuple[str, bytes]] = {
    "one residue": ("too_short", renamed("", length=1)),
    "unknown residues only": ("unknown_residues", renamed("UNK")),
    "CA only": ("missing_backbone", renamed("", lambda atom: atom == "CA")),
    "side chains and CA only": ("missing_backbone", renamed("", lambda atom: atom in ("CA", "CB"))),
    "beyond any cap": ("too_long", renamed("", length=4500)),
}
"""Files that can be read, whose only chain the filters drop."""

LOOKS_BAD: dict[str, bytes] = {
    "carriage returns in mmCIF": CIF.replace(b"\n", b"\r\n"),
    "carriage returns in PDB": PDB.replace(b"\n", b"\r\n"),
    "UTF-8 with a mark": b"\xef\xbb\xbf" + CIF,
    "an older encoding in remarks": b"REMARK   1 M\xfcller\n" + PDB,
    "gzip in parts": gzip.compress(CIF[:5000]) + gzip.compress(CIF[5000:]),
    "gzip with padding": gzip.compress(CIF) + bytes(512),
    "pages of blanks before the first word": b"\n" * 9000 + CIF,
    "comments before the first word": b"# written by a program\n" * 2000 + CIF,
    "upper-case keywords": CIF.replace(b"data_1ABC", b"DATA_1ABC").replace(b"loop_", b"LOOP_"),
    "blanks at the end": PDB + b"\n\n   \n",
    "zero occupancy": lines_of(PDB, b"ATOM", b"TER", b"END").replace(b"  1.00 ", b"  0.00 "),
    "atoms without occupancy and B-factor": b"".join(
        line[:54] + b"\n" if line.startswith(b"ATOM") else line for line in PDB.splitlines(keepends=True)
    ),
    "atoms written twice": b"".join(
        line * 2 if line.startswith(b"ATOM") else line for line in PDB.splitlines(keepends=True)
    ),
    "fewer atoms counted than there are": with_master(PDB, 100),
}
"""Content of the same two chains."""


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_rejected_with_its_reason(kind: str) -> None:
    reason, data = BAD_FILES[kind]
    with pytest.raises(StructureError) as caught:
        parse_structure(data, "1abc.cif")
    assert (caught.value.reason, len(caught.value.detail) > 0) == (reason, True), caught.value
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", BAD_CHAINS)
def test_a_bad_chain_is_read_and_dropped_with_its_reason(kind: str) -> None:
    reason, data = BAD_CHAINS[kind]
    (chain,) = parse_structure(data, "1abc.pdb")
    dropped = reason_to_drop(chain, FilterConfig())
    assert dropped is not None
    assert dropped[0] == reason


@pytest.mark.parametrize("kind", LOOKS_BAD)
def test_what_only_looks_bad_is_read(kind: str) -> None:
    chains = parse_structure(LOOKS_BAD[kind], "1abc.cif")
    assert [chain.sequence for chain in chains] == [SEQUENCE, SEQUENCE]
    for chain, expected in zip(chains, parse_structure(CIF, "1abc.cif"), strict=True):
        np.testing.assert_array_equal(chain.coordinates, expected.coordinates)
        assert set(chain.notes) <= {UNTERMINATED}


@pytest.mark.parametrize("name", ["1abc.pdb", "1abc.cif", "1abc.bcif", "1abc.pdb.gz", "1abc.txt", "1abc"])
def test_a_wrong_suffix_does_not_matter(name: str) -> None:
    for data in (PDB, CIF, BCIF, gzip.compress(BCIF)):
        assert [chain.sequence for chain in parse_structure(data, name)] == [SEQUENCE, SEQUENCE]


@pytest.mark.parametrize("streams", [1, 3])
def test_a_file_made_to_fill_the_memory_is_too_large(streams: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MAX_FILE_BYTES", 10**6)
    bomb = gzip.compress(b"data_x\n" + b"#" * (10**6 // streams)) * streams
    for data in (bomb, gzip.decompress(bomb)):
        with pytest.raises(StructureError) as caught:
            parse_structure(data, "1abc.cif")
        assert caught.value.reason == "too_large"
    monkeypatch.setattr(formats, "MAX_FILE_BYTES", len(CIF))
    assert len(parse_structure(gzip.compress(CIF), "1abc.cif")) == 2


def test_at_least_25_kinds_of_bad_file_and_every_reason_are_covered() -> None:
    assert len(BAD_FILES) + len(BAD_CHAINS) >= 60
    covered = {reason for reason, _ in (*BAD_FILES.values(), *BAD_CHAINS.values())} | {"too_large"}
    assert covered.isdisjoint(OF_THE_BUILD)
    assert covered | OF_THE_BUILD == set(REASONS)


def test_fewer_atoms_than_the_file_counts_are_noted() -> None:
    num_atoms = PDB.count(b"\nATOM")
    for lost in (0, 7):
        rows = with_master(PDB, num_atoms).splitlines(keepends=True)
        chains = parse_structure(b"".join(rows[:20] + rows[20 + lost :]), "1abc.pdb")
        assert all((f"missing_atoms:{lost}" in chain.notes) == (lost > 0) for chain in chains)
