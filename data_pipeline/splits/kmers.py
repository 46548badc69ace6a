"""Homologous sequences without other programs: shared spaced k-mers, then ungapped alignment along their diagonal.

Where MMseqs2 is not installed, this finds the links between chains that clusters are made of. On 4,565 real chains,
0.998 of the pairs that MMseqs2 links at its highest sensitivity end in one cluster here (precision 0.87, the largest
of 317 as there), in an eighth of its time: `python -m tests.benchmarks.clusters`, docs/splits.md.

A spaced k-mer (seed) samples letters of a window, so that it survives a substitution between them. Chains that share
a seed are compared along the diagonal on which they share it, by BLOSUM62; a pair is linked when its best segment is
improbable by chance (Karlin and Altschul, PNAS 1990: E = K m n exp(-lambda S)).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from data_pipeline.splits.components import merge_clusters
from data_pipeline.structure.chain import AMINO_ACIDS, UNKNOWN_RESIDUE

SEEDS = {
    4: ("11011", "101001001"),
    5: ("11101001", "110101001", "1100100011", "10110011"),
    6: ("1101011", "111010011", "11001010011", "1110010011"),
}
"""Sampled letters (1) of the windows, by number of letters."""
MAX_PARTNERS = 16
"""Every occurrence of a seed is compared with so many before it, by length of chain: the cost stays linear."""
MAX_EVALUE = 1e-3
LAMBDA, KAPPA = 0.3176, 0.134
"""Karlin and Altschul's parameters of ungapped BLOSUM62 scores."""
OCCURRENCES_PER_BLOCK = 2**18
CELLS_PER_BATCH = 2**21
FLANK = 20
"""Residues on either side of a seed that are looked at first."""
MIN_FLANK_SCORE = 25
"""A seed whose surroundings score less is chance: in real chains this drops most candidates and no link that counts."""

_UNKNOWN, _END = len(AMINO_ACIDS), len(AMINO_ACIDS) + 1
_ENDS_BETWEEN = 4
"""More than the longest run of unsampled letters in a seed, so that no seed reaches from one chain into the next."""
_CODE_OF_BYTE = np.full(256, _UNKNOWN, dtype=np.uint8)
_CODE_OF_BYTE[np.frombuffer(AMINO_ACIDS.encode(), dtype=np.uint8)] = np.arange(len(AMINO_ACIDS))


@dataclass(frozen=True)
class Letters:
    """S sequences as one line of letter codes, with end marks before, between and after them."""

    codes: np.ndarray
    """uint8: index into AMINO_ACIDS, 20 for any other residue, 21 for an end mark."""
    starts: np.ndarray
    """int64 [S], where each sequence begins in `codes`."""
    lengths: np.ndarray
    """int64 [S]."""

    def owner(self, positions: np.ndarray) -> np.ndarray:
        """int64, the sequence that each position of `codes` lies in."""
        return np.searchsorted(self.starts, positions, side="right") - 1


def encode(sequences: Sequence[str]) -> Letters:
    """Letter codes of sequences in the given order."""
    between = "\0" * _ENDS_BETWEEN
    text = (between + between.join(sequences) + between).encode("ascii", "replace")
    lengths = np.fromiter(map(len, sequences), dtype=np.int64, count=len(sequences))
    raw = np.frombuffer(text, dtype=np.uint8)
    codes = np.where(raw == 0, np.uint8(_END), _CODE_OF_BYTE[raw])
    return Letters(codes, _ENDS_BETWEEN + np.cumsum(lengths + _ENDS_BETWEEN) - lengths - _ENDS_BETWEEN, lengths)


def cluster_by_kmers(sequences: Sequence[str], kmer: int, min_length_ratio: float) -> np.ndarray:
    """int64 [S]: connected components of the links between distinct sequences; their numbers mean nothing.

    Args:
        sequences: distinct; the components do not depend on their order.
        kmer: letters of a seed, a key of `SEEDS`.
        min_length_ratio: chains are linked only where the shorter one has this fraction of the longer one's length,
            without which no alignment can cover that fraction of both; 0: any lengths.

    No link is parted. Of the chains that share one seed, each is compared with the `MAX_PARTNERS` that are next
    longer, so cost is linear in residues; links that are missed so are mostly regained through other seeds and chains.
    """
    # Longest first, so that the neighbours of an occurrence are of like length; by letters, so that order is settled.
    order = np.array(sorted(range(len(sequences)), key=lambda i: (-len(sequences[i]), sequences[i])), dtype=np.int64)
    letters = encode([sequences[i] for i in order])
    labels = np.arange(len(order))
    for pattern in SEEDS[kmer]:
        seeds, positions = _seeds(letters.codes, pattern)
        by_seed = np.argsort(seeds, kind="stable")
        seeds, positions = seeds[by_seed], positions[by_seed]
        owners = letters.owner(positions)
        for first, second in _shared(seeds, owners):
            apart = labels[owners[first]] != labels[owners[second]]
            # `second` comes earlier in the order, so it is the longer chain.
            longer = letters.lengths[owners[second]]
            fits = apart & (letters.lengths[owners[first]] >= np.round(min_length_ratio * longer, 9))
            first, second = first[fits], second[fits]
            links = _linked(letters, letters, positions[first], positions[second], len(pattern))
            labels = merge_clusters(labels, *links[:2])
    result = np.empty(len(order), dtype=np.int64)
    result[order] = labels
    return result


def similar_pairs(
    queries: Letters, targets: Letters, kmer: int, max_partners: int = 4 * MAX_PARTNERS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Query, target and diagonal (position in query minus position in target) of pairs that are similar beyond chance.

    A pair stands once for every diagonal on which it is; pairs come in order of query, then target.
    """
    found = []
    for pattern in SEEDS[kmer]:
        wanted, at_target = _seeds(targets.codes, pattern)
        by_seed = np.argsort(wanted, kind="stable")
        wanted, at_target = wanted[by_seed], at_target[by_seed]
        seeds, at_query = _seeds(queries.codes, pattern)
        left = np.searchsorted(wanted, seeds, side="left")
        number = np.minimum(np.searchsorted(wanted, seeds, side="right") - left, max_partners)
        step = OCCURRENCES_PER_BLOCK * MAX_PARTNERS // max_partners
        for block in range(0, len(seeds), step):
            part = slice(block, block + step)
            rows = np.repeat(np.arange(len(seeds))[part], number[part])
            nth = np.arange(len(rows)) - np.repeat(np.cumsum(number[part]) - number[part], number[part])
            found.append(_linked(queries, targets, at_query[rows], at_target[left[rows] + nth], len(pattern)))
    pairs = np.unique(np.concatenate([np.stack(f) for f in found], axis=1), axis=1)
    return pairs[0], pairs[1], pairs[2]


def _seeds(codes: np.ndarray, pattern: str) -> tuple[np.ndarray, np.ndarray]:
    """uint32 seeds made of standard residues only, and the int64 position at which each begins."""
    windows = max(len(codes) - len(pattern) + 1, 0)
    seeds, whole = np.zeros(windows, dtype=np.uint32), np.ones(windows, dtype=bool)
    for offset in (i for i, sampled in enumerate(pattern) if sampled == "1"):
        letters = codes[offset : offset + windows]
        seeds = seeds * np.uint32(_UNKNOWN) + letters
        whole &= letters < _UNKNOWN
    positions = np.flatnonzero(whole)
    return seeds[positions], positions


def _shared(seeds: np.ndarray, owners: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of occurrences (indices into the sorted seeds) of one seed in two chains, block by block."""
    for start in range(0, len(seeds), OCCURRENCES_PER_BLOCK):
        pairs = []
        for distance in range(1, MAX_PARTNERS + 1):
            first = np.arange(max(start, distance), min(start + OCCURRENCES_PER_BLOCK, len(seeds)))
            first = first[seeds[first] == seeds[first - distance]]
            pairs.append(np.stack([first, first - distance]))
        first, second = np.concatenate(pairs, axis=1)
        apart = owners[first] != owners[second]
        yield first[apart], second[apart]


def _linked(
    queries: Letters, targets: Letters, at_query: np.ndarray, at_target: np.ndarray, span: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Query, target and diagonal of the candidates (positions of a shared seed) that are similar beyond chance."""
    before, after = np.full(len(at_query), FLANK), np.full(len(at_query), FLANK + span)
    near = _best_segment(queries, targets, at_query, at_target, before, after) >= MIN_FLANK_SCORE
    at_query, at_target = at_query[near], at_target[near]
    query, target = queries.owner(at_query), targets.owner(at_target)
    into_query, into_target = at_query - queries.starts[query], at_target - targets.starts[target]
    # Several seeds of one diagonal lead to the same alignment.
    triple = np.stack([query, target, into_query - into_target])
    triple, chosen = np.unique(triple, axis=1, return_index=True)
    query, target, diagonal = triple
    before = np.minimum(into_query, into_target)[chosen]
    after = np.minimum(queries.lengths[query] - into_query[chosen], targets.lengths[target] - into_target[chosen])
    scores = _best_segment(queries, targets, at_query[chosen], at_target[chosen], before, after)
    space = queries.lengths[query].astype(np.float64) * targets.lengths.sum()
    linked = KAPPA * space * np.exp(-LAMBDA * scores) <= MAX_EVALUE
    return query[linked], target[linked], diagonal[linked]


def _best_segment(
    queries: Letters,
    targets: Letters,
    at_query: np.ndarray,
    at_target: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
) -> np.ndarray:
    """int64, largest BLOSUM62 sum of a run within [-before, after) of two positions; end marks part the runs."""
    best = np.zeros(len(at_query), dtype=np.int64)
    widths = before + after
    order = np.argsort(widths, kind="stable")
    start = 0
    while start < len(order):
        # Sorted by width, so the first one tells about how many rows fill a batch, and little is padded.
        rows = order[start : start + max(CELLS_PER_BATCH // max(int(widths[order[start]]), 1), 1)]
        rows = rows[: max(CELLS_PER_BATCH // max(int(widths[rows[-1]]), 1), 1)]
        start += len(rows)
        along = np.arange(widths[rows[-1]])
        columns = along - before[rows][:, None]
        x = queries.codes[np.clip(at_query[rows][:, None] + columns, 0, len(queries.codes) - 1)]
        y = targets.codes[np.clip(at_target[rows][:, None] + columns, 0, len(targets.codes) - 1)]
        scores = np.where(along < widths[rows][:, None], _scores()[x, y], 0).astype(np.int32)
        sums = np.cumsum(scores, axis=1, dtype=np.int32)
        lowest = np.minimum.accumulate(sums, axis=1)
        best[rows] = np.maximum((sums[:, 1:] - np.minimum(lowest[:, :-1], 0)).max(axis=1, initial=0), sums[:, 0])
    return best


@cache
def _scores() -> np.ndarray:
    """int16 [22, 22]: BLOSUM62 over our letters; an end mark scores so low that no run crosses it."""
    from biotite.sequence.align import SubstitutionMatrix

    matrix = SubstitutionMatrix.std_protein_matrix()
    columns = [matrix.get_alphabet1().encode(letter) for letter in AMINO_ACIDS + UNKNOWN_RESIDUE]
    scores = np.full((_END + 1, _END + 1), -1000, dtype=np.int16)
    scores[:_END, :_END] = matrix.score_matrix()[np.ix_(columns, columns)]
    return scores
