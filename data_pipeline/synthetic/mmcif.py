"""Synthetic entries as mmCIF text with the categories that archives fill."""

from dataclasses import dataclass

import numpy as np

from data_pipeline.structure.chain import AMINO_ACIDS, ATOM_NAMES

_NAMES = "ALA CYS ASP GLU PHE GLY HIS ILE LYS LEU MET ASN PRO GLN ARG SER THR VAL TRP TYR"
RESIDUE_NAMES = dict(zip(AMINO_ACIDS, _NAMES.split(), strict=True))
_ATOM_SITE = (
    "group_PDB id type_symbol label_atom_id label_alt_id label_comp_id label_asym_id label_entity_id label_seq_id "
    "pdbx_PDB_ins_code Cartn_x Cartn_y Cartn_z occupancy B_iso_or_equiv auth_seq_id auth_comp_id auth_asym_id "
    "auth_atom_id pdbx_PDB_model_num"
)


@dataclass(frozen=True)
class Polymer:
    """One chain of N residues."""

    label: str
    author: str
    sequence: str
    atoms: np.ndarray
    """float64 [N, 5, 3], Angstrom, atoms as in ATOM_NAMES; NaN where not modelled."""
    bfactor: np.ndarray
    """float64 [N]: square Angstrom, or pLDDT in a predicted entry."""
    first_number: int
    """Author's number of the first residue."""


@dataclass(frozen=True)
class Experiment:
    """How an entry says it was determined."""

    method: str
    """`X-RAY DIFFRACTION`, `ELECTRON MICROSCOPY` or `THEORETICAL MODEL`."""
    resolution: float | None
    r_free: float | None
    deposition_date: str

    @property
    def is_predicted(self) -> bool:
        return self.method == "THEORETICAL MODEL"


def mmcif_text(entry: str, experiment: Experiment, polymers: tuple[Polymer, ...]) -> str:
    """The whole file; chains of one sequence share an entity."""
    sequences = list(dict.fromkeys(polymer.sequence for polymer in polymers))
    entity = {polymer.label: sequences.index(polymer.sequence) + 1 for polymer in polymers}
    parts = [
        f"data_{entry}\n#\n_entry.id {entry}\n#\n",
        _experiment(entry, experiment, polymers),
        _loop(
            "entity",
            ("id", "type", "pdbx_description"),
            [f"{i + 1} polymer 'synthetic protein'" for i in range(len(sequences))],
        ),
        _entity_poly(sequences, polymers, entity),
        _loop("struct_asym", ("id", "entity_id"), [f"{polymer.label} {entity[polymer.label]}" for polymer in polymers]),
        _entity_poly_seq(sequences),
        _poly_seq_scheme(polymers, entity),
        _atom_site(polymers, entity),
    ]
    return "".join(parts)


def _loop(category: str, columns: tuple[str, ...] | list[str], rows: list[str]) -> str:
    return "".join(["loop_\n", *(f"_{category}.{column}\n" for column in columns), "\n".join(rows), "\n#\n"])


def _experiment(entry: str, experiment: Experiment, polymers: tuple[Polymer, ...]) -> str:
    lines = [
        f"_pdbx_database_status.entry_id {entry}",
        f"_pdbx_database_status.recvd_initial_deposition_date {experiment.deposition_date}",
        f"_exptl.entry_id {entry}",
        f"_exptl.method '{experiment.method}'",
    ]
    if experiment.method == "X-RAY DIFFRACTION":
        lines.append(f"_refine.entry_id {entry}")
        lines.append(f"_refine.pdbx_refine_id '{experiment.method}'")
        lines.append(f"_refine.ls_d_res_high {experiment.resolution:.2f}")
        lines.append(f"_refine.ls_R_factor_R_free {experiment.r_free:.4f}")
    elif experiment.method == "ELECTRON MICROSCOPY":
        lines.append(f"_em_3d_reconstruction.entry_id {entry}")
        lines.append("_em_3d_reconstruction.id 1")
        lines.append(f"_em_3d_reconstruction.resolution {experiment.resolution:.2f}")
    text = "\n".join(lines) + "\n#\n"
    if experiment.is_predicted:
        mean = float(np.mean(np.concatenate([polymer.bfactor for polymer in polymers])))
        text += _loop("ma_qa_metric", ("id", "mode", "name", "type"), ["1 global pLDDT pLDDT", "2 local pLDDT pLDDT"])
        text += _loop(
            "ma_qa_metric_global", ("metric_id", "metric_value", "model_id", "ordinal_id"), [f"1 {mean:.2f} 1 1"]
        )
    return text


def _entity_poly(sequences: list[str], polymers: tuple[Polymer, ...], entity: dict[str, int]) -> str:
    rows = []
    for number, sequence in enumerate(sequences, start=1):
        strands = ",".join(polymer.author for polymer in polymers if entity[polymer.label] == number)
        rows.append(f"{number} polypeptide(L) no no {sequence} {sequence} {strands}")
    columns = ("entity_id", "type", "nstd_linkage", "nstd_monomer", "pdbx_seq_one_letter_code")
    return _loop("entity_poly", (*columns, "pdbx_seq_one_letter_code_can", "pdbx_strand_id"), rows)


def _entity_poly_seq(sequences: list[str]) -> str:
    rows = [
        f"{number} {i} {RESIDUE_NAMES[residue]} n"
        for number, sequence in enumerate(sequences, start=1)
        for i, residue in enumerate(sequence, start=1)
    ]
    return _loop("entity_poly_seq", ("entity_id", "num", "mon_id", "hetero"), rows)


def _poly_seq_scheme(polymers: tuple[Polymer, ...], entity: dict[str, int]) -> str:
    rows = []
    for polymer in polymers:
        modelled = np.isfinite(polymer.atoms[:, 1, 0])
        for i, residue in enumerate(polymer.sequence):
            name, number = RESIDUE_NAMES[residue], polymer.first_number + i
            author = f"{number} {name}" if modelled[i] else "? ?"
            rows.append(
                f"{polymer.label} {entity[polymer.label]} {i + 1} {name} {number} {author} {polymer.author} . n"
            )
    columns = (
        "asym_id",
        "entity_id",
        "seq_id",
        "mon_id",
        "pdb_seq_num",
        "auth_seq_num",
        "auth_mon_id",
        "pdb_strand_id",
    )
    return _loop("pdbx_poly_seq_scheme", (*columns, "pdb_ins_code", "hetero"), rows)


def _atom_site(polymers: tuple[Polymer, ...], entity: dict[str, int]) -> str:
    rows: list[str] = []
    for polymer in polymers:
        present = np.isfinite(polymer.atoms).all(axis=-1).tolist()
        positions, bfactor = polymer.atoms.tolist(), polymer.bfactor.tolist()
        label = f"{polymer.label} {entity[polymer.label]}"
        for i, residue in enumerate(polymer.sequence):
            name = RESIDUE_NAMES[residue]
            number = f"{polymer.first_number + i} {name} {polymer.author}"
            for j, atom in enumerate(ATOM_NAMES):
                if present[i][j]:
                    x, y, z = positions[i][j]
                    place = f"{x:.3f} {y:.3f} {z:.3f} 1.00 {bfactor[i]:.2f}"
                    rows.append(
                        f"ATOM {len(rows) + 1} {atom[0]} {atom} . {name} {label} {i + 1} ? {place} {number} {atom} 1"
                    )
    return _loop("atom_site", _ATOM_SITE.split(), rows)
