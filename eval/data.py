"""Chains to evaluate on, as tasks see them: cropped, in Angstrom, with labels from coordinates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from configs.errors import UserError
from configs.evaluate import EvalDataConfig
from data_pipeline.schema import Sample
from data_pipeline.structure.secondary import secondary_structure


@dataclass(frozen=True)
class Example:
    """One chain of N residues, cropped to its first `max_residues`."""

    key: str
    sequence: str
    coordinates: np.ndarray
    """float64 [N, 5, 3], Angstrom, NaN where missing."""
    threedi: np.ndarray
    """int64 [N]: 3Di state, -1 where not valid."""
    secondary: np.ndarray
    """int64 [N]: 0 helix, 1 strand, 2 coil, -1 where it cannot be assigned."""
    cluster: int

    def __len__(self) -> int:
        return len(self.sequence)


@dataclass(frozen=True)
class EvalData:
    """Chains of the held-out split, and of the split that probes are fitted on."""

    manifest_sha256: str
    test: tuple[Example, ...]
    fit: tuple[Example, ...]
    split: str = "test"
    """Name of the held-out split."""


class Shards(Protocol):
    """What evaluation needs of a shard reader."""

    @property
    def manifest_sha256(self) -> str: ...

    @property
    def splits(self) -> Sequence[str]: ...

    def index(self, split: str) -> object: ...

    def sample(self, split: str, i: int) -> Sample: ...


def load_data(reader: Shards, config: EvalDataConfig, seed: int) -> EvalData:
    """Read both splits; where a limit holds, a subset drawn once from `seed`, so that checkpoints share it.

    Raises:
        UserError: a split does not exist or is empty, or both are the same.
    """
    if config.split == config.fit_split:
        raise UserError(
            f"data.split and data.fit_split are both {config.split!r}; probes must be fitted on another split"
        )
    test = _load_split(reader, config.split, config.max_residues, config.max_test_chains, seed)
    fit = _load_split(reader, config.fit_split, config.max_residues, config.max_fit_chains, seed)
    shared = {example.cluster for example in test} & {example.cluster for example in fit}
    if shared:
        raise UserError(
            f"shards: {len(shared)} sequence clusters stand in both {config.split!r} and {config.fit_split!r}; "
            "build the shards again"
        )
    return EvalData(reader.manifest_sha256, test, fit, config.split)


def example_of(sample: Sample, max_residues: int) -> Example:
    """Labels come from the whole chain, then everything is cropped: a crop does not cut hydrogen bonds."""
    coordinates = sample.angstrom()
    secondary = secondary_structure(coordinates, sample.sequence)
    n = min(len(sample), max_residues)
    return Example(
        key=sample.key,
        sequence=sample.sequence[:n],
        coordinates=coordinates[:n],
        threedi=sample.threedi_states()[:n],
        secondary=secondary[:n],
        cluster=sample.cluster,
    )


def _load_split(reader: Shards, split: str, max_residues: int, limit: int | None, seed: int) -> tuple[Example, ...]:
    if split not in reader.splits:
        raise UserError(f"shards hold no split {split!r}; allowed: {', '.join(sorted(reader.splits))}")
    size = len(reader.index(split))
    if size == 0:
        raise UserError(f"split {split!r} of the shards is empty; build with a larger fraction for it")
    chosen = np.arange(size)
    if limit is not None and limit < size:
        chosen = np.sort(np.random.default_rng(seed).permutation(size)[:limit])
    return tuple(example_of(reader.sample(split, int(i)), max_residues) for i in chosen)
