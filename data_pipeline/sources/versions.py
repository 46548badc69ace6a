"""Which of several files of one model counts: versions are read from file names, the highest wins.

Two families of names carry a version: predicted models (`AF-P12345-F1-model_v6.cif.gz`, also of other databases) and
the versioned PDB archive (`pdb_00001abc_xyz_v1-2.cif.gz`). Among files of one model the highest version wins; at one
version mmCIF before BinaryCIF before PDB, then the first by name. The others stay listed, and become rejects
`superseded` that name the winner. Names without a version are never compared.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from data_pipeline.sources.entries import Entry, Refused

SUPERSEDED = "superseded"
_VERSIONED = re.compile(
    r"(?P<model>(?:AF|MA)-[A-Za-z0-9-]+?)-model_v(?P<version>\d+)(?P<form>[^/]*)$"
    r"|(?P<pdb>pdb_[A-Za-z0-9]{8}_xyz)_v(?P<major>\d+)-(?P<minor>\d+)(?P<pdb_form>[^/]*)$"
)
_ALPHAFOLD = re.compile(r"AF-(?P<accession>[A-Z0-9]+(?:-\d+)?)-F\d+$")
_FORMS = ((".cif", ".mmcif"), (".bcif",), ())
"""By preference: mmCIF holds all facts in the form read most often; PDB files hold the fewest."""

Version = tuple[int, int]


def model_of(name: str) -> tuple[str, Version] | None:
    """Model and version that a file's name tells, e.g. `("AF-P12345-F1", (6, 0))`; None where it tells none."""
    found = _VERSIONED.match(name, name.rfind("/") + 1)
    if found is None:
        return None
    if found["model"]:
        return found["model"], (int(found["version"]), 0)
    return found["pdb"], (int(found["major"]), int(found["minor"]))


def accession_of(model: str) -> str | None:
    """UniProt accession of an AlphaFold model's name (`AF-P12345-F1`, isoforms `AF-P12345-2-F1`)."""
    found = _ALPHAFOLD.match(model)
    return found["accession"] if found else None


def mark_superseded(entries: Sequence[Entry]) -> list[Entry]:
    """The entries in their order; all but the best file of each model refuse to be read."""
    best: dict[str, int] = {}
    beaten: list[tuple[int, str]] = []
    for index, entry in enumerate(entries):
        found = model_of(entry.name)
        if found is None:
            continue
        model = found[0]
        held = best.setdefault(model, index)
        if held != index:
            wins = _rank(entry.name) > _rank(entries[held].name)
            beaten.append((held if wins else index, model))
            best[model] = index if wins else held
    marked = list(entries)
    for index, model in beaten:
        winner = entries[best[model]]
        marked[index] = replace(entries[index], reader=Refused(SUPERSEDED, f"{winner.name} holds the same model"))
    return marked


def _rank(name: str) -> tuple[Version, int]:
    """Sorts files of one model: greater is better."""
    found = model_of(name)
    assert found is not None
    stem = name.lower().removesuffix(".gz")
    form = next(index for index, suffixes in enumerate(_FORMS) if not suffixes or stem.endswith(suffixes))
    return found[1], -form
