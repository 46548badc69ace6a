"""From samples to a `Batch`: crop, tokenise, mask; vectorised over all chains of a rank's share of a pool."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from data_pipeline.schema import Sample, threedi_codes
from data_pipeline.structure.chain import AMINO_ACIDS
from pretrain.batch import Batch, Packed
from pretrain.sampler import Crop, keyed_bits


class Tokens(Protocol):
    """What collation needs of an alphabet."""

    cls_id: int
    eos_id: int
    mask_id: int

    def encode(self, sequence: str) -> np.ndarray: ...


@dataclass(frozen=True)
class Item:
    """One crop with what is known about its chain."""

    crop: Crop
    sample: Sample
    cluster: int
    teacher: np.ndarray | None
    """float [chain residues, E]: frozen teacher embeddings of the whole chain."""


def collate(
    items: Sequence[Item],
    alphabet: Tokens,
    mask_fraction: float,
    seed: int,
    epoch: int,
    mask_unreliable: bool = True,
) -> Batch:
    """Lay the crops end to end and mask `mask_fraction` of each one's standard residues (at least one).

    Masks are keyed by (seed, epoch, sample), so a chain gets the same mask on any rank of any world. A masked residue
    always becomes `<mask>` (no 80/10/10); unknown residues (`X`) are never masked, as their target says nothing.

    Args:
        mask_unreliable: residues that the shards mark as unreliable have no 3Di state and no part in the contrast.
    """
    assert items, "a rank's share of a pool is never empty"
    numbers, starts, lengths = np.array([item.crop for item in items]).T
    cuts = [slice(start, start + length) for _, start, length in (item.crop for item in items)]
    sequences = [item.sample.sequence[cut] for item, cut in zip(items, cuts, strict=True)]
    # Two letters stand between sequences, and one at either end, where the special tokens go.
    tokens = alphabet.encode(f"X{'XX'.join(sequences)}X")
    first_token = (lengths + 2).cumsum() - lengths - 2
    tokens[first_token] = alphabet.cls_id
    tokens[first_token + lengths + 1] = alphabet.eos_id
    residue_index = np.arange(len(tokens) - 2 * len(items)) + (2 * np.arange(len(items)) + 1).repeat(lengths)

    noise = keyed_bits(seed, epoch, numbers, starts, lengths)
    letters = "".join(sequences).encode("ascii", errors="replace")
    standard = _STANDARD[np.frombuffer(letters, dtype=np.uint8)]
    masked_index = residue_index[_lowest(noise, lengths, standard, mask_fraction)]
    masked_target = tokens[masked_index]
    tokens[masked_index] = alphabet.mask_id

    valid, threedi = _structure(items, cuts, mask_unreliable)
    teacher = None
    if items[0].teacher is not None:
        teacher = np.concatenate([item.teacher[cut] for item, cut in zip(items, cuts, strict=True)]).astype(np.float32)
        valid &= teacher.any(axis=1)
        teacher[~valid] = 0
    bfactor = np.concatenate([item.sample.bfactor[cut] for item, cut in zip(items, cuts, strict=True)])
    return Batch(
        packed=Packed(torch.from_numpy(tokens), tuple((lengths + 2).tolist())),
        masked_index=torch.from_numpy(masked_index),
        masked_target=torch.from_numpy(masked_target),
        residue_index=torch.from_numpy(residue_index),
        threedi=torch.from_numpy(threedi.astype(np.int64)),
        structure_valid=torch.from_numpy(valid),
        teacher=None if teacher is None else torch.from_numpy(teacher),
        protein=torch.from_numpy(numbers.repeat(lengths)),
        cluster=torch.from_numpy(np.array([item.cluster for item in items]).repeat(lengths)),
        bfactor=torch.from_numpy(bfactor.astype(np.float32, copy=False)),
    )


def _structure(items: Sequence[Item], cuts: Sequence[slice], mask_unreliable: bool) -> tuple[np.ndarray, np.ndarray]:
    """Of all crops end to end: which residues have a structure (bool [N]) and their 3Di states (int8 [N], -1: none)."""
    pairs = [(item.sample, cut) for item, cut in zip(items, cuts, strict=True)]
    valid = np.concatenate([sample.valid[cut] for sample, cut in pairs])
    letters = "".join([sample.threedi[cut] for sample, cut in pairs])
    has_state = np.concatenate([sample.threedi_valid[cut] for sample, cut in pairs])
    if mask_unreliable and any(sample.reliable is not None for sample, _ in pairs):
        parts = [np.ones(len(s.valid), dtype=bool)[cut] if s.reliable is None else s.reliable[cut] for s, cut in pairs]
        reliable = np.concatenate(parts)
        valid &= reliable
        has_state &= reliable
    return valid, threedi_codes(letters, has_state)


def _lowest(noise: np.ndarray, lengths: np.ndarray, eligible: np.ndarray, fraction: float) -> np.ndarray:
    """Sorted int64 indices of the residues of lowest noise: in each chain `fraction` of the eligible, at least one.

    Args:
        noise: uint64 [N].
        lengths: int64 [P], residues of each chain.
    """
    ends = lengths.cumsum()
    starts = ends - lengths
    all_eligible = bool(eligible.all())
    num_eligible = lengths if all_eligible else np.add.reduceat(eligible, starts, dtype=np.int64)
    ordered = noise.copy() if all_eligible else np.where(eligible, noise, _AFTER_ALL)
    limits = []
    for start, end, number in zip(starts.tolist(), ends.tolist(), num_eligible.tolist(), strict=True):
        part = ordered[start:end]
        # Sorting values is many times faster than sorting indices.
        part.sort()
        limits.append(part.item(min(number, max(1, round(fraction * number))) - 1) if number else 0)
    lowest = noise <= np.array(limits, dtype=np.uint64).repeat(lengths)
    return np.flatnonzero(lowest if all_eligible else lowest & eligible)


_AFTER_ALL = np.uint64(np.iinfo(np.uint64).max)
_STANDARD = np.zeros(256, dtype=bool)
_STANDARD[np.frombuffer(AMINO_ACIDS.encode(), dtype=np.uint8)] = True
"""Bytes that are letters of standard residues."""
