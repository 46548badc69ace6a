"""Chains of CASP, CAMEO and other contact benchmarks, from structure files, arrays, or lists of contacts."""

import io
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pyarrow.parquet

from configs.benchmarks import BenchmarksConfig
from configs.errors import UserError
from data_pipeline.structure.chain import ATOM_NAMES, StructureError
from data_pipeline.structure.parse import parse_structure
from eval.clusters import sequence_clusters
from eval.datasets.files import open_files
from eval.datasets.residue_readers import Source, standard
from eval.tasks.protocol import DatasetMissing

STRUCTURES = (".pdb", ".ent", ".cif", ".mmcif", ".bcif")
MIN_RESIDUES = 12
"""Shorter chains have hardly a pair that is far enough apart."""
_SEQUENCES = ("sequence", "seq")
_COORDINATES = ("coordinates", "coords")


@dataclass(frozen=True)
class ContactChain:
    """One chain of N residues: coordinates, or the publisher's own contacts where those are all there is."""

    key: str
    sequence: str
    coordinates: np.ndarray | None
    """float64 [N, 5, 3], Angstrom, NaN where missing."""
    pairs: np.ndarray | None = None
    """int64 [M, 2]: residues in contact, from 0, by the publisher's definition."""
    cluster: int = -1

    def __len__(self) -> int:
        return len(self.sequence)


@dataclass(frozen=True)
class ContactSet:
    """The chains of one benchmark."""

    source: str
    sha256: str
    chains: tuple[ContactChain, ...]
    notes: tuple[str, ...]


def contact_set(name: str, config: BenchmarksConfig) -> ContactSet:
    """Chains of `benchmarks.sources[name]`: a folder or archive of structures, .npz arrays, or Parquet files.

    Raises:
        DatasetMissing: the configuration does not say where it is.
        UserError: nothing there can be used.
    """
    if name not in config.sources:
        raise DatasetMissing(
            f"dataset {name}: its place is not named; set benchmarks.sources.{name}=FOLDER of PDB or mmCIF files, .npz "
            "files with sequence and coordinates, or hf://datasets/proteinglm/contact_prediction_binary"
        )
    found = _read(name, config.sources[name])
    first: dict[str, ContactChain] = {}
    for chain in found.chains:
        cropped = _cropped(chain, config.max_residues)
        first.setdefault(cropped.sequence, cropped)
    distinct = list(first.values())
    if config.max_test is not None and config.max_test < len(distinct):
        drawn = np.sort(np.random.default_rng(0).permutation(len(distinct))[: config.max_test])
        distinct = [distinct[i] for i in drawn]
    clusters = sequence_clusters([chain.sequence for chain in distinct])
    keys: Counter[str] = Counter()
    chains = []
    for chain, cluster in zip(distinct, clusters.tolist(), strict=True):
        keys[chain.key] += 1
        # Files of two folders may have one name.
        key = chain.key if keys[chain.key] == 1 else f"{chain.key}#{keys[chain.key]}"
        chains.append(replace(chain, key=key, cluster=cluster))
    return replace(found, chains=tuple(chains))


@lru_cache(maxsize=4)
def _read(name: str, place: str) -> ContactSet:
    source = Source(open_files(place), "")
    names = source.names()
    structures = [path for path in names if path.lower().removesuffix(".gz").endswith(STRUCTURES)]
    arrays = [path for path in names if path.endswith(".npz")]
    tables = [path for path in names if path.endswith(".parquet") and "test" in path.rpartition("/")[2]]
    if structures:
        chains, notes = _of_structures(source, structures)
        words = "structure files"
    elif arrays:
        chains, notes = [_of_arrays(source, path) for path in arrays], []
        words = "arrays"
    else:
        chains = [chain for path in tables for chain in _of_table(source, path)]
        notes = ["contacts are the publisher's, whatever `contact.preset` and `contact.cutoff` say"]
        words = "lists of contacts"
    chains = [chain for chain in chains if len(chain) >= MIN_RESIDUES]
    if not chains:
        raise UserError(
            f"dataset {name}: {place} holds no chain of {MIN_RESIDUES} residues or more; allowed are PDB and mmCIF "
            "files, .npz files with sequence and coordinates, Parquet files with seq and label"
        )
    return ContactSet(f"{name.upper()}, {words}", source.sha256(), tuple(chains), tuple(notes))


def _of_structures(source: Source, paths: Iterable[str]) -> tuple[list[ContactChain], list[str]]:
    chains, rejected = [], []
    for path in paths:
        try:
            found = parse_structure(source.read(path), path)
        except StructureError as error:
            rejected.append(f"{path} ({error.reason})")
            continue
        chains += [ContactChain(chain.key, chain.sequence, chain.coordinates) for chain in found]
    shown = ", ".join(rejected[:3]) + (", ..." if len(rejected) > 3 else "")
    return chains, [f"{len(rejected)} files cannot be used: {shown}"] if rejected else []


def _of_arrays(source: Source, path: str) -> ContactChain:
    try:
        with np.load(io.BytesIO(source.read(path)), allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"file {path}: no readable .npz of plain arrays ({error})") from None
    sequence = next((str(found[name]) for name in _SEQUENCES if name in found), None)
    if sequence is None:
        raise UserError(f"file {path}: has no array {' or '.join(_SEQUENCES)}; got {', '.join(found)}")
    key = path.rpartition("/")[2].removesuffix(".npz").replace(".", "_")
    given = next((found[name] for name in _COORDINATES if name in found), None)
    if given is not None:
        return ContactChain(key, standard(sequence), _five_atoms(given, len(sequence), path))
    if "contacts" in found and found["contacts"].shape == (len(sequence),) * 2:
        return ContactChain(key, standard(sequence), None, np.argwhere(np.triu(found["contacts"] > 0, 1)))
    raise UserError(
        f"file {path}: needs coordinates [N, 3 to 5, 3] or contacts [N, N] for its {len(sequence)} residues"
    )


def _five_atoms(given: np.ndarray, num_residues: int, path: str) -> np.ndarray:
    """float64 [N, 5, 3] of coordinates [N, A, 3] of the first A of our atoms."""
    if (
        given.ndim != 3
        or len(given) != num_residues
        or not 3 <= given.shape[1] <= len(ATOM_NAMES)
        or given.shape[2] != 3
    ):
        raise UserError(
            f"file {path}: coordinates have shape {list(given.shape)}; allowed is [{num_residues}, A, 3] with the "
            f"first A (3 to 5) of {', '.join(ATOM_NAMES)}"
        )
    whole = np.full((num_residues, len(ATOM_NAMES), 3), np.nan)
    whole[:, : given.shape[1]] = given
    return whole


def _of_table(source: Source, path: str) -> Iterable[ContactChain]:
    """proteinglm/contact_prediction_binary: `seq`, and `label` with [i, j] of every contact."""
    table = pyarrow.parquet.read_table(io.BytesIO(source.read(path)), columns=["seq", "label"])
    stem = path.rpartition("/")[2].partition(".")[0]
    for i, (sequence, label) in enumerate(zip(table["seq"], table["label"], strict=True)):
        pairs = np.array(label.as_py(), dtype=np.int64).reshape(-1, 2)
        letters = standard(sequence.as_py())
        if len(pairs) and not 0 <= pairs.min() <= pairs.max() < len(letters):
            raise UserError(f"file {path}: contacts of row {i} lie beyond its {len(letters)} residues")
        yield ContactChain(f"{stem}_{i}", letters, None, pairs)


def _cropped(chain: ContactChain, max_residues: int) -> ContactChain:
    if len(chain) <= max_residues:
        return chain
    pairs = chain.pairs if chain.pairs is None else chain.pairs[(chain.pairs < max_residues).all(axis=1)]
    coordinates = None if chain.coordinates is None else chain.coordinates[:max_residues]
    return replace(chain, sequence=chain.sequence[:max_residues], coordinates=coordinates, pairs=pairs)
