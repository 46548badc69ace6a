"""Does a file end where it should? gemmi silently returns the readable part of a truncated one.

What a file's own records reveal is found: gzip and BinaryCIF streams say their length; mmCIF loops must be full, the
databases' mmCIF files end with `#`, and every polymer instance they declare has atoms; PDB files of the database end
with END, their models with ENDMDL. A file without any of these marks that was cut at the end of a line cannot be told
from a short one; `incomplete` notes say so.
"""

import itertools
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
_END_RECORDS = (b"END", b"ENDMDL", b"TER", b"MASTER", b"CONECT")
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


def check_pdb_ending(data: bytes) -> tuple[str, ...]:
    """UNTERMINATED for PDB text without END, TER or any record after its last atom.

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
    return () if record in _END_RECORDS else (UNTERMINATED,)


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
    if len(position) and np.nanmax(np.abs(position), initial=0.0) > limit:
        raise StructureError("parse_error", f"a coordinate exceeds {limit:.0f} Angstrom")


def _is_cut(tail: list[bytes]) -> bool:
    """The last line, not ended by a line feed, lacks columns that the like line before it has, or is no whole name.

    Columns after the B-factor do not count: they are optional, and blanks at the end of a file are often stripped.
    """
    last = tail[-1]
    if len(last) < 6:
        return last.strip() not in _END_RECORDS
    previous = tail[-2].rstrip() if len(tail) > 1 else b""
    return last.startswith(_ATOM_RECORDS) and len(last) < min(_BFACTOR_END, len(previous))


def _count(separator: bytes, data: bytes, record: bytes) -> int:
    return data.count(separator + record) + data.startswith(record)
