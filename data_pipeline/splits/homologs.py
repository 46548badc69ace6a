"""Search for homologs of given sequences by k-mers and alignment, where MMseqs2 is not at hand."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from data_pipeline.splits.kmers import encode, similar_pairs

SEED_LETTERS = 5
QUERIES_PER_BLOCK = 2**13
BAND = 64
"""Residues by which an alignment may stray from the diagonals of the shared k-mers."""
GAP_PENALTY = (-11, -1)


@dataclass(frozen=True)
class Hits:
    """Alignments of H pairs, in order of query, then target."""

    query: np.ndarray
    """int64 [H], place of the query in its set."""
    target: np.ndarray
    """int64 [H]."""
    identity: np.ndarray
    """float32 [H], identical residues over aligned columns."""
    coverage: np.ndarray
    """float32 [H], aligned fraction of the better covered, i.e. shorter, sequence."""


def search_by_kmers(queries: Iterable[str], targets: Sequence[str], min_identity: float, coverage: float) -> Hits:
    """Alignments of queries with targets of at least this identity, covering this fraction of the shorter sequence.

    Pairs that share a spaced k-mer on a diagonal of improbable score are aligned (Smith-Waterman, BLOSUM62, in a band
    about those diagonals). Queries are read once, some thousands at a time.
    """
    letters = encode(targets)
    found = []
    for start, block in _blocks(queries):
        query, target, diagonal = similar_pairs(encode(block), letters, SEED_LETTERS)
        for q, t, low, high in _pairs(query, target, diagonal):
            # The diagonal is position in query minus position in target; the band is counted the other way.
            identity, covered = _align(block[q], targets[t], (-high - BAND, -low + BAND))
            if identity >= min_identity and covered >= coverage:
                found.append((start + q, t, identity, covered))
    columns = np.array(found, dtype=np.float64).reshape(-1, 4).T
    return Hits(
        columns[0].astype(np.int64),
        columns[1].astype(np.int64),
        columns[2].astype(np.float32),
        columns[3].astype(np.float32),
    )


def _blocks(queries: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    left, start = iter(queries), 0
    while block := list(islice(left, QUERIES_PER_BLOCK)):
        yield start, block
        start += len(block)


def _pairs(query: np.ndarray, target: np.ndarray, diagonal: np.ndarray) -> Iterator[tuple[int, int, int, int]]:
    """Each pair once, with its least and greatest diagonal; the pairs come in order."""
    first = np.flatnonzero(np.append(True, (np.diff(query) != 0) | (np.diff(target) != 0))[: len(query)])
    if len(first):
        low, high = np.minimum.reduceat(diagonal, first), np.maximum.reduceat(diagonal, first)
        yield from zip(query[first].tolist(), target[first].tolist(), low.tolist(), high.tolist(), strict=True)


def _align(query: str, target: str, band: tuple[int, int]) -> tuple[float, float]:
    """Identity over aligned columns, and the greater of the fractions of either sequence that the columns span."""
    from biotite.sequence import ProteinSequence
    from biotite.sequence.align import SubstitutionMatrix, align_banded

    matrix = SubstitutionMatrix.std_protein_matrix()
    pair = (ProteinSequence(query), ProteinSequence(target))
    trace = align_banded(*pair, matrix, band, gap_penalty=GAP_PENALTY, local=True, max_number=1)[0].trace
    codes = [sequence.code[trace[:, side]] for side, sequence in enumerate(pair)]
    identical = (codes[0] == codes[1]) & (trace >= 0).all(axis=1)
    spans = [np.ptp(trace[trace[:, side] >= 0, side]) + 1 for side in (0, 1)]
    return float(identical.mean()), float(max(spans[0] / len(query), spans[1] / len(target)))
