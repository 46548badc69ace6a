from itertools import pairwise
from pathlib import Path

import gemmi
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from data_pipeline import schema
from data_pipeline.structure.frames import (
    DIHEDRAL_ERROR,
    FRAME_ERROR,
    INT16_SCALE,
    MISSING_INT16,
    backbone_features,
    backbone_frames,
    decode_dihedrals,
    decode_frames,
    encode_dihedrals,
    encode_frames,
    frames_to_quaternions,
    gvp_node_scalars,
    gvp_node_vectors,
    quaternions_to_frames,
)
from data_pipeline.structure.geometry import CA, CB, C, N, dihedrals
from tests.unit.data_pipeline.structure.models import random_fold

ROUNDING = 1e-12
"""Of sums and products of a few float64 numbers near 1."""
FLOAT32 = 1e-6
MISSING_COORDINATE = -32768
"""Mark of a missing atom in the packed coordinates, which are in 0.01 Angstrom."""


@pytest.fixture
def chain() -> np.ndarray:
    """A noisy fold with atoms missing and one break."""
    random = np.random.default_rng(2)
    chain = random_fold(90, seed=2) + random.normal(scale=0.05, size=(90, 5, 3))
    chain[20, N] = chain[33, CA] = chain[47, C] = np.nan
    chain[60:] += 15.0
    return chain


def rotations(num: int) -> np.ndarray:
    """Random rotations and, first, those by exactly half a turn, whose quaternions have w = 0."""
    halves = Rotation.from_rotvec(np.pi * np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.6, 0.8, 0], [0, -0.6, 0.8]]))
    return np.concatenate([halves.as_matrix(), Rotation.random(num, rng=3).as_matrix(), np.eye(3)[None]])


def angle_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Radians [N] of the rotations that lead from a to b, by scipy."""
    return (Rotation.from_matrix(a).inv() * Rotation.from_matrix(b)).magnitude()


def gemmi_dihedrals(chain: np.ndarray) -> np.ndarray:
    """phi, psi and omega by gemmi, with the rule for chain breaks spelled out."""
    angles = np.full((len(chain), 3), np.nan)
    position = [[gemmi.Position(*atom) for atom in residue] for residue in chain]
    for i, (here, following) in enumerate(pairwise(position)):
        if not here[C].dist(following[N]) <= 2.5:
            continue
        angles[i + 1, 0] = gemmi.calculate_dihedral(here[C], following[N], following[CA], following[C])
        angles[i, 1] = gemmi.calculate_dihedral(here[N], here[CA], here[C], following[N])
        angles[i, 2] = gemmi.calculate_dihedral(here[CA], here[C], following[N], following[CA])
    return angles


def test_dihedrals_equal_those_of_gemmi(chain: np.ndarray) -> None:
    np.testing.assert_allclose(dihedrals(chain), gemmi_dihedrals(chain), rtol=0, atol=ROUNDING)


def test_frames_have_the_axes_of_the_definition(chain: np.ndarray) -> None:
    frames = backbone_frames(chain)
    complete = np.isfinite(chain[:, :3]).all(axis=(1, 2))
    np.testing.assert_array_equal(np.isfinite(frames).all(axis=(1, 2)), complete)
    assert (~complete).sum() == 3
    local = np.einsum("nij,naj->nai", frames[complete].transpose(0, 2, 1), chain[complete] - chain[complete, CA, None])
    to_c, to_n = local[:, C], local[:, N]
    assert (to_c[:, 0] > 0).all()
    np.testing.assert_allclose(to_c[:, 1:], 0, atol=ROUNDING)
    assert (to_n[:, 1] > 0).all()
    np.testing.assert_allclose(to_n[:, 2], 0, atol=ROUNDING)
    identity = np.broadcast_to(np.eye(3), (complete.sum(), 3, 3))
    np.testing.assert_allclose(frames[complete].transpose(0, 2, 1) @ frames[complete], identity, atol=ROUNDING)
    np.testing.assert_allclose(np.linalg.det(frames[complete]), 1, atol=ROUNDING)


def test_frames_turn_with_the_chain(chain: np.ndarray) -> None:
    turn = rotations(1)[-2]
    np.testing.assert_allclose(backbone_frames(chain @ turn.T + 7.0), turn @ backbone_frames(chain), atol=1e-11)


def test_a_residue_whose_atoms_lie_on_a_line_has_no_frame() -> None:
    chain = random_fold(3)
    chain[1, C] = chain[1, CA] + 2 * (chain[1, CA] - chain[1, N])
    chain[2, C] = chain[2, CA]
    assert np.isfinite(backbone_frames(chain)).all(axis=(1, 2)).tolist() == [True, False, False]
    assert (backbone_features(chain)[1][1:] == MISSING_INT16).all()


def test_quaternions_are_those_of_scipy() -> None:
    frames = rotations(500)
    ours = frames_to_quaternions(frames)
    theirs = Rotation.from_matrix(frames).as_quat(scalar_first=True)
    assert (ours[:, 0] >= 0).all()
    # A quaternion and its opposite are the same rotation.
    theirs *= np.sign((ours * theirs).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(ours, theirs, atol=ROUNDING)
    np.testing.assert_allclose(quaternions_to_frames(ours), frames, atol=ROUNDING)
    expected = Rotation.from_quat(theirs, scalar_first=True).as_matrix()
    np.testing.assert_allclose(quaternions_to_frames(theirs * 3.0), expected, atol=ROUNDING)


def test_stored_frames_are_within_the_stated_error() -> None:
    frames = rotations(200_000)
    stored = encode_frames(frames)
    assert stored.dtype == np.int16
    assert (stored[:, 0] >= 0).all()
    decoded = decode_frames(stored)
    error = angle_between(frames, decoded)
    assert error.max() <= FRAME_ERROR <= 1e-4
    assert error.max() > FRAME_ERROR / 2, "the bound is not idle"
    # An element of a rotation matrix changes by at most the angle.
    assert np.abs(decoded - frames).max() <= FRAME_ERROR


def test_stored_angles_are_within_the_stated_error() -> None:
    angles = np.concatenate([np.linspace(-np.pi, np.pi, 100_001), [np.nan]])
    stored = encode_dihedrals(angles)
    assert stored.dtype == np.int16
    assert stored[[0, -2, -1]].tolist() == [-INT16_SCALE, INT16_SCALE, MISSING_INT16]
    decoded = decode_dihedrals(stored)
    assert np.isnan(decoded[-1])
    assert DIHEDRAL_ERROR / 2 < np.abs(decoded - angles)[:-1].max() <= DIHEDRAL_ERROR <= 1e-4


def test_features_of_a_chain_are_its_encoded_angles_and_frames(chain: np.ndarray) -> None:
    angles, frames = backbone_features(chain)
    np.testing.assert_array_equal(angles, encode_dihedrals(dihedrals(chain)))
    np.testing.assert_array_equal(frames, encode_frames(backbone_frames(chain)))
    assert (angles.shape, frames.shape) == ((90, 3), (90, 4))
    for given, computed in zip(backbone_features(chain, dihedrals(chain)), (angles, frames), strict=True):
        np.testing.assert_array_equal(given, computed)
    assert (frames[[20, 33, 47]] == MISSING_INT16).all()
    assert (angles[59, 1:] == MISSING_INT16).all()
    assert angles[60, 0] == MISSING_INT16
    assert np.isnan(decode_frames(frames)[20]).all()


@pytest.mark.parametrize("num_residues", [0, 1, 2])
def test_the_shortest_chains_have_features_too(num_residues: int) -> None:
    angles, frames = backbone_features(random_fold(2)[:num_residues])
    assert (angles.shape, frames.shape) == ((num_residues, 3), (num_residues, 4))
    assert (frames != MISSING_INT16).all()
    assert gvp_node_scalars(decode_dihedrals(angles)).shape == (num_residues, 6)
    assert gvp_node_vectors(np.zeros((num_residues, 5, 3))).shape == (num_residues, 3, 3)


def test_the_stored_units_are_those_of_the_shard_contract() -> None:
    assert (MISSING_INT16, INT16_SCALE) == (schema.MISSING_INT16, schema.INT16_SCALE)


def test_gvp_scalars_are_sines_and_cosines_with_zeros_where_undefined(chain: np.ndarray) -> None:
    angles = dihedrals(chain)
    scalars = gvp_node_scalars(angles)
    assert scalars.dtype == np.float32
    defined = np.isfinite(angles)
    np.testing.assert_allclose(np.arctan2(scalars[:, :3], scalars[:, 3:])[defined], angles[defined], atol=FLOAT32)
    assert (scalars[np.tile(~defined, 2)] == 0).all()


def test_gvp_vectors_point_along_the_chain_and_the_side_chain(chain: np.ndarray) -> None:
    vectors = gvp_node_vectors(chain)
    assert vectors.dtype == np.float32
    length = np.linalg.norm(vectors, axis=-1)
    assert (np.isclose(length, 1, atol=FLOAT32) | (length == 0)).all()
    assert (np.argwhere(length[:, 0] == 0).ravel() == [32, 33, 89]).all()
    assert (np.argwhere(length[:, 1] == 0).ravel() == [0, 33, 34]).all()
    assert (np.argwhere(length[:, 2] == 0).ravel() == [20, 33, 47]).all()
    step = chain[6, CA] - chain[5, CA]
    np.testing.assert_allclose(vectors[5, 0], step / np.linalg.norm(step), atol=FLOAT32)
    np.testing.assert_array_equal(vectors[6, 1], -vectors[5, 0])
    to_cb = chain[:, CB] - chain[:, CA]
    cosine = (vectors[:, 2] * to_cb).sum(-1) / np.linalg.norm(to_cb, axis=-1)
    # Noise of 0.05 Angstrom turns bonds of 1.5 by about 3 degrees each; the mirror image is 109 degrees off.
    assert cosine[length[:, 2] > 0].min() > np.cos(np.radians(30))


@pytest.mark.data
def test_features_of_real_chains_are_within_the_stated_errors(real_data: Path) -> None:
    packed = np.load(real_data / "structures" / "chains_backbone.npz", allow_pickle=False)
    xyz, offset = packed["xyz"], packed["offset"]
    for i in np.linspace(0, len(offset) - 2, 40).astype(int):
        chain = np.where((x := xyz[offset[i] : offset[i + 1]]) == MISSING_COORDINATE, np.nan, x / 100.0)
        expected, frames = gemmi_dihedrals(chain), backbone_frames(chain)
        stored_angles, stored_frames = backbone_features(chain)
        turned = np.abs(decode_dihedrals(stored_angles) - expected)
        np.testing.assert_array_equal(np.isnan(turned), np.isnan(expected))
        # An angle of -pi may be stored as +pi.
        assert np.nanmax(np.minimum(turned, 2 * np.pi - turned)) <= DIHEDRAL_ERROR
        defined = np.isfinite(frames).all(axis=(1, 2))
        np.testing.assert_array_equal(defined, np.isfinite(chain[:, :3]).all(axis=(1, 2)))
        assert angle_between(frames[defined], decode_frames(stored_frames)[defined]).max() <= FRAME_ERROR
