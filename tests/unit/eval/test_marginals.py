"""Marginals by the fast way are those of one masked forward pass for each position."""

from pathlib import Path

import numpy as np
import pytest
import torch

from eval.marginals import WildType, marginal_tables, window_start
from eval.models.checkpoint_model import CheckpointModel
from eval.models.protocol import ProteinModel
from pretrain.model.encoder import Encoder
from tests.unit.eval.makers import make_protein_model, train_config

FIRST, SECOND = "MKTAYIAKQRQISFVKSHFSRQ", "ACDEFGHIKLMNPQRSTVWYXACDEFGHIKL"


def model_of(tmp_path: Path, family: str = "esm2") -> CheckpointModel:
    return make_protein_model(train_config(tmp_path, tmp_path, family=family))


class Peer:
    """The same model, of which only the common methods are known."""

    def __init__(self, model: ProteinModel) -> None:
        self.masked_log_probs, self.log_probs = model.masked_log_probs, model.log_probs

    def at(self, precision: str) -> "Peer":
        return self


@pytest.mark.parametrize("family", ["esm2", "amplify", "esmc"])
@pytest.mark.parametrize("batch_tokens", [1, 70, 4096])
def test_every_masked_position_is_scored_as_by_a_pass_of_its_own(
    family: str, batch_tokens: int, tmp_path: Path
) -> None:
    model = model_of(tmp_path, family)
    jobs = [WildType(FIRST, np.arange(len(FIRST))), WildType(SECOND, np.array([3, 30])), WildType("MK", np.array([1]))]
    for job, table in zip(jobs, marginal_tables(model, jobs, "masked", 64, batch_tokens), strict=True):
        for position in job.positions:
            expected = model.masked_log_probs([(job.sequence, np.array([position]))])[0][0]
            # float32 rounding of products over other numbers of rows.
            np.testing.assert_allclose(table[position], expected.numpy(), atol=2e-5)
        others = np.setdiff1d(np.arange(len(job.sequence)), job.positions)
        assert np.isnan(table[others]).all()
        assert table.shape == (len(job.sequence), 20)


def test_a_peer_is_asked_through_the_common_door_and_agrees(tmp_path: Path) -> None:
    model = model_of(tmp_path)
    jobs = [WildType(FIRST, np.array([0, 7])), WildType(SECOND, np.array([20]))]
    for scoring in ("masked", "wildtype"):
        ours = marginal_tables(model, jobs, scoring, 20, 64)
        for a, b in zip(ours, marginal_tables(Peer(model), jobs, scoring, 20, 64), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)


def test_unmasked_positions_come_from_one_pass(tmp_path: Path) -> None:
    model = model_of(tmp_path)
    (table,) = marginal_tables(model, [WildType(FIRST, np.array([2, 9]))], "wildtype", 64, 512)
    np.testing.assert_allclose(table[[2, 9]], model.log_probs([FIRST])[0].double().numpy()[[2, 9]], atol=1e-6)


def test_windows_stay_inside_and_hold_their_position() -> None:
    for length, window in ((100, 30), (31, 30), (30, 30), (10, 30)):
        for position in range(length):
            start = window_start(position, length, window)
            assert 0 <= start <= position < start + min(window, length) <= length
    assert window_start(50, 100, 30) == 35


@pytest.mark.parametrize("scoring", ["masked", "wildtype"])
def test_a_long_protein_is_seen_through_windows(scoring: str, tmp_path: Path) -> None:
    model = model_of(tmp_path)
    long = (FIRST + SECOND) * 3
    window, positions = 24, np.array([0, 50, 51, len(long) - 1])
    (table,) = marginal_tables(model, [WildType(long, positions)], scoring, window, 512)
    for position in positions:
        if scoring == "masked":
            start = window_start(int(position), len(long), window)
            part = long[start : start + window]
            expected = model.masked_log_probs([(part, np.array([position - start]))])[0][0]
            np.testing.assert_allclose(table[position], expected.numpy(), atol=2e-5)
    assert np.isfinite(table[positions]).all()
    # Far away residues are not seen.
    changed = "W" * 10 + long[10:]
    (other,) = marginal_tables(model, [WildType(changed, positions)], scoring, window, 512)
    np.testing.assert_allclose(other[positions[1:]], table[positions[1:]], atol=2e-5)
    assert not np.allclose(other[0], table[0], atol=1e-3)


def test_duplicate_wild_types_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from eval import marginals

    model, counted = model_of(tmp_path), []

    def counting(encoder: object, groups: list) -> torch.Tensor:
        counted.extend(place for _, places in groups for place in places)
        return honest(encoder, groups)

    honest = marginals.masked_rows
    monkeypatch.setattr(marginals, "masked_rows", counting)
    jobs = [WildType(FIRST, np.array([1, 2])), WildType(FIRST, np.array([2, 3])), WildType(FIRST, np.array([1, 2]))]
    first, second, third = marginal_tables(model, jobs, "masked", 64, 512)
    assert sorted(counted) == [2, 3, 4], "token 0 is special"
    np.testing.assert_array_equal(first, third)
    assert np.isnan(first[3]).all()
    assert np.isfinite(second[[2, 3]]).all()


def test_the_first_layer_of_a_wild_type_is_computed_once_for_all_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eval import marginals

    model, made = model_of(tmp_path), []

    class Counting(marginals.SharedLayer):
        @classmethod
        def of(cls, encoder: Encoder, tokens: torch.Tensor) -> marginals.SharedLayer:
            made.append(len(tokens))
            return super().of(encoder, tokens)

    monkeypatch.setattr(marginals, "SharedLayer", Counting)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    jobs = [WildType(FIRST, np.arange(len(FIRST))), WildType(SECOND, np.array([3, 30]))]
    marginal_tables(model, jobs, "masked", 64, 50)
    assert sorted(made) == sorted([len(FIRST) + 2, len(SECOND) + 2])


def test_bfloat16_stays_close(tmp_path: Path) -> None:
    model = model_of(tmp_path)
    jobs = [WildType(FIRST, np.arange(len(FIRST)))]
    exact, rough = (marginal_tables(model, jobs, "masked", 64, 512, p)[0] for p in ("float32", "bfloat16"))
    # bfloat16 keeps 8 bits; log-probabilities here are of the order of -3.
    np.testing.assert_allclose(exact, rough, atol=0.1)
    assert not np.array_equal(exact, rough)
