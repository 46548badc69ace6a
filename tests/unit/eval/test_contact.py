"""Contact precision and features on cases small enough to count by hand."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from configs.evaluate import ContactConfig
from eval.datasets.contact_sets import ContactChain
from eval.tasks.contact import contact_logits, fit_regression, pair_features
from eval.tasks.contact_truth import FIXED, METRICS, PUBLISHED, definition_of, precisions, truth_of
from pretrain.model.contacts import ContactRegression
from tests.unit.eval.makers import make_example, make_features, train_config


def maps_of(num_heads: int, n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_heads, n + 2, n + 2, generator=torch.Generator().manual_seed(seed)).softmax(-1)


def test_pair_features_are_the_corrected_maps_at_those_pairs() -> None:
    maps = maps_of(70, 12)
    rows, columns = torch.tensor([0, 2, 5]), torch.tensor([7, 11, 11])
    inner = maps[:, 1:-1, 1:-1].double()
    symmetric = inner + inner.transpose(1, 2)
    total = symmetric.sum((1, 2), keepdim=True)
    corrected = symmetric - symmetric.sum(1, keepdim=True) * symmetric.sum(2, keepdim=True) / total
    # float32 sums of 144 values below 2: 1e-6.
    torch.testing.assert_close(
        pair_features(maps, rows, columns).double(), corrected[:, rows, columns].T, atol=1e-6, rtol=0
    )


def test_logits_equal_the_regression_on_pair_features() -> None:
    maps, n = maps_of(70, 20), 20
    weight = torch.randn(70, generator=torch.Generator().manual_seed(1))
    rows, columns = (torch.from_numpy(x) for x in np.triu_indices(n))
    expected = pair_features(maps, rows, columns) @ weight - 1.5
    logits = contact_logits(maps, ContactRegression(weight, -1.5))
    # The identity changes the order of 70 x 20 float32 products: 1e-5.
    torch.testing.assert_close(logits[rows, columns], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits, logits.T, atol=1e-6, rtol=0)


def test_precision_counts_true_contacts_among_the_best_pairs() -> None:
    n = 30
    contacts, scores = np.zeros((n, n), dtype=bool), np.zeros((n, n))
    for rank, j in enumerate(range(24, 30)):
        # Six long-range pairs (0, j) score highest; every second one is a contact.
        scores[0, j] = 100 - rank
        contacts[0, j] = rank % 2 == 0
    found = precisions(scores, contacts, np.ones(n, dtype=bool))
    assert set(found) == {"P@L_long", "P@L/2_long", "P@L/5_long"}
    assert found["P@L/5_long"] == pytest.approx(3 / 6)
    # Long range holds (30 - 24) * 7 / 2 = 21 pairs, fewer than L = 30: all of them are the denominator.
    assert found["P@L_long"] == pytest.approx(3 / 21)
    assert found["P@L/2_long"] == pytest.approx(3 / 15)


def test_ranges_do_not_overlap_and_leave_out_close_pairs() -> None:
    n = 40
    contacts = np.zeros((n, n), dtype=bool)
    for separation, span in ((5, None), (6, "short"), (11, "short"), (12, "medium"), (23, "medium"), (24, "long")):
        contacts[:] = False
        contacts[0, separation] = True
        found = precisions(contacts.astype(float), contacts, np.ones(n, dtype=bool))
        assert {name.rpartition("_")[2] for name in found} == ({span} if span else set()), separation


def test_pairs_of_unknown_residues_are_no_candidates() -> None:
    n = 20
    contacts, scores = np.zeros((n, n), dtype=bool), np.zeros((n, n))
    contacts[0, 8], scores[0, 8], scores[0, 9] = True, 1.0, 2.0
    known = np.ones(n, dtype=bool)
    assert precisions(scores, contacts, known)["P@L/5_short"] == pytest.approx(1 / 4)
    known[9] = False
    scores[0, 10:12] = -1.0
    only = precisions(np.where(scores > 0, scores, -1.0), contacts, known)
    assert only["P@L/5_short"] == pytest.approx(1 / 4)
    known[:] = False
    known[[0, 8]] = True
    assert precisions(scores, contacts, known)["P@L_short"] == 1.0


def test_a_residue_without_backbone_but_with_cb_has_a_position() -> None:
    coordinates = np.full((3, 5, 3), np.nan)
    coordinates[0, :3] = [[0, 0, 0], [1.4, 0, 0], [2, 1.4, 0]]
    coordinates[1, 4] = 1.0
    example = replace(make_example(sequence="ACD"), coordinates=coordinates)
    assert truth_of(example, ContactConfig())[1].tolist() == [True, True, False]
    assert truth_of(example, ContactConfig(preset="published"))[1].tolist() == [True, False, False]


@pytest.mark.parametrize("preset", ["fixed", "published"])
def test_the_regression_finds_the_head_that_knows_the_contacts(preset: str, tmp_path) -> None:
    features = make_features(train_config(tmp_path, tmp_path))
    letters = "ACDEFGHIKLMNPQRSTVWY" * 3
    examples = [make_example(f"e{i}_A", letters[i : i + 40], seed=i) for i in range(6)]
    # Weak regularisation: 6 chains of 40 residues are few for the protocol's C.
    config = ContactConfig(fit_chains=6, inverse_regularisation=10.0, preset=preset)
    truth = {}

    def maps(sequence: str) -> torch.Tensor:
        example = next(e for e in examples if e.sequence == sequence)
        contacts = truth[example.key] = truth_of(example, config)[0]
        found = torch.rand(8, 42, 42, generator=torch.Generator().manual_seed(len(truth))) * 0.01
        found[3, 1:-1, 1:-1] += torch.from_numpy(contacts).float()
        return found

    features.model = SimpleNamespace(attention_maps=maps)
    regression = fit_regression(features, examples, config, 0)
    assert regression is not None
    assert int(regression.weight.abs().argmax()) == 3
    scores = contact_logits(maps(examples[0].sequence), regression).numpy()
    found = precisions(scores, truth["e0_A"], np.ones(40, dtype=bool), definition_of(config))
    assert found["P@L/5_short" if preset == "fixed" else "P@L/5_published"] == 1.0


def test_without_contacts_there_is_no_regression(tmp_path) -> None:
    features = make_features(train_config(tmp_path, tmp_path))
    example = make_example(sequence="ACDEFGHIKL")
    far = np.arange(10)[:, None, None] * 50.0 + np.zeros((10, 5, 3))
    assert fit_regression(features, [replace(example, coordinates=far)], ContactConfig(), 0) is None


def test_metric_names_are_those_of_the_contract() -> None:
    assert FIXED.metrics[:3] == ("P@L_short", "P@L/2_short", "P@L/5_short")
    assert len(FIXED.metrics) == 9
    assert PUBLISHED.metrics == ("P@L_published", "P@L/2_published", "P@L/5_published")
    assert set(METRICS) == {*FIXED.metrics, *PUBLISHED.metrics}


def test_the_published_preset_takes_ca_and_separations_from_seven() -> None:
    coordinates = np.full((9, 5, 3), 100.0) * np.arange(9)[:, None, None]
    coordinates[7, 1] = coordinates[0, 1] + [6.0, 0.0, 0.0]
    coordinates[8, 4] = coordinates[0, 4] + [6.0, 0.0, 0.0]
    example = replace(make_example(sequence="ACDEFGHIK"), coordinates=coordinates)
    by_ca, _ = truth_of(example, ContactConfig(preset="published"))
    by_cb, _ = truth_of(example, ContactConfig())
    assert np.argwhere(np.triu(by_ca, 1)).tolist() == [[0, 7]]
    assert np.argwhere(np.triu(by_cb, 1)).tolist() == [[0, 8]]
    scores = np.zeros((9, 9))
    scores[0, 6], scores[0, 7] = 2.0, 1.0
    # The better pair (0, 6) is too close to be a candidate; floor(9 / 5) is one pair.
    assert precisions(scores, by_ca, np.ones(9, dtype=bool), PUBLISHED)["P@L/5_published"] == 1.0


def test_contacts_given_as_pairs_are_taken_as_they_are() -> None:
    chain = ContactChain("a", "ACDEFGHIKL", None, np.array([[0, 8], [1, 9]]))
    contacts, known = truth_of(chain, ContactConfig())
    assert np.argwhere(contacts).tolist() == [[0, 8], [1, 9], [8, 0], [9, 1]]
    assert known.all()
