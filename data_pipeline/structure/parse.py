"""Structure files to chains: PDB, mmCIF and BinaryCIF, gzipped or not.

Rules, the same for every format:

* Only the first model is read. One chain per polypeptide instance (label_asym_id in mmCIF).
* Residues are those with coordinates. What a sequence record lists beyond them is not a node; `unobserved:<n>` notes
  how many. Caps such as ACE, which are no amino acids and lack N or CA, are left out.
* Residues lacking backbone atoms stay, with NaN for what they lack. Residues are told apart by the author's number and
  insertion code, which may be negative; their order is the file's.
* Of alternative locations the last one of each atom counts, as in Foldseek, whatever its occupancy, and whether
  conformers are listed atom by atom or one after another; where a position holds several residue types, the first one.
* Modified residues read as their parent (MSE as M) with a note; residues without a known parent as X.
"""

import hashlib
import re
from dataclasses import dataclass, replace

import gemmi
import numpy as np

from data_pipeline.structure import bcif, formats, integrity
from data_pipeline.structure.chain import (
    AMINO_ACIDS,
    ATOM_NAMES,
    UNKNOWN_RESIDUE,
    Chain,
    ExperimentFacts,
    StructureError,
)
from data_pipeline.structure.facts import assemblies_of, entry_name, facts_of
from data_pipeline.structure.formats import AtomTable
from data_pipeline.structure.geometry import CA, C, N, chain_breaks

REASONS: dict[str, str] = {
    "unreadable": "the file could not be read from its source",
    "not_found": "the source has no such entry",
    "superseded": "another file of the source holds the same model in a higher version or a richer format",
    "empty_file": "the file has no content",
    "not_a_structure": "the content is neither PDB, mmCIF nor BinaryCIF",
    "truncated": "the file ends before its records do",
    "damaged_gzip": "the gzip stream is damaged",
    "too_large": "the file is unreasonably large when decompressed",
    "parse_error": "the records cannot be understood",
    "crashed": "reading the file ended the process",
    "timed_out": "reading the file took longer than allowed",
    "no_coordinates": "the file holds no atoms",
    "no_protein": "no polymer of the file is a protein",
    "too_short": "fewer residues than the filter allows",
    "too_long": "more residues than the filter allows",
    "missing_backbone": "too many residues lack N, CA or C",
    "unknown_residues": "too many residues are of unknown type",
    "duplicate_sequence": "another chain has the same sequence",
    "duplicate_key": "another chain has the same key",
    "leakage": "too similar to a sequence of an evaluation set",
}
"""Reason codes of rejected files and chains, and what each means."""

MAX_KEY_LENGTH = 100
_GENETIC_EXTENSIONS = {"SEC": "C", "PYL": "K"}
"""Amino acids beyond the 20 that are read as the one they replace."""


def parse_structure(data: bytes, name: str) -> list[Chain]:
    """Every protein chain of a file's first model.

    Args:
        data: the file's bytes; format and compression are recognised by content.
        name: path relative to the source; it goes to the facts and, by its stem, to the keys.

    Raises:
        StructureError: the file cannot be used; `reason` is one of REASONS.
    """
    content = formats.decompressed(data)
    kind = formats.recognise(content)
    try:
        found = _READERS[kind](content)
    except StructureError:
        raise
    except (ValueError, RuntimeError, IndexError, UnicodeDecodeError) as error:
        raise StructureError("parse_error", " ".join(str(error).split())) from None
    integrity.check_coordinates(found.table.position)
    facts = facts_of(name, entry_name(name, found.structure), found.structure)
    chains = _chains(found, facts)
    if not chains:
        raise StructureError("no_protein", "no polymer with amino acids")
    return chains


@dataclass(frozen=True)
class _Found:
    """What a file's reader found."""

    structure: gemmi.Structure
    block: gemmi.cif.Block | None
    """The metadata as mmCIF; None for PDB files."""
    table: AtomTable
    notes: tuple[str, ...] = ()
    """Remarks on the whole file."""


def _read_mmcif(content: bytes) -> _Found:
    is_cut, notes = integrity.mmcif_is_cut(content), integrity.mmcif_notes(content)
    try:
        structure, block = formats.read_mmcif(content if notes else formats.without_unread_loops(content))
    except (ValueError, RuntimeError) as error:
        reason = "truncated" if is_cut or not content.endswith(b"\n") else "parse_error"
        raise StructureError(reason, " ".join(str(error).split())) from None
    if is_cut:
        raise StructureError("truncated", "the last category is not closed")
    if not len(structure):
        declared = any(entity.entity_type == gemmi.EntityType.Polymer for entity in structure.entities)
        is_cut = declared and b"\n_atom_site." not in content
        raise StructureError("truncated" if is_cut else "no_coordinates", "there are no atoms")
    table = formats.atoms_of(structure)
    if np.isnan(table.position).any():
        integrity.check_mmcif_numbers(block)
    if notes:
        integrity.check_instances_present(structure, {table.text(code) for code in np.unique(table.subchain)})
        integrity.check_observed(block)
    return _Found(structure, block, table, notes)


def _read_pdb(content: bytes) -> _Found:
    notes = integrity.check_pdb_ending(content) + integrity.pdb_notes(content)
    integrity.check_pdb_numbers(content)
    structure = formats.read_pdb(content)
    if not any(len(chain) for model in structure for chain in model):
        raise StructureError("no_coordinates", "there are no atoms")
    return _Found(structure, None, formats.atoms_of(structure), notes)


def _read_bcif(content: bytes) -> _Found:
    return _Found(*bcif.read_bcif(content))


_READERS = {"mmcif": _read_mmcif, "pdb": _read_pdb, "bcif": _read_bcif}


def _chains(found: _Found, facts: ExperimentFacts) -> list[Chain]:
    """The protein chains of a file, in its order."""
    table, structure, notes = found.table, found.structure, found.notes
    if len(table.atom) == 0:
        return []
    first_atom, residue = _residues(table)
    coordinates = np.full((len(first_atom), len(ATOM_NAMES), 3), np.nan)
    bfactor = np.full(len(first_atom), np.nan, dtype=np.float32)
    # Of several residue types at one position the first counts; assignment then leaves the last altloc of each atom.
    named = np.flatnonzero(table.residue_name == table.residue_name[first_atom][residue])
    _check_single(table, residue, named)
    coordinates[residue[named], table.atom[named]] = table.position[named]
    coordinates[~np.isfinite(coordinates).all(axis=2)] = np.nan
    of_ca = named[table.atom[named] == CA]
    bfactor[residue[of_ca]] = table.bfactor[of_ca]
    bfactor[~np.isfinite(bfactor)] = np.nan
    has_altloc = np.zeros(len(first_atom), dtype=bool)
    has_altloc[residue[table.altloc != 0]] = True

    names = table.residue_name[first_atom]
    letters, is_amino_acid, modified = _residue_types(table, names, structure)
    has_ca = np.isfinite(coordinates[:, CA, 0])
    kept = is_amino_acid | (has_ca & np.isfinite(coordinates[:, N, 0]))
    declared, assemblies = _declared_lengths(structure), assemblies_of(structure, found.block)
    chains, keys = [], set()
    subchains = table.subchain[first_atom]
    for subchain in _in_order(subchains):
        rows = np.flatnonzero(subchains == subchain)
        num_observed, rows = len(rows), rows[kept[rows]]
        if not has_ca[rows].any() or len(rows) < num_observed / 2:
            continue
        label, author = table.text(subchain), table.text(table.chain[first_atom[rows[0]]])
        remarks = [*notes, *_remarks(coordinates[rows], has_altloc[rows])]
        remarks += sorted({f"modified_residue:{table.text(code)}" for code in names[rows][modified[rows]]})
        unobserved = declared.get(label, 0) - num_observed
        if unobserved > 0 and facts.is_predicted and integrity.UNTERMINATED in notes:
            raise StructureError("truncated", f"a predicted chain lacks {unobserved} residues of its sequence")
        if unobserved > 0:
            remarks.append(f"unobserved:{unobserved}")
        key = _key(facts.entry, author, label, keys)
        keys.add(key)
        shown = author if table.subchain_is_chain else label
        own = assemblies.get(shown, ()) if assemblies else None
        chains.append(
            Chain(
                key=key,
                sequence=letters[rows].tobytes().decode(),
                coordinates=coordinates[rows],
                bfactor=np.where(has_ca[rows], bfactor[rows], np.nan).astype(np.float32),
                facts=replace(facts, chain_label=shown, chain_author=author, assemblies=own),
                notes=tuple(remarks),
            )
        )
    return chains


def _residues(table: AtomTable) -> tuple[np.ndarray, np.ndarray]:
    """Index of each residue's first atom [residues], and each atom's residue [atoms]; a table with atoms.

    A residue goes on while chain, number and insertion code stay; another residue type is an alternative location, or
    else a residue of its own. Where a number comes again later in its chain as an alternative location, or with the
    same residue type, it is the same residue.
    """
    differs = np.zeros(len(table.atom), dtype=bool)
    differs[0] = True
    for column in (table.subchain, table.number, table.insertion):
        differs[1:] |= column[1:] != column[:-1]
    differs[1:] |= (table.residue_name[1:] != table.residue_name[:-1]) & (table.altloc[1:] == 0)
    first_atom = np.flatnonzero(differs)
    residue = np.cumsum(differs) - 1
    chain = np.unique(table.subchain[first_atom], return_inverse=True)[1]
    identity = chain << 40 | (table.number[first_atom].astype(np.int64) + 2**31) << 8 | table.insertion[first_atom]
    if len(np.unique(identity)) == len(identity):
        return first_atom, residue
    first, inverse = np.unique(identity, return_index=True, return_inverse=True)[1:]
    earlier = first[inverse]
    names = table.residue_name[first_atom]
    merged = (earlier != np.arange(len(first_atom))) & ((table.altloc[first_atom] != 0) | (names == names[earlier]))
    number = np.cumsum(~merged) - 1
    return first_atom[~merged], np.where(merged, number[earlier], number)[residue]


def _check_single(table: AtomTable, residue: np.ndarray, named: np.ndarray) -> None:
    """No residue has an atom twice at different places, unless as alternative locations.

    Raises:
        StructureError: `parse_error`: residues share a number, so that nobody can tell which atom belongs to which.
    """
    rows = named[table.altloc[named] == 0]
    slot = residue[rows] * len(ATOM_NAMES) + table.atom[rows]
    if len(slot) == 0 or np.bincount(slot).max() == 1:
        return
    order = np.argsort(slot, kind="stable")
    same = np.flatnonzero(np.diff(slot[order]) == 0)
    if len(same):
        one, other = table.position[rows[order[same]]], table.position[rows[order[same + 1]]]
        num_moved = int((one != other).any(axis=1).sum())
        if num_moved:
            raise StructureError("parse_error", f"{num_moved} atoms stand twice in one residue at different places")


def _residue_types(
    table: AtomTable, names: np.ndarray, structure: gemmi.Structure
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One-letter codes (bytes as uint8), which residues are amino acids, and which are modified; each [residues]."""
    parents = {residue.res_id.name: residue.parent_comp_id for residue in structure.mod_residues}
    distinct, inverse = np.unique(names, return_inverse=True)
    letters, is_amino_acid, modified = [], [], []
    for code in distinct:
        name = table.text(code)
        known = gemmi.find_tabulated_residue(name)
        if not known.found() and name in parents:
            known = gemmi.find_tabulated_residue(parents[name])
        letter = _GENETIC_EXTENSIONS.get(name, known.one_letter_code.upper())
        letter = letter if known.is_amino_acid() and letter in AMINO_ACIDS else UNKNOWN_RESIDUE
        letters.append(ord(letter))
        is_amino_acid.append(known.is_amino_acid())
        standard = known.name == name and known.is_standard() and name not in _GENETIC_EXTENSIONS
        modified.append(letter != UNKNOWN_RESIDUE and not standard)
    table_of = (np.array(letters, np.uint8), np.array(is_amino_acid, bool), np.array(modified, bool))
    return tuple(column[inverse] for column in table_of)


def _declared_lengths(structure: gemmi.Structure) -> dict[str, int]:
    """Residues of each subchain according to the file's sequence records."""
    return {name: len(entity.full_sequence) for entity in structure.entities for name in entity.subchains}


def _in_order(codes: np.ndarray) -> np.ndarray:
    """Distinct values in order of first appearance."""
    distinct, first = np.unique(codes, return_index=True)
    return distinct[np.argsort(first)]


def _remarks(coordinates: np.ndarray, has_altloc: np.ndarray) -> list[str]:
    remarks = ["altloc"] if has_altloc.any() else []
    joinable = np.isfinite(coordinates[:-1, C, 0]) & np.isfinite(coordinates[1:, N, 0])
    num_breaks = int((chain_breaks(coordinates) & joinable).sum())
    return [*remarks, f"chain_break:{num_breaks}"] if num_breaks else remarks


def _key(entry: str, author: str, label: str, taken: set[str]) -> str:
    """`<entry>_<author chain>`; the label chain name follows where one author name covers several polymers."""
    key = f"{entry}_{_plain(author)}"
    key = key if key not in taken else f"{key}_{_plain(label)}"
    if len(key) > MAX_KEY_LENGTH:
        digest = hashlib.sha256(key.encode()).hexdigest()[:12]
        key = f"{key[: MAX_KEY_LENGTH - 13]}-{digest}"
    return key


def _plain(name: str) -> str:
    """A chain name with nothing but letters, digits and `-`."""
    return re.sub(r"[^A-Za-z0-9-]", "-", name) or "-"
