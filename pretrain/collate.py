"""From samples to a `Batch`: crop, tokenise, mask; vectorised over all chains of a rank's share of a pool."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from data_pipeline.schema import Sample, threedi_codes
from data_pipeline.structure.chain import AMINO_ACIDS
from pretrain.batch import Batch, Packed, ReferenceRows
from pretrain.sampler import Crop, keyed_bits
from pretrain.secondary_states import residue_states

STRUCTURE_LOSS = "structure_loss"
REFERENCE_SIDES = ("sequence.", "structure.")
"""Beginnings of the names of arrays in a derived column of the reference model; the teacher's number follows."""


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
    more_teachers: tuple[np.ndarray, ...] = ()
    """The same of further teachers."""
    reference: Mapping[str, np.ndarray] | None = None
    """Arrays of the whole chain in a derived column of the reference model."""


def collate(
    items: Sequence[Item],
    alphabet: Tokens,
    mask_fraction: float,
    seed: int,
    epoch: int,
    mask_unreliable: bool = True,
    describe: bool = False,
) -> Batch:
    """Lay the crops end to end and mask `mask_fraction` of each one's standard residues (at least one).

    Masks are keyed by (seed, epoch, sample), so a chain gets the same mask on any rank of any world. A masked residue
    always becomes `<mask>` (no 80/10/10); unknown residues (`X`) are never masked, as their target says nothing.

    Args:
        mask_unreliable: residues that the shards mark as unreliable have no 3Di state and no part in the contrast.
        describe: also give pLDDT, B-factor and secondary structure, for reports on what is selected.
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
    teacher = _teacher(items, cuts, valid)
    return Batch(
        packed=Packed(torch.from_numpy(tokens), tuple((lengths + 2).tolist())),
        masked_index=torch.from_numpy(masked_index),
        masked_target=torch.from_numpy(masked_target),
        residue_index=torch.from_numpy(residue_index),
        threedi=torch.from_numpy(threedi.astype(np.int64)),
        structure_valid=torch.from_numpy(valid),
        teacher=teacher,
        protein=torch.from_numpy(numbers.repeat(lengths)),
        cluster=torch.from_numpy(np.array([item.cluster for item in items]).repeat(lengths)),
        reference=_reference(items, cuts),
        **(_description(items, cuts) if describe else {}),
    )


def _teacher(items: Sequence[Item], cuts: Sequence[slice], valid: np.ndarray) -> Tensor | None:
    """float32 [N, E] of all teachers; a residue that one of them does not embed is no longer `valid` (changed)."""
    if items[0].teacher is None:
        return None
    chains = [((item.teacher, *item.more_teachers), cut) for item, cut in zip(items, cuts, strict=True)]
    parts = [np.concatenate([rows[k][cut] for rows, cut in chains]) for k in range(len(chains[0][0]))]
    for rows in parts:
        valid &= rows.any(axis=1)
    teacher = np.concatenate(parts, axis=1, dtype=np.float32) if len(parts) > 1 else parts[0].astype(np.float32)
    teacher[~valid] = 0
    return torch.from_numpy(teacher)


def _reference(items: Sequence[Item], cuts: Sequence[slice]) -> ReferenceRows | None:
    if items[0].reference is None:
        return None
    joined = {
        name: torch.from_numpy(
            np.concatenate([item.reference[name][cut] for item, cut in zip(items, cuts, strict=True)])
        )
        for name in items[0].reference
    }
    sides = [tuple(joined[name] for name in sorted(joined) if name.startswith(side)) for side in REFERENCE_SIDES]
    return ReferenceRows(joined.get(STRUCTURE_LOSS), *sides)


def _description(items: Sequence[Item], cuts: Sequence[slice]) -> dict[str, Tensor]:
    """The fields of a batch by which a selection is reported."""
    pairs = [(item.sample, cut) for item, cut in zip(items, cuts, strict=True)]
    lengths = [item.crop.length for item in items]
    confidence = np.concatenate([sample.bfactor[cut] for sample, cut in pairs]).astype(np.float32, copy=False)
    predicted = np.array([sample.facts.get("method") == "predicted" for sample, _ in pairs]).repeat(lengths)
    unknown = np.float32(np.nan)
    return {
        "plddt": torch.from_numpy(np.where(predicted, confidence, unknown)),
        "bfactor": torch.from_numpy(np.where(predicted, unknown, confidence)),
        "secondary": torch.from_numpy(residue_states(pairs)),
    }


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
