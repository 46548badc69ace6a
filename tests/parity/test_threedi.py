"""3Di states against mini3di, the numpy port of Foldseek's encoder."""

import warnings
from pathlib import Path

import mini3di
import numpy as np
import pytest

from data_pipeline.structure import distances
from data_pipeline.structure.geometry import CA, CB, C, N
from data_pipeline.structure.threedi import encode_3di_many
from tests.unit.data_pipeline.structure.models import random_fold

MISSING = -32768
"""Mark of a missing atom in the packed coordinates, which are in 0.01 Angstrom."""
NUM_REAL_CHAINS = 300


def reference(chain: np.ndarray) -> tuple[str, np.ndarray]:
    encoder = mini3di.Encoder()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # mini3di computes with NaN before it masks
        states = encoder.encode_atoms(chain[:, CA], chain[:, CB], chain[:, N], chain[:, C])
    return encoder.build_sequence(states), ~np.ma.getmaskarray(states)


def assert_same(chains: list[np.ndarray]) -> None:
    for chain, (letters, valid) in zip(chains, encode_3di_many(chains), strict=True):
        expected, expected_valid = reference(chain)
        assert letters == expected
        np.testing.assert_array_equal(valid, expected_valid)


def test_built_chains_with_gaps_have_the_states_of_mini3di() -> None:
    random = np.random.default_rng(0)
    chains = []
    for seed in range(40):
        # Noise parts the exact ties of ideal geometry, which rounding alone would decide.
        chain = random_fold(int(random.integers(3, 150)), seed) + random.normal(scale=0.05)
        chain += random.normal(scale=0.05, size=chain.shape)
        for atom, share in ((N, 0.02), (CA, 0.02), (C, 0.02), (CB, 0.2)):
            chain[random.random(len(chain)) < share, atom] = np.nan
        chains.append(chain)
    assert_same(chains)


@pytest.mark.parametrize("num_residues", [3, 4, 5, 6])
def test_the_shortest_chains_have_the_states_of_mini3di(num_residues: int) -> None:
    noise = np.random.default_rng(1).normal(scale=0.05, size=(num_residues, 5, 3))
    assert_same([random_fold(num_residues, seed=num_residues) + noise])


@pytest.mark.parametrize("num_alone", [0, 5, 90])
def test_long_chains_and_residues_far_from_all_others_have_the_states_of_mini3di(num_alone: int) -> None:
    random = np.random.default_rng(2)
    chain = random_fold(900, seed=9) + random.normal(scale=0.05, size=(900, 5, 3))
    chain -= chain.mean(axis=(0, 1))
    alone = random.choice(900, num_alone, replace=False)
    chain[alone] += random.normal(scale=300.0, size=(num_alone, 1, 3))
    chain[[50, 51, 400], N] = np.nan
    chain[random.random(900) < 0.1, CB] = np.nan
    assert_same([chain, chain[:200]])


def test_a_residue_alone_in_the_last_block_has_the_state_of_mini3di() -> None:
    num_residues = 6 * distances._ROWS + 3  # all but the ends are compared, in full blocks and one of a single residue
    chain = random_fold(num_residues, seed=4) + np.random.default_rng(4).normal(scale=0.05, size=(num_residues, 5, 3))
    longest = np.ptp(chain[:, CA], axis=0).argmax()
    chain[300, :, longest] += 2 * np.ptp(chain[:, CA, longest])
    assert_same([chain])


@pytest.mark.data
def test_real_chains_have_the_states_of_mini3di_on_every_residue(real_data: Path) -> None:
    packed = np.load(real_data / "structures" / "chains_backbone.npz", allow_pickle=False)
    xyz, offset = packed["xyz"], packed["offset"]
    chosen = np.linspace(0, len(offset) - 2, NUM_REAL_CHAINS).astype(int)
    chains = [xyz[offset[i] : offset[i + 1]] for i in chosen]
    assert_same([np.where(chain == MISSING, np.nan, chain / 100.0) for chain in chains])
