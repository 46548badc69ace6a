"""Error figures of stored embeddings, and principal components."""

from pathlib import Path

import numpy as np
import pytest

from configs.errors import UserError
from configs.teacher import DeriveConfig
from data_pipeline.derived import COMPONENTS_NAME
from pretrain.derive_forms import (
    Errors,
    Form,
    Moments,
    Projection,
    projection_sha256,
    read_projection,
)

RANDOM = np.random.default_rng(3)
# Five directions carry nearly all of the variance of twelve features.
MIXING = RANDOM.normal(size=(5, 12))
EMBEDDING = (RANDOM.normal(size=(400, 5)) @ MIXING + 0.01 * RANDOM.normal(size=(400, 12)) + 2).astype(np.float32)
PRESENT = np.arange(400) % 7 != 6


def fitted(width: int) -> Projection:
    return Projection.fitted(Moments.of(EMBEDDING), width)


def test_components_are_orthonormal_and_of_falling_variance() -> None:
    projection = fitted(12)
    np.testing.assert_allclose(projection.components @ projection.components.T, np.eye(12), atol=1e-6)
    np.testing.assert_allclose(projection.mean, EMBEDDING.mean(axis=0), atol=1e-5)
    variances = projection.project(EMBEDDING).var(axis=0)
    assert (np.diff(variances) <= 1e-6).all()


def test_as_many_components_as_directions_restore_the_embedding() -> None:
    projection = fitted(5)
    # What is left is the noise of 0.01 in the other seven directions.
    assert np.abs(projection.restore(projection.project(EMBEDDING)) - EMBEDDING).max() < 0.06
    every = fitted(12)
    np.testing.assert_allclose(every.restore(every.project(EMBEDDING)), EMBEDDING, atol=2e-5)


def test_moments_of_parts_add_up_to_those_of_the_whole() -> None:
    parts = Moments.of(EMBEDDING[:150]).plus(Moments.of(EMBEDDING[150:]))
    np.testing.assert_allclose(Projection.fitted(parts, 5).components, fitted(5).components, atol=1e-6)


def test_the_sign_of_a_component_is_settled() -> None:
    components = fitted(5).components
    largest = np.take_along_axis(components, np.abs(components).argmax(axis=1)[:, None], axis=1)
    assert (largest > 0).all()


def test_components_come_back_from_their_file_for_the_settings_they_were_made_for(tmp_path: Path) -> None:
    projection = fitted(4)
    projection.write(tmp_path, "these settings", tmp_path)
    back = read_projection(tmp_path)
    np.testing.assert_array_equal(back.components, projection.components)
    np.testing.assert_array_equal(back.mean, projection.mean)
    assert projection_sha256(tmp_path, "these settings") is not None
    assert projection_sha256(tmp_path, "other settings") is None
    path = tmp_path / COMPONENTS_NAME
    path.write_bytes(path.read_bytes()[:50])
    assert projection_sha256(tmp_path, "these settings") is None
    with pytest.raises(UserError, match="derive the column again"):
        read_projection(tmp_path)


def test_error_figures_are_those_of_their_definitions() -> None:
    theirs, ours = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]]), np.array([[3.0, 3.0], [0.0, 1.0], [0.0, 0.0]])
    figures = Errors.of(theirs, ours).figures()
    assert figures["residues"] == 3
    assert figures["relative_rms"] == pytest.approx(np.sqrt((1 + 2) / (25 + 1)))
    assert figures["cosine_min"] == pytest.approx(0)
    assert figures["cosine_mean"] == pytest.approx((21 / (5 * np.sqrt(18)) + 0 + 1) / 3)


def test_errors_of_parts_add_up() -> None:
    stored = EMBEDDING + RANDOM.normal(size=EMBEDDING.shape)
    parts = [Errors.of(EMBEDDING[rows], stored[rows]) for rows in (slice(0, 100), slice(100, 101), slice(101, None))]
    assert Errors.total(parts).figures() == pytest.approx(Errors.of(EMBEDDING, stored).figures())
    assert Errors.total([]).figures() == {"residues": 0, "relative_rms": 0.0, "cosine_mean": 1.0, "cosine_min": 1.0}


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (DeriveConfig(), 2**-11),
        # Half a step of 1/127 of the largest feature, which is at most 12 ** 0.5 times the row's root mean square.
        (DeriveConfig(form="int8"), 12**0.5 / 254),
        (DeriveConfig(form="pca", pca_width=5), 0.01),
        (DeriveConfig(form="pca", pca_width=5, pca_storage="int8"), 0.02),
    ],
)
def test_each_form_is_as_accurate_as_it_can_be_and_leaves_out_absent_residues(
    config: DeriveConfig, limit: float
) -> None:
    form = Form.of(config, fitted(5) if config.form == "pca" else None)
    arrays, errors = form.encode(EMBEDDING, PRESENT)
    assert errors.residues == PRESENT.sum()
    assert 0 < errors.figures()["relative_rms"] < limit
    stored = arrays["embedding"] if "embedding" in arrays else arrays["embedding_int8"]
    assert stored.shape == (400, config.pca_width or 12)
    assert (stored.any(axis=1) == PRESENT).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e6])
def test_what_float16_cannot_hold_is_a_user_error(wrong: float) -> None:
    embedding = EMBEDDING.copy()
    embedding[1, 1] = wrong
    with pytest.raises(UserError, match="training diverged"):
        Form.of(DeriveConfig(), None).encode(embedding, PRESENT)
    if np.isfinite(wrong):
        Form.of(DeriveConfig(form="int8"), None).encode(embedding, PRESENT)
    else:
        with pytest.raises(UserError, match="training diverged"):
            Form.of(DeriveConfig(form="int8"), None).encode(embedding, PRESENT)
