"""From samples to a `Batch`: crop, tokenise, mask; vectorised over all chains of a rank's share of a pool."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from data_pipeline.schema import Sample
from data_pipeline.structure.chain import AMINO_ACIDS
from pretrain.batch import Batch, Packed
from pretrain.sampler import Crop, keyed_uniform


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


def collate(items: Sequence[Item], alphabet: Tokens, mask_fraction: float, seed: int, epoch: int) -> Batch:
    """Lay the crops end to end and mask `mask_fraction` of each one's standard residues (at least one).

    Masks are keyed by (seed, epoch, sample), so a chain gets the same mask on any rank of any world. A masked residue
    always becomes `<mask>` (no 80/10/10); unknown residues (`X`) are never masked, as their target says nothing.
    """
    assert items, "a rank's share of a pool is never empty"
    lengths = np.array([item.crop.length for item in items])
    residues = np.concatenate([alphabet.encode(_cut(item.crop, item.sample.sequence)) for item in items])
    chain = np.repeat(np.arange(len(items)), lengths)
    place = np.arange(len(residues)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    residue_index = np.arange(len(residues)) + 2 * chain + 1
    tokens = np.full(len(residues) + 2 * len(items), alphabet.eos_id, dtype=np.int64)
    tokens[np.cumsum(lengths + 2) - lengths - 2] = alphabet.cls_id
    tokens[residue_index] = residues

    numbers = np.array([item.crop.sample for item in items])
    starts = np.array([item.crop.start for item in items])
    noise = keyed_uniform(seed, epoch, numbers[chain], place + starts[chain] + 1)
    standard = np.isin(residues, alphabet.encode(AMINO_ACIDS))
    masked = _lowest(np.where(standard, noise, np.inf), chain, standard, mask_fraction)
    tokens[residue_index[masked]] = alphabet.mask_id

    valid = np.concatenate([_cut(item.crop, item.sample.valid) for item in items])
    teacher = None
    if items[0].teacher is not None:
        teacher = np.concatenate([_cut(item.crop, item.teacher) for item in items]).astype(np.float32)
        valid = valid & teacher.any(axis=1)
        teacher[~valid] = 0
    return Batch(
        packed=Packed(torch.from_numpy(tokens), tuple((lengths + 2).tolist())),
        masked_index=torch.from_numpy(residue_index[masked]),
        masked_target=torch.from_numpy(residues[masked]),
        residue_index=torch.from_numpy(residue_index),
        threedi=torch.from_numpy(np.concatenate([_cut(i.crop, i.sample.threedi_states()) for i in items])),
        structure_valid=torch.from_numpy(valid),
        teacher=None if teacher is None else torch.from_numpy(teacher),
        protein=torch.from_numpy(numbers[chain]),
        cluster=torch.from_numpy(np.array([item.cluster for item in items])[chain]),
        bfactor=torch.from_numpy(np.concatenate([_cut(i.crop, i.sample.bfactor) for i in items]).astype(np.float32)),
    )


def _cut(crop: Crop, rows):
    return rows[crop.start : crop.start + crop.length]


def _lowest(noise: np.ndarray, chain: np.ndarray, eligible: np.ndarray, fraction: float) -> np.ndarray:
    """Sorted int64 indices of the residues of lowest noise: in each chain `fraction` of the eligible, at least one."""
    num_eligible = np.bincount(chain, weights=eligible).astype(np.int64)
    wanted = np.minimum(num_eligible, np.maximum(1, np.rint(fraction * num_eligible).astype(np.int64)))
    order = np.lexsort((noise, chain))
    num_residues = np.bincount(chain)
    rank = np.arange(len(chain)) - np.repeat(np.cumsum(num_residues) - num_residues, num_residues)
    return np.sort(order[rank < wanted[chain[order]]])
