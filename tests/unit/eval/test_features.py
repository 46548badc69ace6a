"""One embedding pass, whatever the batching and whoever asks."""

from pathlib import Path

import numpy as np
import pytest
import torch

from configs.benchmarks import FeaturesConfig
from configs.errors import UserError
from eval.features import Features
from eval.models.batches import batches_of
from eval.tasks.protocol import Wants
from tests.unit.eval.makers import make_features, make_protein_model, train_config

SEQUENCES = ("MKTAYIAKQRQISFVKSHFSRQ", "ACDEFGHIKLMNPQRSTVWYX", "M", "GSHMACDEF")


def test_each_distinct_sequence_is_embedded_once_between_all_tasks(tmp_path: Path) -> None:
    features = make_features(train_config(tmp_path, tmp_path), folder=tmp_path / "cache")
    assert features.embed(Wants(means=(*SEQUENCES[:2], SEQUENCES[0]), residues=SEQUENCES[1:])) == 4
    first = features.hidden(SEQUENCES[1:])
    features.means(SEQUENCES)
    assert features.threedi_logits(SEQUENCES[1:]) is not None
    again = features.hidden((*SEQUENCES[:0:-1], SEQUENCES[1]))
    assert features.num_embedded == 4
    assert all(torch.equal(a, b) for a, b in zip(first, again[2::-1], strict=True))
    other = make_features(train_config(tmp_path, tmp_path), folder=tmp_path / "cache")
    assert other.embed(Wants(means=SEQUENCES, residues=SEQUENCES[1:])) == 0


def test_stored_states_are_the_models_to_half_precision(tmp_path: Path) -> None:
    features = make_features(train_config(tmp_path, tmp_path))
    for stored, state in zip(features.hidden(SEQUENCES), features.model.hidden(SEQUENCES), strict=True):
        assert stored.dtype == torch.float32
        # float16 keeps 11 bits.
        torch.testing.assert_close(stored, state, rtol=2**-11, atol=1e-5)
    means = torch.stack([state.mean(dim=0) for state in features.model.hidden(SEQUENCES)])
    torch.testing.assert_close(features.means(SEQUENCES), means, atol=1e-5, rtol=0)


def test_chosen_rows_are_those_of_the_states(tmp_path: Path) -> None:
    features = make_features(train_config(tmp_path, tmp_path))
    rows = [np.array([0, 21]), np.array([], dtype=np.int64), np.array([0]), np.array([8, 2])]
    states = features.hidden(SEQUENCES)
    expected = torch.cat([one[torch.from_numpy(chosen)] for one, chosen in zip(states, rows, strict=True)])
    assert torch.equal(features.residue_rows(SEQUENCES, rows), expected)


def test_all_layers_stand_side_by_side(tmp_path: Path) -> None:
    model = make_protein_model(train_config(tmp_path, tmp_path))
    features = Features(model, FeaturesConfig(representation="all_layers"), 256)
    wide = torch.stack([state.mean(dim=0) for state in model.hidden(SEQUENCES, all_layers=True)])
    torch.testing.assert_close(features.means(SEQUENCES), wide, atol=1e-5, rtol=0)
    assert features.width == wide.shape[1] == 64
    last = Features(model, FeaturesConfig(), 256).means(SEQUENCES)
    torch.testing.assert_close(wide[:, 32:], last, atol=1e-5, rtol=0)


def test_batching_does_not_change_hidden_states(tmp_path: Path) -> None:
    config = train_config(tmp_path, tmp_path)
    alone, together = make_protein_model(config, batch_tokens=1), make_protein_model(config, batch_tokens=1000)
    for a, b in zip(alone.hidden(SEQUENCES), together.hidden(SEQUENCES), strict=True):
        # Matrix products over other numbers of rows: float32 rounding.
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_bfloat16_features_are_apart_and_close(tmp_path: Path) -> None:
    model = make_protein_model(train_config(tmp_path, tmp_path))
    exact = Features(model, FeaturesConfig(), 256, tmp_path).means(SEQUENCES)
    rough = Features(model, FeaturesConfig(precision="bfloat16"), 256, tmp_path)
    found = rough.means(SEQUENCES)
    assert rough.num_embedded == 4
    assert not torch.equal(found, exact)
    # bfloat16 keeps 8 bits, states are of order 1.
    torch.testing.assert_close(found, exact, atol=0.1, rtol=0)


def test_a_sequence_that_the_model_cannot_take_is_refused(tmp_path: Path) -> None:
    from dataclasses import replace

    model = replace(make_protein_model(train_config(tmp_path, tmp_path)), max_residues=10)
    features = Features(model, FeaturesConfig(), 256)
    with pytest.raises(UserError, match="22 residues, but the model takes at most 10"):
        features.means(SEQUENCES)
    with pytest.raises(UserError, match="without residues"):
        features.means([""])


def test_a_model_without_3di_head_gives_no_3di_logits(tmp_path: Path) -> None:
    assert make_features(train_config(tmp_path, tmp_path, structure=0.0)).threedi_logits(SEQUENCES) is None


@pytest.mark.parametrize("padded", [False, True])
def test_batches_hold_every_sequence_once_and_stay_in_budget(padded: bool) -> None:
    lengths = np.random.default_rng(0).integers(1, 60, size=50).tolist()
    batches = list(batches_of(lengths, 100, padded))
    assert sorted(i for batch in batches for i in batch) == list(range(50))
    for batch in batches:
        of_batch = [lengths[i] for i in batch]
        assert (max(of_batch) * len(batch) if padded else sum(of_batch)) <= 100
    assert lengths[batches[0][0]] == max(lengths)
    assert list(batches_of([500, 3], 100, padded)) == [[0], [1]]
    assert list(batches_of([], 100, padded)) == []
