"""Structure files to chains: PDB, mmCIF and BinaryCIF, gzipped or not.

Rules, the same for every format:

* Only the first model is read. One chain per polypeptide instance (label_asym_id in mmCIF).
* Residues are those with coordinates. What a sequence record lists beyond them is not a node; `unobserved:<n>` notes
  how many. Caps such as ACE, which are no amino acids and lack N or CA, are left out.
* Of alternative locations the last one of each atom counts, as in Foldseek; where a position holds several residue
  types, the first one.
* Modified residues read as their parent (MSE as M) with a note; residues without a known parent as X.
"""

import hashlib
import re
from dataclasses import replace

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
from data_pipeline.structure.facts import entry_name, facts_of
from data_pipeline.structure.formats import AtomTable
from data_pipeline.structure.geometry import CA, C, N, chain_breaks

REASONS: dict[str, str] = {
    "unreadable": "the file could not be read from its source",
    "empty_file": "the file has no content",
    "not_a_structure": "the content is neither PDB, mmCIF nor BinaryCIF",
    "truncated": "the file ends before its records do",
    "damaged_gzip": "the gzip stream is damaged",
    "too_large": "the file is unreasonably large when decompressed",
    "parse_error": "the records cannot be understood",
    "no_coordinates": "the file holds no atoms",
    "no_protein": "no polymer of the file is a protein",
    "too_short": "fewer residues than the filter allows",
    "too_long": "more residues than the filter allows",
    "missing_backbone": "too many residues lack N, CA or C",
    "unknown_residues": "too many residues are of unknown type",
    "duplicate_sequence": "another chain has the same sequence",
    "duplicate_key": "another chain has the same key",
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
        structure, table, notes = _READERS[kind](content)
    except StructureError:
        raise
    except (ValueError, RuntimeError, IndexError, UnicodeDecodeError) as error:
        raise StructureError("parse_error", " ".join(str(error).split())) from None
    integrity.check_coordinates(table.position)
    entry = entry_name(name, structure)
    facts = facts_of(name, entry, structure)
    chains = _chains(table, structure, facts, notes)
    if not chains:
        raise StructureError("no_protein", "no polymer with amino acids")
    return chains


def _read_mmcif(content: bytes) -> tuple[gemmi.Structure, AtomTable, tuple[str, ...]]:
    is_cut = integrity.mmcif_is_cut(content)
    try:
        structure = formats.read_mmcif(content)
    except (ValueError, RuntimeError) as error:
        reason = "truncated" if is_cut or not content.endswith(b"\n") else "parse_error"
        raise StructureError(reason, " ".join(str(error).split())) from None
    if is_cut:
        raise StructureError("truncated", "the last category is not closed")
    if not len(structure):
        declared = any(entity.entity_type == gemmi.EntityType.Polymer for entity in structure.entities)
        raise StructureError("truncated" if declared else "no_coordinates", "there are no atoms")
    table = formats.atoms_of(structure)
    notes = integrity.mmcif_notes(content)
    if notes:
        integrity.check_instances_present(structure, {table.text(code) for code in np.unique(table.subchain)})
    return structure, table, notes


def _read_pdb(content: bytes) -> tuple[gemmi.Structure, AtomTable, tuple[str, ...]]:
    notes = integrity.check_pdb_ending(content)
    structure = formats.read_pdb(content)
    if not any(len(chain) for model in structure for chain in model):
        raise StructureError("no_coordinates", "there are no atoms")
    return structure, formats.atoms_of(structure), notes


def _read_bcif(content: bytes) -> tuple[gemmi.Structure, AtomTable, tuple[str, ...]]:
    return *bcif.read_bcif(content), ()


_READERS = {"mmcif": _read_mmcif, "pdb": _read_pdb, "bcif": _read_bcif}


def _chains(
    table: AtomTable, structure: gemmi.Structure, facts: ExperimentFacts, notes: tuple[str, ...]
) -> list[Chain]:
    """The protein chains of a table of atoms, in the file's order."""
    if len(table.atom) == 0:
        return []
    differs = np.zeros(len(table.atom), dtype=bool)
    differs[0] = True
    for column in (table.subchain, table.number, table.insertion):
        differs[1:] |= column[1:] != column[:-1]
    first_atom = np.flatnonzero(differs)
    residue = np.cumsum(differs) - 1
    coordinates = np.full((len(first_atom), len(ATOM_NAMES), 3), np.nan)
    bfactor = np.full(len(first_atom), np.nan, dtype=np.float32)
    # Of several residue types at one position the first counts; assignment then leaves the last altloc of each atom.
    named = np.flatnonzero(table.residue_name == table.residue_name[first_atom][residue])
    coordinates[residue[named], table.atom[named]] = table.position[named]
    coordinates[~np.isfinite(coordinates).all(axis=2)] = np.nan
    of_ca = named[table.atom[named] == CA]
    bfactor[residue[of_ca]] = table.bfactor[of_ca]
    has_altloc = np.zeros(len(first_atom), dtype=bool)
    has_altloc[residue[table.altloc != 0]] = True

    names = table.residue_name[first_atom]
    letters, is_amino_acid, modified = _residue_types(table, names, structure)
    has_ca = np.isfinite(coordinates[:, CA, 0])
    kept = is_amino_acid | (has_ca & np.isfinite(coordinates[:, N, 0]))
    declared = _declared_lengths(structure)
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
        if unobserved > 0:
            remarks.append(f"unobserved:{unobserved}")
        key = _key(facts.entry, author, label, keys)
        keys.add(key)
        chains.append(
            Chain(
                key=key,
                sequence=letters[rows].tobytes().decode(),
                coordinates=coordinates[rows],
                bfactor=np.where(has_ca[rows], bfactor[rows], np.nan).astype(np.float32),
                facts=replace(facts, chain_label=author if table.subchain_is_chain else label, chain_author=author),
                notes=tuple(remarks),
            )
        )
    return chains


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
