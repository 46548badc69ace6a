"""Is the file whole, and are its numbers numbers? gemmi silently returns the readable part of what it is given.

What a file's own records reveal is found:

* gzip and BinaryCIF streams say their length.
* mmCIF: loops must be full. The databases close every category by `#`, so a file that does so and ends without was
  cut. In a file without these marks every polymer instance must have atoms, every residue that
  `_pdbx_poly_seq_scheme` calls observed must be there, and a predicted model must have its whole sequence; beyond
  that it is noted as `unterminated_file`.
* PDB: database files end with END, models with ENDMDL, lines at their columns; else `unterminated_file`. Fewer atoms
  than MASTER counts are noted as `missing_atoms:<n>`.

What nothing reveals: a mmCIF file cut right after the `#` of a category that follows the atoms (later facts may be
missing, chains are whole); a PDB file cut after the first model's ENDMDL or within its CONECT records (likewise); the
loss of optional columns behind the last B-factor; and a value changed into another valid one, which only checksums show
(gzip has one, so compressed files are safe from it).
"""

import itertools
import math
import re

import gemmi
import numpy as np

from data_pipeline.structure.chain import StructureError

_SEPARATOR = re.compile(rb"\n#[ \r]*\n")
_MIN_SEPARATORS = 2
"""`#` lines from which on a mmCIF file is taken to put one after every category."""
_COORDINATES_END = 54
"""Column at which the coordinates of a PDB atom record end."""
_BFACTOR_END = 66
"""Column at which the B-factor of a PDB atom record ends."""
_ATOM_RECORDS = (b"ATOM", b"HETATM")
_SHORT_RECORDS = (b"END", b"TER")
"""Records that may be shorter than the six columns of a record's name."""
_CLOSING_RECORDS = (b"ENDMDL", b"MASTER", b"CONECT")
"""Records that stand behind all atoms of the first model."""
_MASTER_ATOMS = slice(50, 55)
_FIRST_COORDINATE = 30
_COORDINATE_WIDTH = 8
_DECIMAL_POINTS = np.array([34, 42, 50])
"""Columns of a PDB atom record at which its coordinates have their decimal points."""
_NUMERIC = np.isin(np.arange(256), np.frombuffer(b"0123456789+-. ", dtype=np.uint8))
_RECORD_NAMES = np.frombuffer(b"ATOMHETA", dtype=np.uint32)
_ABSENT = ("?", ".")
_TAIL_BYTES = 4096
UNTERMINATED = "unterminated_file"
"""Note of a file that has no mark at its end, so that nothing shows that it is whole."""


def mmcif_is_cut(data: bytes) -> bool:
    """The text separates its categories by `#` lines but does not close the last one."""
    separators = itertools.islice(_SEPARATOR.finditer(data), _MIN_SEPARATORS)
    return sum(1 for _ in separators) == _MIN_SEPARATORS and not _closes_category(data)


def mmcif_notes(data: bytes) -> tuple[str, ...]:
    """UNTERMINATED for mmCIF text that does not close its last category."""
    return () if _closes_category(data) else (UNTERMINATED,)


def _closes_category(data: bytes) -> bool:
    return data[-_TAIL_BYTES:].rstrip().rsplit(b"\n", 1)[-1].startswith(b"#")


def check_observed(block: gemmi.cif.Block) -> None:
    """Every residue that `_pdbx_poly_seq_scheme` calls observed has an atom.

    Raises:
        StructureError: `truncated`, with the number of residues without.
    """
    scheme = block.find("_pdbx_poly_seq_scheme.", ["asym_id", "seq_id", "auth_mon_id"])
    observed = {(row[0], row[1]) for row in scheme if row[2] not in _ABSENT}
    if not observed:
        return
    present = {(row[0], row[1]) for row in block.find("_atom_site.", ["label_asym_id", "label_seq_id"])}
    absent = len(observed - present)
    if absent:
        raise StructureError("truncated", f"{absent} of {len(observed)} observed residues have no atoms")


def check_mmcif_numbers(block: gemmi.cif.Block) -> None:
    """Every coordinate is a number or says that it is absent.

    Raises:
        StructureError: `parse_error`, with the first other word.
    """
    for axis in "xyz":
        for word in block.find_values(f"_atom_site.Cartn_{axis}"):
            if word not in _ABSENT and not math.isfinite(gemmi.cif.as_number(word)):
                raise StructureError("parse_error", f"the coordinate {word[:40]!r} is no number")


def check_pdb_numbers(data: bytes) -> None:
    """The coordinates of every atom are numbers at their columns: gemmi reads what is none as 0, or in part.

    Raises:
        StructureError: `parse_error`, with the first such line.
    """
    text = np.frombuffer(data, dtype=np.uint8)
    starts = np.concatenate([[0], np.flatnonzero(text == ord("\n")) + 1])
    starts = starts[starts + _COORDINATES_END <= len(text)]
    names = text[starts[:, None] + np.arange(4)].view(np.uint32)[:, 0]
    starts = starts[np.isin(names, _RECORD_NAMES)]
    if not len(starts):
        return
    wrong = ~_NUMERIC[text[starts[:, None] + np.arange(_FIRST_COORDINATE, _COORDINATES_END)]].all(axis=1)
    has_points = (text[starts[:, None] + _DECIMAL_POINTS] == ord(".")).all(axis=1)
    # Programs that do not keep to the columns do so from the first atom on.
    for row in np.flatnonzero(has_points[0] & ~has_points & ~wrong):
        wrong[row] = not _is_at_columns(data[starts[row] + _FIRST_COORDINATE : starts[row] + _COORDINATES_END])
    if wrong.any():
        start = starts[np.flatnonzero(wrong)[0]]
        line = data[start : start + _COORDINATES_END].partition(b"\n")[0].decode("utf-8", errors="replace")
        raise StructureError("parse_error", f"the coordinates of {line!r} are no numbers at their columns")


def _is_at_columns(fields: bytes) -> bool:
    """Three numbers of eight columns each with three decimals; with two where they fill their columns."""
    numbers = [fields[i : i + _COORDINATE_WIDTH] for i in range(0, len(fields), _COORDINATE_WIDTH)]
    return all(b.find(b".") == 4 or (b.find(b".") == 5 and not b.startswith(b" ")) for b in numbers)


def pdb_notes(data: bytes) -> tuple[str, ...]:
    """`missing_atoms:<n>` where MASTER counts more atoms than the first model has.

    MASTER leaves out second alternative locations and further models, so that files may hold more atoms than it says.
    """
    tail = data[-_TAIL_BYTES:]
    start = tail.rfind(b"\nMASTER") + 1
    counted = tail[start:].partition(b"\n")[0][_MASTER_ATOMS].strip() if start else b""
    if not counted.isdigit():
        return ()
    end = data.find(b"\nENDMDL")
    end = end if end >= 0 else len(data)
    missing = int(counted) - sum(_count(b"\n", data[:end], record) for record in (b"ATOM  ", b"HETATM"))
    return (f"missing_atoms:{missing}",) if missing > 0 else ()


def check_pdb_ending(data: bytes) -> tuple[str, ...]:
    """UNTERMINATED for PDB text without END or any other record that stands behind the first model's atoms.

    Raises:
        StructureError: `truncated`, when the text must have gone on: its last line is cut, a model is not closed, or
            it has the database's header but no END.
    """
    tail = data[-_TAIL_BYTES:].rstrip().splitlines()
    last = tail[-1] if tail else b""
    record = last[:6].strip()
    if record == b"END":
        return ()
    if not data.endswith(b"\n") and _is_cut(tail):
        raise StructureError("truncated", f"the last line is cut: {last[:40].decode('utf-8', errors='replace')!r}")
    if last.startswith(_ATOM_RECORDS) and len(last) < _COORDINATES_END:
        raise StructureError("truncated", "the last atom has no complete coordinates")
    lines = (b"\n", data)
    if record != b"ENDMDL" and _count(*lines, b"MODEL ") > _count(*lines, b"ENDMDL"):
        raise StructureError("truncated", "the last model is not closed by ENDMDL")
    if data.startswith(b"HEADER") or b"\nSEQRES" in data:
        raise StructureError("truncated", "there is a database header but no END")
    return () if record in _CLOSING_RECORDS else (UNTERMINATED,)


def check_instances_present(structure: gemmi.Structure, subchains: set[str]) -> None:
    """Every declared protein instance has atoms.

    Raises:
        StructureError: `truncated`, naming the instances without any.
    """
    absent = [
        name
        for entity in structure.entities
        if entity.entity_type == gemmi.EntityType.Polymer
        and entity.polymer_type in (gemmi.PolymerType.PeptideL, gemmi.PolymerType.PeptideD)
        for name in entity.subchains
        if name not in subchains
    ]
    if absent:
        raise StructureError("truncated", f"declared chains without atoms: {', '.join(absent[:5])}")


def check_coordinates(position: np.ndarray, limit: float = 1e5) -> None:
    """Positions (Angstrom) fit the stored integers; what is farther out is damage.

    Raises:
        StructureError: `parse_error`.
    """
    if len(position) and not (np.abs(position) <= limit).all() and np.nanmax(np.abs(position), initial=0.0) > limit:
        raise StructureError("parse_error", f"a coordinate exceeds {limit:.0f} Angstrom")


def _is_cut(tail: list[bytes]) -> bool:
    """The last line, not ended by a line feed, lacks columns that the like line before it has, or is no whole name.

    Columns after the B-factor do not count: they are optional, and blanks at the end of a file are often stripped.
    """
    last = tail[-1]
    if len(last) < 6:
        return last.strip() not in _SHORT_RECORDS
    previous = tail[-2].rstrip() if len(tail) > 1 else b""
    return last.startswith(_ATOM_RECORDS) and len(last) < min(_BFACTOR_END, len(previous))


def _count(separator: bytes, data: bytes, record: bytes) -> int:
    return data.count(separator + record) + data.startswith(record)
