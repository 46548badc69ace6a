"""Which format a file's bytes are in, and its backbone atoms as arrays whatever that format is."""

import itertools
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import gemmi
import numpy as np

from data_pipeline.structure.chain import ATOM_NAMES, StructureError

MAX_FILE_BYTES = 2**31
"""Largest decompressed file that is read; a guard against compressed files made to fill the memory."""
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_FORMAT = 31
_OTHER_MAGIC = {
    _GZIP_MAGIC: "gzip within gzip",
    b"\xfd7zXZ\0": "xz",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"PK\x03\x04": "zip",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}
"""How content begins that is known, and not read: only gzip is undone, and text must extend ASCII."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_PDB_RECORDS = (
    b"HEADER OBSLTE TITLE SPLIT CAVEAT COMPND SOURCE KEYWDS EXPDTA NUMMDL MDLTYP AUTHOR REVDAT SPRSDE JRNL REMARK "
    b"DBREF DBREF1 DBREF2 SEQADV SEQRES MODRES HET HETNAM HELIX SHEET SSBOND LINK CISPEP CRYST1 ORIGX1 SCALE1 MTRIX1 "
    b"MODEL ATOM HETATM PARENT PFRMAT TARGET"
).split()
_BYTES_TO_RECOGNISE = 65536
_LINES_TO_RECOGNISE_PDB = 40
_OLD_PDB_COLUMNS = 72
_POLYMER = 1
_LOOP = b"\nloop_\n"
_UNREAD_LOOPS = (
    b"_atom_site_anisotrop.",
    b"_chem_comp_atom.",
    b"_chem_comp_bond.",
    b"_ma_qa_metric_local.",
    b"_pdbx_nonpoly_scheme.",
    b"_pdbx_poly_seq_scheme.",
    b"_pdbx_validate_",
)
"""Categories of names and numbers that nothing is read from, and that make up a fifth of the databases' files."""
_ASCII_ONLY = bytes(range(128)) + b"?" * 128


@dataclass(frozen=True)
class AtomTable:
    """Backbone atoms (and CB) of the polymers of a file's first model, in file order; every array has one row per atom.

    Names are eight bytes seen as one int64 (`name_code`), so that whole columns compare at once.
    """

    atom: np.ndarray
    """int64: index into ATOM_NAMES."""
    residue_name: np.ndarray
    """int64 name code, e.g. of ALA."""
    subchain: np.ndarray
    """int64 name code of the polymer instance (label_asym_id in mmCIF)."""
    chain: np.ndarray
    """int64 name code of the author's chain name."""
    number: np.ndarray
    """int32: the author's residue number."""
    insertion: np.ndarray
    """int8: insertion code."""
    altloc: np.ndarray
    """int8: alternative location, 0 for none."""
    position: np.ndarray
    """float64 [n, 3], Angstrom."""
    bfactor: np.ndarray
    """float32."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Short name -> name, where a name is longer than eight bytes."""
    subchain_is_chain: bool = False
    """The format knows one chain name only, the author's."""

    def text(self, code: np.ndarray | np.int64) -> str:
        """The name of a code."""
        short = np.int64(code).tobytes().rstrip(b"\0").decode("utf-8", errors="replace")
        return self.aliases.get(short, short)


def name_code(name: str) -> np.int64:
    """A name of at most eight bytes as one integer."""
    return np.frombuffer(name.encode().ljust(8, b"\0"), dtype=np.int64)[0]


ATOM_CODES = np.array([name_code(name) for name in ATOM_NAMES])


def decompressed(data: bytes) -> bytes:
    """The bytes themselves, or what they hold when they are gzipped; without a byte order mark.

    Raises:
        StructureError: the stream is cut (`truncated`), damaged (`damaged_gzip`) or unreasonably large (`too_large`).
    """
    content = _undone(data) if data.startswith(_GZIP_MAGIC) else data
    if len(content) > MAX_FILE_BYTES:
        raise StructureError("too_large", f"more than {MAX_FILE_BYTES} bytes")
    return content.removeprefix(_BYTE_ORDER_MARK)


def _undone(data: bytes) -> bytes:
    """What one or several gzip streams, one after the other, hold."""
    parts, size = [], 0
    while data.startswith(_GZIP_MAGIC):
        stream = zlib.decompressobj(_GZIP_FORMAT)
        try:
            # One byte more than allowed shows that there is more; a limit of 0 would mean none.
            parts.append(stream.decompress(data, MAX_FILE_BYTES - size + 1))
        except zlib.error as error:
            raise StructureError("damaged_gzip", str(error)) from None
        size += len(parts[-1])
        if size > MAX_FILE_BYTES:
            raise StructureError("too_large", f"more than {MAX_FILE_BYTES} bytes when decompressed")
        if not stream.eof:
            raise StructureError("truncated", "the gzip stream ends before its end mark")
        data = stream.unused_data.lstrip(b"\0")
    if data:
        raise StructureError("damaged_gzip", "bytes follow the end of the gzip stream")
    return b"".join(parts)


def recognise(data: bytes) -> str:
    """`mmcif`, `bcif` or `pdb`.

    Raises:
        StructureError: `empty_file`, or `not_a_structure` for anything else.
    """
    head = data[:4096].lstrip() or data.lstrip()[:4096]
    if not head:
        raise StructureError("empty_file", f"{len(data)} bytes, all blank" if data else "0 bytes")
    if head[0] >= 0x80 and b"dataBlocks" in head:
        return "bcif"
    for magic, kind in _OTHER_MAGIC.items():
        if data.startswith(magic):
            raise StructureError("not_a_structure", f"{kind}, which is not read")
    if b"\0" in head:
        raise StructureError("not_a_structure", "binary data of unknown format")
    # The last line of the head may be cut.
    content = _first_content(head.rpartition(b"\n")[0]) or _first_content(data[:_BYTES_TO_RECOGNISE])
    if content[:5].lower() == b"data_":
        return "mmcif"
    lines = data[:_BYTES_TO_RECOGNISE].splitlines()[:_LINES_TO_RECOGNISE_PDB]
    if any(line[:6].strip() in _PDB_RECORDS for line in lines):
        return "pdb"
    shown = content[:40].decode("utf-8", errors="replace")
    raise StructureError("not_a_structure", f"starts with {shown!r}")


def _first_content(data: bytes) -> bytes:
    """The first line that is neither blank nor a comment; empty where there is none."""
    lines = (line.lstrip() for line in data.splitlines())
    return next((line for line in lines if line and not line.startswith(b"#")), b"")


def readable_text(data: bytes) -> bytes:
    """Text that decodes as UTF-8: where it does not (remarks in older encodings), bytes beyond ASCII become `?`."""
    if data.isascii():
        return data
    try:
        data.decode()
    except UnicodeDecodeError:
        return data.translate(_ASCII_ONLY)
    return data


def without_unread_loops(data: bytes) -> bytes:
    """mmCIF text without large loops that nothing is read from, where a `#` line ends them; else as it is."""
    first, *loops = data.split(_LOOP)
    parts = [first]
    for loop in loops:
        end = loop.find(b"\n#") if loop.startswith(_UNREAD_LOOPS) else -1
        # A `#` might stand within a text field, which starts by `;`.
        if end >= 0 and loop.find(b"\n;", 0, end) < 0:
            parts.append(loop[end:])
        else:
            parts += [_LOOP, loop]
    return b"".join(parts)


def read_mmcif(data: bytes) -> tuple[gemmi.Structure, gemmi.cif.Block]:
    """The first data block that holds atoms (the first block where none does), and gemmi's structure of it."""
    document = gemmi.cif.read_string(readable_text(data))
    blocks = (block for block in document if block.find_loop("_atom_site.Cartn_x"))
    block = next(blocks, document[0])
    return gemmi.make_structure_from_block(block), block


def read_pdb(data: bytes) -> gemmi.Structure:
    """gemmi's structure of PDB text, its residues sorted into polymers, ligands and water."""
    text = readable_text(data)
    try:
        structure = gemmi.read_pdb_string(text)
    except RuntimeError:
        # Old files carry the entry's name and line number where the element and charge stand today.
        structure = gemmi.read_pdb_string(text, max_line_length=_OLD_PDB_COLUMNS)
    structure.setup_entities()
    return structure


def atoms_of(structure: gemmi.Structure) -> AtomTable:
    """Backbone atoms of the structure's first model; other models are removed from `structure`."""
    del structure[1:]
    flat, aliases = _flattened(structure)
    kinds = flat.entity_type
    if (kinds == 0).any():
        structure.setup_entities()
        flat, aliases = _flattened(structure)
        kinds = flat.entity_type
    rows = np.flatnonzero(kinds == _POLYMER)
    atom = atom_index(_codes(flat.atom_names, rows))
    rows, atom = rows[atom >= 0], atom[atom >= 0]
    return AtomTable(
        atom=atom,
        residue_name=_codes(flat.residue_names, rows),
        subchain=_codes(flat.subchains, rows),
        chain=_codes(flat.chain_ids, rows),
        number=flat.resnums[rows],
        insertion=flat.icodes[rows],
        altloc=flat.altlocs[rows],
        position=flat.pos[rows],
        bfactor=flat.b_iso[rows],
        aliases=aliases,
        subchain_is_chain=structure.input_format == gemmi.CoorFormat.Pdb,
    )


def atom_index(codes: np.ndarray) -> np.ndarray:
    """int64 [n]: index into ATOM_NAMES of each name code, -1 for any other atom."""
    index = np.full(len(codes), -1)
    for i, code in enumerate(ATOM_CODES):
        index[codes == code] = i
    return index


def shortened(names: Iterable[str]) -> dict[str, str]:
    """Name -> alias of at most eight bytes, for every name that is longer."""
    long = [name for name in dict.fromkeys(names) if len(name.encode()) > 8]
    return {name: f"\x01{number}" for number, name in enumerate(long)}


def _flattened(structure: gemmi.Structure) -> tuple[gemmi.FlatStructure, dict[str, str]]:
    """The structure's atoms as columns, and the aliases used where gemmi's eight-byte names do not suffice."""
    try:
        return gemmi.FlatStructure(structure), {}
    except RuntimeError:
        aliases = _shorten_names(structure)
        return gemmi.FlatStructure(structure), {alias: name for name, alias in aliases.items()}


def _shorten_names(structure: gemmi.Structure) -> dict[str, str]:
    """Replaces long names of chains, subchains, residues and entities in the structure by aliases."""
    chains = [chain for model in structure for chain in model]
    residues = [residue for chain in chains for residue in chain]
    of_residues = (name for residue in residues for name in (residue.name, residue.subchain, residue.entity_id))
    aliases = shortened(itertools.chain((chain.name for chain in chains), of_residues))
    for chain in chains:
        chain.name = aliases.get(chain.name, chain.name)
    for residue in residues:
        residue.subchain = aliases.get(residue.subchain, residue.subchain)
        residue.name = aliases.get(residue.name, residue.name)
        residue.entity_id = aliases.get(residue.entity_id, residue.entity_id)
    return aliases


def _codes(names: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """int64 name codes of some rows of int8 [n, 8] zero-padded names."""
    return names[rows].view(np.int64)[:, 0]
