import numpy as np

from data_pipeline.structure.chain import THREEDI_STATES
from data_pipeline.structure.geometry import CA, CB, C
from data_pipeline.structure.threedi import encode_3di, encode_3di_many, network_layers
from tests.unit.data_pipeline.structure.models import STRAND, backbone, helix, random_fold


def test_there_is_one_letter_per_residue_and_the_ends_are_not_computed() -> None:
    letters, valid = encode_3di(random_fold(50))
    assert len(letters) == len(valid) == 50
    assert set(letters) <= set(THREEDI_STATES)
    assert valid.nonzero()[0].tolist() == list(range(1, 49))
    assert letters[0] == letters[-1] == "D"


def test_states_do_not_depend_on_where_the_chain_lies() -> None:
    chain = random_fold(80, seed=3)
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    rotation *= np.sign(np.linalg.det(rotation))
    assert encode_3di(chain @ rotation.T + 30.0)[0] == encode_3di(chain)[0]


def test_chains_encoded_together_and_alone_agree() -> None:
    chains = [random_fold(n, seed=n) for n in (3, 40, 1, 2, 75)]
    chains.insert(3, np.zeros((0, 5, 3)))
    chains[1][10:13] = np.nan
    together = encode_3di_many(chains)
    for chain, (letters, valid) in zip(chains, together, strict=True):
        alone, alone_valid = encode_3di(chain)
        assert letters == alone
        np.testing.assert_array_equal(valid, alone_valid)
    assert together[3][0] == ""
    assert encode_3di_many([]) == []


def test_a_residue_without_backbone_is_invalid_with_its_neighbours_and_those_it_touches() -> None:
    chain = random_fold(60, seed=5)
    whole, _ = encode_3di(chain)
    chain[30, C] = np.nan
    letters, valid = encode_3di(chain)
    assert not valid[29:32].any()
    assert all(letter == "D" for letter, ok in zip(letters, valid, strict=True) if not ok)
    assert valid.sum() > 40
    assert sum(a == b for a, b in zip(whole, letters, strict=True)) > 40


def test_a_missing_cb_is_replaced_by_its_ideal_position() -> None:
    chain = helix(30)
    without = chain.copy()
    without[:, CB] = np.nan
    letters, valid = encode_3di(without)
    assert valid[1:-1].all()
    assert letters == encode_3di(chain)[0]


def test_a_helix_and_a_strand_have_different_states() -> None:
    assert set(encode_3di(helix(30))[0][5:25]) == {"V"}
    assert "V" not in encode_3di(backbone([STRAND] * 30))[0]


def test_a_chain_without_any_position_is_all_invalid() -> None:
    letters, valid = encode_3di(np.full((12, 5, 3), np.nan))
    assert letters == "D" * 12
    assert not valid.any()


def test_the_network_has_the_published_shape() -> None:
    assert [weight.shape for weight, _, _ in network_layers()] == [(10, 10), (10, 10), (10, 2)]
    assert [relu for _, _, relu in network_layers()] == [True, True, False]


def test_a_ca_trace_alone_gives_no_states() -> None:
    chain = helix(20)
    chain[:, [atom for atom in range(5) if atom != CA]] = np.nan
    assert not encode_3di(chain)[1].any()
