"""Log-probabilities of the 20 residues at positions of wild types, for the scores of mutations."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import numpy as np
import torch

from eval.masked_rows import masked_rows
from eval.models.batches import SPECIAL_TOKENS, batches_of
from eval.models.checkpoint_model import CheckpointModel
from eval.models.protocol import RESIDUES, Precision, ProteinModel
from eval.models.side_by_side import batch_tokens_on, side_by_side
from eval.shared_layer import SharedLayer

_PEER_BATCHES = 16
"""Batches of copies whose tokens are made at once for models that batch themselves."""

_KEPT_LAYERS = 4
"""First layers of wild types that are remembered: neighbouring batches, on two threads, share one."""


@dataclass(frozen=True)
class WildType:
    """A sequence and where it is mutated."""

    sequence: str
    positions: np.ndarray
    """int64 [M], from 0."""


@dataclass(frozen=True)
class _Copy:
    """One masked copy: a window of a sequence."""

    sequence: int
    start: int
    length: int
    position: int
    """In the whole sequence."""


def marginal_tables(
    model: ProteinModel,
    jobs: Sequence[WildType],
    scoring: str,
    window: int,
    batch_tokens: int,
    precision: Precision = "float32",
) -> list[np.ndarray]:
    """Per job float64 [L, 20]: log p of each residue type at the asked positions, NaN elsewhere; columns as RESIDUES.

    Args:
        scoring: `masked`: every asked position is masked in turn; `wildtype`: nothing is masked.
        window: residues that the model sees of a longer protein: for masked positions those around the position,
            moved inwards at the ends; for `wildtype` the one in which the position is most central of windows that
            overlap by half.
        batch_tokens: of one forward pass.

    Sequences that stand in several jobs are computed once, each position once.

    Raises:
        NotSupported: the model has no such likelihoods.
    """
    model = model.at(precision)
    sequences = list(dict.fromkeys(job.sequence for job in jobs))
    number = {sequence: i for i, sequence in enumerate(sequences)}
    asked: list[set[int]] = [set() for _ in sequences]
    for job in jobs:
        asked[number[job.sequence]].update(job.positions.tolist())
    positions = [np.array(sorted(chosen), dtype=np.int64) for chosen in asked]
    for sequence, chosen in zip(sequences, positions, strict=True):
        assert len(chosen) == 0 or 0 <= chosen[0] <= chosen[-1] < len(sequence), "positions lie in their sequence"
    tables = [np.full((len(sequence), len(RESIDUES)), np.nan) for sequence in sequences]
    if scoring == "wildtype":
        _fill_unmasked(model, sequences, positions, window, tables)
    else:
        copies = [
            _Copy(i, window_start(int(p), len(sequence), window), min(window, len(sequence)), int(p))
            for i, (sequence, chosen) in enumerate(zip(sequences, positions, strict=True))
            for p in chosen
        ]
        with torch.no_grad():
            for batch, log_probs in _masked(model, sequences, copies, batch_tokens):
                for copy, row in zip(batch, log_probs, strict=True):
                    tables[copy.sequence][copy.position] = row
    return [_of_positions(tables[number[job.sequence]], job.positions) for job in jobs]


def window_start(position: int, length: int, window: int) -> int:
    """Where the window around a position begins, inside a sequence of `length` residues."""
    return max(0, min(position - window // 2, length - window))


def _of_positions(table: np.ndarray, positions: np.ndarray) -> np.ndarray:
    own = np.full_like(table, np.nan)
    own[positions] = table[positions]
    return own


def _fill_unmasked(
    model: ProteinModel,
    sequences: Sequence[str],
    positions: Sequence[np.ndarray],
    window: int,
    tables: Sequence[np.ndarray],
) -> None:
    """One pass over each window that an asked position is taken from."""
    wanted: dict[tuple[int, int], list[int]] = {}
    for i, (sequence, chosen) in enumerate(zip(sequences, positions, strict=True)):
        last = max(0, len(sequence) - window)
        starts = np.unique(np.append(np.arange(0, last + 1, max(1, window // 2)), last))
        for p in chosen:
            # Ties go to the earlier window.
            start = starts[np.argmin(np.abs(starts + (min(window, len(sequence)) - 1) / 2 - p))]
            wanted.setdefault((i, int(start)), []).append(int(p))
    parts = [sequences[i][start : start + window] for i, start in wanted]
    for ((i, start), chosen), log_probs in zip(wanted.items(), model.log_probs(parts), strict=True):
        tables[i][chosen] = log_probs.double().numpy()[np.array(chosen) - start]


def _masked(
    model: ProteinModel, sequences: Sequence[str], copies: Sequence[_Copy], batch_tokens: int
) -> Iterator[tuple[Sequence[_Copy], np.ndarray]]:
    """Copies that went through the model together, and their float64 [B, 20]."""
    if not isinstance(model, CheckpointModel):
        for batch in _batches(copies, batch_tokens * _PEER_BATCHES):
            jobs = [(_window(sequences, copy), np.array([copy.position - copy.start])) for copy in batch]
            yield batch, torch.cat(model.masked_log_probs(jobs)).double().numpy()
        return
    batches = list(_batches(copies, batch_tokens_on(model.device, batch_tokens)))
    rows = side_by_side(_OwnMarginals(model, sequences), batches, model.device)
    yield from zip(batches, rows, strict=True)


def _batches(copies: Sequence[_Copy], batch_tokens: int) -> Iterator[list[_Copy]]:
    """The longest first, copies of one window side by side."""
    for batch in batches_of([copy.length + SPECIAL_TOKENS for copy in copies], batch_tokens):
        yield [copies[i] for i in batch]


class _OwnMarginals:
    """Float64 [B, 20] of copies, by our own trunk; what copies of a window share is kept from batch to batch."""

    def __init__(self, model: CheckpointModel, sequences: Sequence[str]) -> None:
        self._model, self._sequences = model, sequences
        self._layer = lru_cache(_KEPT_LAYERS)(self._computed_layer)

    def __call__(self, copies: Sequence[_Copy]) -> np.ndarray:
        groups = []
        for window, group in groupby(copies, key=lambda copy: (copy.sequence, copy.start, copy.length)):
            groups.append((self._layer(*window), [copy.position - copy.start + 1 for copy in group]))
        rows = masked_rows(self._model.encoder, groups)
        return self._model.residue_log_probs(rows).double().cpu().numpy()

    def _computed_layer(self, sequence: int, start: int, length: int) -> SharedLayer:
        tokens = self._model.tokens_of(self._sequences[sequence][start : start + length])
        return SharedLayer.of(self._model.encoder, tokens)


def _window(sequences: Sequence[str], copy: _Copy) -> str:
    return sequences[copy.sequence][copy.start : copy.start + copy.length]
