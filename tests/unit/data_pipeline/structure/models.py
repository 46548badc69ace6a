"""Small proteins with ideal geometry, and the same protein as PDB, mmCIF and BinaryCIF bytes."""

import io

import gemmi
import numpy as np
from biotite.structure.io import pdbx

from data_pipeline.structure.chain import ATOM_NAMES
from data_pipeline.structure.geometry import virtual_cb
from data_pipeline.structure.place import place_atom

HELIX = (-57.0, -47.0)
STRAND = (-120.0, 130.0)
NAMES = {letter: gemmi.expand_one_letter(letter, gemmi.ResidueKind.AA) for letter in "ACDEFGHIKLMNPQRSTVWY"}


def backbone(phi_psi: list[tuple[float, float]]) -> np.ndarray:
    """float64 [N, 5, 3] of a chain with the given torsions (degrees), trans peptide bonds and ideal bonds."""
    atoms = [np.array([0.0, 0.0, 0.0]), np.array([1.458, 0.0, 0.0]), np.array([2.0, 1.42, 0.0])]
    for i in range(1, len(phi_psi)):
        psi, phi = np.radians(phi_psi[i - 1][1]), np.radians(phi_psi[i][0])
        atoms.append(place_atom(*atoms[-3:], 1.329, np.radians(116.6), psi))
        atoms.append(place_atom(*atoms[-3:], 1.458, np.radians(121.7), np.pi))
        atoms.append(place_atom(*atoms[-3:], 1.525, np.radians(111.0), phi))
    main = np.array(atoms).reshape(-1, 3, 3)
    psi = np.radians([pair[1] for pair in phi_psi])
    oxygen = place_atom(main[:, 0], main[:, 1], main[:, 2], 1.231, np.radians(120.5), psi + np.pi)
    cb = virtual_cb(main[:, 0], main[:, 1], main[:, 2])
    return np.round(np.concatenate([main, oxygen[:, None], cb[:, None]], axis=1), 3)


def helix(num_residues: int) -> np.ndarray:
    return backbone([HELIX] * num_residues)


def random_fold(num_residues: int, seed: int = 0) -> np.ndarray:
    """Helices, strands and loops in turn; not compact, but every residue has its own surroundings."""
    random = np.random.default_rng(seed)
    regions = [HELIX, STRAND, (-75.0, 150.0), (-65.0, -20.0)]
    torsions = []
    while len(torsions) < num_residues:
        centre = regions[random.integers(len(regions))]
        torsions += [tuple(random.normal(centre, 8.0)) for _ in range(random.integers(2, 12))]
    return backbone(torsions[:num_residues])


def gemmi_structure(chains: dict[str, tuple[str, np.ndarray]], entry: str = "1ABC") -> gemmi.Structure:
    """A structure of author chain name -> (sequence, coordinates), with sequence records; glycine has no CB."""
    structure = gemmi.Structure()
    structure.name = entry
    structure.info["_entry.id"] = entry
    structure.info["_exptl.method"] = "X-RAY DIFFRACTION"
    structure.info["_pdbx_database_status.recvd_initial_deposition_date"] = "2020-02-29"
    structure.resolution = 1.75
    model = gemmi.Model(1)
    for name, (sequence, coordinates) in chains.items():
        chain = gemmi.Chain(name)
        for number, (letter, atoms) in enumerate(zip(sequence, coordinates, strict=True), start=1):
            chain.add_residue(_residue(letter, atoms, number))
        model.add_chain(chain)
    structure.add_model(model)
    structure.setup_entities()
    for entity in structure.entities:
        strand = next(c for c in structure[0] if c[0].subchain in entity.subchains)
        entity.full_sequence = [residue.name for residue in strand]
    structure.assign_label_seq_id()
    return structure


def _residue(letter: str, atoms: np.ndarray, number: int) -> gemmi.Residue:
    residue = gemmi.Residue()
    residue.name, residue.seqid = NAMES[letter], gemmi.SeqId(number, " ")
    residue.entity_type = gemmi.EntityType.Polymer
    for name, position in zip(ATOM_NAMES, atoms, strict=True):
        if np.isfinite(position).all() and not (name == "CB" and letter == "G"):
            atom = gemmi.Atom()
            atom.name, atom.pos, atom.b_iso, atom.occ = name, gemmi.Position(*position), 10.0 + number % 50, 1.0
            atom.element = gemmi.Element(name[0])
            residue.add_atom(atom)
    return residue


def pdb_bytes(structure: gemmi.Structure) -> bytes:
    return structure.make_pdb_string().encode()


def mmcif_bytes(structure: gemmi.Structure) -> bytes:
    """With a `#` line after every category, as the databases write."""
    return structure.make_mmcif_document().as_string(gemmi.cif.Style.Pdbx).encode()


def bcif_bytes(mmcif: bytes) -> bytes:
    """biotite's BinaryCIF of the same categories, compressed with its usual encodings."""
    text = pdbx.CIFFile.read(io.StringIO(mmcif.decode()))
    blocks = {}
    for block_name, block in text.items():
        categories = {}
        for category_name in block:
            category = block[category_name]
            columns = {name: pdbx.BinaryCIFColumn(*_column(name, category[name])) for name in category}
            categories[category_name] = pdbx.BinaryCIFCategory(columns)
        blocks[block_name] = pdbx.BinaryCIFBlock(categories)
    out = io.BytesIO()
    pdbx.compress(pdbx.BinaryCIFFile(blocks)).write(out)
    return out.getvalue()


def _column(name: str, column: pdbx.CIFColumn) -> tuple[pdbx.BinaryCIFData, pdbx.BinaryCIFData | None]:
    values = column.as_array(str)
    if name.startswith("Cartn_") or name == "B_iso_or_equiv":
        values = values.astype(np.float64)
    elif name in ("auth_seq_id", "pdbx_PDB_model_num"):
        values = values.astype(np.int32)
    mask = None if column.mask is None else pdbx.BinaryCIFData(column.mask.array.astype(np.uint8))
    return pdbx.BinaryCIFData(values), mask


def as_dna(structure: gemmi.Structure) -> gemmi.Structure:
    """The structure with its first chain turned into a strand of DNA, in place."""
    for residue in structure[0][0]:
        residue.name = "DA"
        for atom in residue:
            atom.name = f"{atom.name[0]}1'"
    structure.entities.clear()
    structure.setup_entities()
    return structure
