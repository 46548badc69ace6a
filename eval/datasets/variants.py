"""Measured effects of mutations: ProteinGym's scans and clinical variants, and changes of stability."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow.parquet

from configs.errors import UserError
from eval.datasets.residue_readers import Source, fasta, standard
from eval.models.protocol import RESIDUES

_SUBSTITUTION = re.compile(r"([A-Z])(\d+)([A-Z])")
_NUMBERS = {letter: number for number, letter in enumerate(RESIDUES)}
CLINICAL = {"pathogenic": 0.0, "benign": 1.0}
"""What a higher score means everywhere: fitter."""


@dataclass(frozen=True)
class Assay:
    """Measurements on mutants of one wild type. V variants hold K substitutions between them."""

    key: str
    uniprot: str
    """Names the protein; assays of one protein are resampled together."""
    category: str
    """Coarse selection type of ProteinGym, empty where it is not known."""
    sequence: str
    """Wild type."""
    variants: tuple[str, ...]
    """As published, e.g. `A12C:D13E`, positions from 1."""
    scores: np.ndarray
    """float64 [V], higher is fitter."""
    owner: np.ndarray
    """int64 [K]: the variant of each substitution."""
    position: np.ndarray
    """int64 [K], from 0."""
    wild: np.ndarray
    """int64 [K]: number in RESIDUES."""
    mutant: np.ndarray
    """int64 [K]."""

    @cached_property
    def positions(self) -> np.ndarray:
        """int64, ascending: positions that any variant changes."""
        return np.unique(self.position)


@dataclass(frozen=True)
class Assays:
    """All assays of a benchmark."""

    source: str
    sha256: str
    assays: tuple[Assay, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class AssayLayout:
    """One publisher's arrangement of a benchmark's files."""

    name: str
    prefix: str
    """As of `eval.datasets.records.Layout`."""
    needs: tuple[str, ...]
    read: Callable[[Source], Assays]


class Collected:
    """Assays as they are read, and what was left out of them."""

    def __init__(self) -> None:
        self.assays: list[Assay] = []
        self.num_dropped = 0

    def add(
        self, key: str, uniprot: str, category: str, sequence: str, variants: Iterable[str], scores: Iterable[float]
    ) -> None:
        """One assay; variants that are no substitutions of standard residues, or have no score, are left out.

        Raises:
            UserError: a variant's wild type is not the sequence's residue at its position.
        """
        kept, values = [], []
        substitutions: list[tuple[int, int, int, int]] = []
        sequence = standard(sequence)
        for name, score in zip(variants, scores, strict=True):
            found = _substitutions(key, sequence, name)
            if not found or not np.isfinite(score):
                self.num_dropped += 1
                continue
            substitutions += [(len(kept), *change) for change in found]
            kept.append(name)
            values.append(float(score))
        if kept:
            owner, position, wild, mutant = np.array(substitutions, dtype=np.int64).T
            found_scores = np.array(values)
            self.assays.append(
                Assay(key, uniprot, category, sequence, tuple(kept), found_scores, owner, position, wild, mutant)
            )

    def result(self, name: str, source: Source, notes: Sequence[str] = ()) -> Assays:
        """All of them, in order of their keys.

        Raises:
            UserError: there are none.
        """
        if not self.assays:
            raise UserError(f"{name}: holds no assay with substitutions and scores; fetch the files again")
        dropped = (
            (
                f"{self.num_dropped} variants without a score or with other changes than substitutions of standard "
                "residues were left out",
            )
            if self.num_dropped
            else ()
        )
        ordered = tuple(sorted(self.assays, key=lambda assay: assay.key))
        return Assays(name, source.sha256(), ordered, (*notes, *dropped))


def _substitutions(key: str, sequence: str, name: str) -> list[tuple[int, int, int]]:
    """(position from 0, wild type, mutant) of each substitution; empty where a part is none."""
    found = []
    for part in name.split(":"):
        match = _SUBSTITUTION.fullmatch(part.strip())
        if match is None or match[1] not in _NUMBERS or match[3] not in _NUMBERS:
            return []
        at = int(match[2]) - 1
        if not 0 <= at < len(sequence) or sequence[at] != match[1]:
            has = repr(sequence[at]) if 0 <= at < len(sequence) else f"only {len(sequence)} residues"
            raise UserError(f"assay {key}: variant {name}, but the wild type has {has} there; fetch its files again")
        if match[1] != match[3]:
            found.append((at, _NUMBERS[match[1]], _NUMBERS[match[3]]))
    return found


def rows_of(source: Source, path: str, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """Rows of a CSV file with these columns.

    Raises:
        UserError: it lacks one.
    """
    csv.field_size_limit(1 << 30)
    rows = csv.DictReader(io.StringIO(source.text(path)))
    missing = [column for column in columns if column not in (rows.fieldnames or ())]
    if missing:
        raise UserError(f"file {path}: has no column {missing[0]!r}; got {', '.join(rows.fieldnames or ())[:200]}")
    yield from rows


def number(text: str) -> float:
    """A score; NaN where it is empty or none."""
    try:
        return float(text)
    except ValueError:
        return np.nan


def uniprot_of(key: str) -> str:
    """ProteinGym's names begin with the protein's."""
    return "_".join(key.split("_")[:2])


def _located(source: Source, wanted: str, folder: str) -> str | None:
    """Where a file of an assay lies: beside the reference, in its folder, or in the publisher's zip file."""
    for place in (wanted, f"{folder}/{wanted}", f"{folder}.zip/{folder}/{wanted}", f"{folder}.zip/{wanted}"):
        if source.has(place):
            return place
    return None


def scans(reference: str) -> Callable[[Source], Assays]:
    """Reader of ProteinGym's reference file and one CSV for each scan it names."""

    def read(source: Source) -> Assays:
        collected, absent = Collected(), 0
        for row in rows_of(source, reference, ("DMS_id", "DMS_filename", "target_seq", "UniProt_ID")):
            path = _located(source, row["DMS_filename"], "DMS_ProteinGym_substitutions")
            if path is None:
                absent += 1
                continue
            pairs = [(r["mutant"], number(r["DMS_score"])) for r in rows_of(source, path, ("mutant", "DMS_score"))]
            category = row.get("coarse_selection_type") or ""
            variants, scores = zip(*pairs, strict=True) if pairs else ((), ())
            collected.add(row["DMS_id"], row["UniProt_ID"], category, row["target_seq"], variants, scores)
        notes = [f"{absent} assays of the reference file have no file here"] if absent else []
        return collected.result("ProteinGym substitutions", source, notes)

    return read


def clinical(reference: str) -> Callable[[Source], Assays]:
    """Reader of ProteinGym's clinical reference file and one CSV for each protein it names."""

    def read(source: Source) -> Assays:
        collected, absent = Collected(), 0
        for row in rows_of(source, reference, ("DMS_id", "DMS_filename", "target_seq")):
            path = _located(source, row["DMS_filename"], "clinical_ProteinGym_substitutions")
            if path is None:
                absent += 1
                continue
            found = list(rows_of(source, path, ("mutant", "DMS_bin_score")))
            scores = [CLINICAL.get(r["DMS_bin_score"].strip().lower(), np.nan) for r in found]
            key = row["DMS_id"]
            collected.add(key, key, "", row["target_seq"], [r["mutant"] for r in found], scores)
        notes = [f"{absent} proteins of the reference file have no file here"] if absent else []
        return collected.result("ProteinGym clinical substitutions", source, notes)

    return read


def hub_scans(source: Source) -> Assays:
    """OATML-Markslab/ProteinGym_v1, config DMS_substitutions: all scans in Parquet files."""
    return _hub(source, "DMS_substitutions", ("DMS_id",), ("target_seq",), ("DMS_score",), {}, uniprot_of)


def hub_clinical(source: Source) -> Assays:
    """OATML-Markslab/ProteinGym_v1, config clinical_substitutions."""
    names, sequences = ("protein", "DMS_id", "protein_id"), ("protein_sequence", "target_seq")
    labels = ("DMS_bin_score", "DMS_score_bin")
    return _hub(source, "clinical_substitutions", names, sequences, labels, CLINICAL, lambda key: key)


def _hub(
    source: Source,
    config: str,
    names: tuple[str, ...],
    sequences: tuple[str, ...],
    labels: tuple[str, ...],
    meaning: Mapping[str, float],
    protein: Callable[[str], str],
) -> Assays:
    found: dict[str, tuple[str, list[str], list[float]]] = {}
    for path in source.names(f"{config}/"):
        if not path.endswith(".parquet"):
            continue
        file = pyarrow.parquet.ParquetFile(io.BytesIO(source.read(path)))
        columns = [_present(path, file.schema_arrow.names, group) for group in (names, sequences, ("mutant",), labels)]
        for batch in file.iter_batches(batch_size=1 << 16, columns=columns):
            for key, sequence, mutant, label in zip(*(batch[column].to_pylist() for column in columns), strict=True):
                _, variants, scores = found.setdefault(key, (sequence, [], []))
                variants.append(mutant)
                value = meaning.get(str(label).strip().lower(), np.nan) if meaning else label
                scores.append(np.nan if value is None else float(value))
    collected = Collected()
    for key, (sequence, variants, scores) in found.items():
        collected.add(key, protein(key), "", sequence, variants, scores)
    notes = (
        ()
        if config != "DMS_substitutions"
        else ("the hub's files hold no selection types: the official aggregate takes all assays as one category",)
    )
    return collected.result(f"OATML-Markslab/ProteinGym_v1 {config}", source, notes)


def _present(path: str, columns: Sequence[str], allowed: tuple[str, ...]) -> str:
    for column in allowed:
        if column in columns:
            return column
    raise UserError(f"file {path}: has no column {' or '.join(map(repr, allowed))}; got {', '.join(columns)}")


def single_sites(source: Source) -> Assays:
    """67 scans of single substitutions: `gym_single/mutant/*.csv` with `mutant`, `score`; sequences as FASTA."""
    folder = "ginnm+SingleSiteProteinGYM/gym_single/" if source.has("ginnm+SingleSiteProteinGYM/README.md") else ""
    folder = folder or ("gym_single/" if source.names("gym_single/mutant/") else "")
    categories = _categories(source)
    collected, unknown = Collected(), []
    for path in source.names(f"{folder}mutant/"):
        key = path.rpartition("/")[2].removesuffix(".csv")
        sequence = "".join("".join(lines) for _, _, lines in fasta(source.text(f"{folder}fasta/{key}.fasta")))
        uniprot = uniprot_of(key)
        category = categories.get(_signature(key)) or categories.get(uniprot, "")
        if not category:
            unknown.append(key)
        rows = list(rows_of(source, path, ("mutant", "score")))
        scores = [number(row["score"]) for row in rows]
        collected.add(key, uniprot, category, sequence, [row["mutant"] for row in rows], scores)
    notes = ["scans of single substitutions alone, not the whole benchmark: numbers do not compare with published ones"]
    if unknown and categories:
        notes.append(f"no selection type is known of {', '.join(unknown)}; they are a category of their own")
    return collected.result("ProteinGym single sites", source, notes)


_REFERENCE = "OATML-Markslab+ProteinGym/reference_files/DMS_substitutions.csv"


def _categories(source: Source) -> dict[str, str]:
    """Selection types by an assay's signature, and by protein where all of its assays agree; those that are unique."""
    path = next((p for p in (_REFERENCE, "DMS_substitutions.csv") if source.has(p)), None)
    if path is None:
        return {}
    found: dict[str, set[str]] = {}
    for row in rows_of(source, path, ("DMS_id", "UniProt_ID", "coarse_selection_type")):
        for name in (_signature(row["DMS_id"]), row["UniProt_ID"]):
            found.setdefault(name, set()).add(row["coarse_selection_type"])
    return {name: next(iter(kinds)) for name, kinds in found.items() if len(kinds) == 1}


def _signature(key: str) -> str:
    """Beginnings of an assay's words in alphabetical order: releases order and shorten them differently."""
    return "+".join(sorted(word[:4].lower() for word in key.split("_")))


def fireprot(source: Source) -> Assays:
    """ThermoMPNN's FireProt tables; a variant's score is -ddG, as ddG (kcal/mol) is positive where it destabilises."""
    columns = ("pdb_id_corrected", "uniprot_id", "pdb_sequence", "pdb_position", "wild_type", "mutation", "ddG")
    found: dict[str, tuple[str, str, dict[str, list[float]]]] = {}
    constructs: dict[str, dict[str, int]] = {}
    for path in ("fireprot_train.csv", "fireprot_val.csv", "fireprot_test.csv"):
        if not source.has(path):
            continue
        for row in rows_of(source, path, columns):
            sequence, key = row["pdb_sequence"], row["pdb_id_corrected"]
            at = number(row["pdb_position"])
            name = f"{row['wild_type']}{int(at) + 1}{row['mutation']}" if np.isfinite(at) else ""
            # The same structure with another construct is another wild type.
            place = constructs.setdefault(key, {}).setdefault(sequence, len(constructs[key]) + 1)
            key = key if place == 1 else f"{key}#{place}"
            _, _, values = found.setdefault(key, (sequence, row["uniprot_id"] or key, {}))
            values.setdefault(name, []).append(-number(row["ddG"]))
    collected = Collected()
    for key, (sequence, uniprot, values) in found.items():
        means = [float(np.mean(measured)) for measured in values.values()]
        collected.add(key, uniprot, "", sequence, values, means)
    notes = ("several measurements of one mutation were averaged",)
    return collected.result("ThermoMPNN's FireProt", source, notes)
