"""Experiment facts and names of an entry, from the file's records and its own name."""

import datetime
import math
import re
from pathlib import PurePosixPath

import gemmi

from data_pipeline.structure.chain import ExperimentFacts

STRUCTURE_SUFFIXES = (".pdb", ".ent", ".cif", ".mmcif", ".bcif")
_DATABASE_ID = re.compile(r"\d[A-Za-z0-9]{3}|pdb_[A-Za-z0-9]{8}|(AF|MA)-[A-Za-z0-9-]+", re.IGNORECASE)
_PDB_ID = re.compile(r"\d[A-Za-z0-9]{3}|pdb_[A-Za-z0-9]{8}", re.IGNORECASE)
_MODEL_VERSION = re.compile(r"-model_v(\d+)")
_PREDICTED_ID = re.compile(r"(AF|MA)-")
_R_FREE_REMARK = re.compile(r"REMARK   3   FREE R VALUE +(?:\(NO CUTOFF\) *)?: *(\d*\.\d+)")
"""Also in SHELXL's form of the remark, and outside the context in which gemmi reads it."""
_PREDICTION_TITLE = re.compile(r"ALPHAFOLD.*PREDICTION", re.IGNORECASE)


def entry_name(name: str, structure: gemmi.Structure) -> str:
    """Identifier of the entry in a form that keys can hold (letters, digits, `_` and `-`).

    The file's stem, because several files may hold parts or states of one database entry; the database identifier in
    the file where the stem says nothing of it. `pdb1abc.ent.gz` is `1abc`, `AF-P12345-F1-model_v6.cif` is
    `AF-P12345-F1`; identifiers of the PDB are in lower case.
    """
    stem = _stem(name)
    recorded = _recorded(structure.info, "_entry.id")
    if re.fullmatch(r"pdb\d[A-Za-z0-9]{3}", stem):
        stem = stem[3:]
    known = _DATABASE_ID.fullmatch(recorded)
    chosen = recorded if known and recorded.lower() not in stem.lower() else stem
    chosen = re.sub(r"[^A-Za-z0-9_-]", "-", chosen) or "unnamed"
    return chosen.lower() if _PDB_ID.fullmatch(chosen) else chosen


def facts_of(name: str, entry: str, structure: gemmi.Structure) -> ExperimentFacts:
    """What the file says of its origin; the chain names and what depends on the chain are left empty."""
    info = structure.info
    method = _method(name, structure)
    resolution = structure.resolution
    version = _MODEL_VERSION.search(name) or _MODEL_VERSION.search(_recorded(info, "_entry.id"))
    return ExperimentFacts(
        source=name,
        entry=entry,
        chain_label="",
        chain_author="",
        method=method,
        resolution=resolution if resolution > 0 and math.isfinite(resolution) else None,
        r_free=_r_free(structure),
        deposition_date=_iso_date(_recorded(info, "_pdbx_database_status.recvd_initial_deposition_date")),
        model_version=version.group(1) if version else None,
    )


def assemblies_of(structure: gemmi.Structure, block: gemmi.cif.Block | None) -> dict[str, tuple[str, ...]]:
    """Chain name -> identifiers of the biological assemblies that list it, in the file's order.

    Parts of viruses that are no assemblies (`icosahedral asymmetric unit`, `crystal asymmetric unit`) are left out.
    The names are label_asym_id in mmCIF (`_pdbx_struct_assembly_gen`), the author's in PDB files (REMARK 350).

    Args:
        block: the file's mmCIF or BinaryCIF metadata; None for PDB files.
    """
    if block is None:
        parts = [(a.name, part.chains) for a in structure.assemblies for part in a.generators]
    else:
        rows = block.find("_pdbx_struct_assembly_gen.", ["assembly_id", "asym_id_list"])
        kinds = {row.str(0): row.str(1) for row in block.find("_pdbx_struct_assembly.", ["id", "details"])}
        parts = [
            (row.str(0), [name.strip() for name in row.str(1).split(",")])
            for row in rows
            if "assembly" in (kinds.get(row.str(0)) or "assembly")
        ]
    found: dict[str, dict[str, None]] = {}
    for assembly, names in parts:
        for name in names:
            found.setdefault(name, {})[assembly] = None
    return {name: tuple(assemblies) for name, assemblies in found.items()}


def _method(name: str, structure: gemmi.Structure) -> str | None:
    recorded = _recorded(structure.info, "_exptl.method").lower()
    is_predicted = (
        recorded == "theoretical model"
        or _PREDICTED_ID.match(_recorded(structure.info, "_entry.id"))
        or (_PREDICTED_ID.match(_stem(name)) and not recorded)
        or (_PREDICTION_TITLE.search(_recorded(structure.info, "_struct.title")) and not recorded)
    )
    return "predicted" if is_predicted else recorded or None


def _r_free(structure: gemmi.Structure) -> float | None:
    """The first stated R-free between 0 and 1."""
    values = [refinement.r_free for refinement in structure.meta.refinement]
    values += [float(found.group(1)) for found in map(_R_FREE_REMARK.match, structure.raw_remarks) if found]
    return next((value for value in values if 0 < value < 1), None)


def _iso_date(text: str) -> str | None:
    """The date as it is, or None for what is none: splits by date compare these strings."""
    try:
        return datetime.date.fromisoformat(text).isoformat()
    except ValueError:
        return None


def _recorded(info: gemmi.InfoMap, tag: str) -> str:
    return info[tag] if tag in info else ""  # noqa: SIM401 (an InfoMap has no get)


def _stem(name: str) -> str:
    """File name without folders, structure and gzip suffixes, and the version of a predicted model."""
    stem = PurePosixPath(name.replace("\\", "/")).name
    stem = re.sub(r"\.gz$", "", stem, flags=re.IGNORECASE)
    suffix = next((suffix for suffix in STRUCTURE_SUFFIXES if stem.lower().endswith(suffix)), "")
    return _MODEL_VERSION.sub("", stem[: len(stem) - len(suffix)])
