"""One embedding pass, whatever the batching."""

from pathlib import Path

import numpy as np
import pytest
import torch

from eval.features import batches_of
from tests.unit.eval.makers import make_example, make_features, train_config

SEQUENCES = ("MKTAYIAKQRQISFVKSHFSRQ", "ACDEFGHIKLMNPQRSTVWYX", "M", "GSHMACDEF")


def examples() -> list:
    return [make_example(f"e{i}_A", sequence, cluster=i, seed=i) for i, sequence in enumerate(SEQUENCES)]


def test_each_chain_is_embedded_once(tmp_path: Path) -> None:
    features, chains = make_features(train_config(tmp_path, tmp_path)), examples()
    first = features.hidden(chains)
    features.threedi_logits(chains)
    again = features.hidden(chains[::-1])
    assert features.num_embedded == len(chains)
    assert all(torch.equal(a, b) for a, b in zip(first, again[::-1], strict=True))
    assert [len(states) for states in first] == [len(chain) for chain in chains]


def test_batching_does_not_change_hidden_states(tmp_path: Path) -> None:
    config = train_config(tmp_path, tmp_path)
    alone, together = make_features(config, batch_tokens=1), make_features(config, batch_tokens=1000)
    for a, b in zip(alone.hidden(examples()), together.hidden(examples()), strict=True):
        # Matrix products over other numbers of rows: float32 rounding.
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["esm2", "amplify"])
def test_masked_losses_equal_one_forward_per_mask(tmp_path: Path, family: str) -> None:
    from pretrain.batch import Packed

    features = make_features(train_config(tmp_path, tmp_path, family=family))
    chain = examples()[0]
    jobs = [(chain, np.array([0, 5])), (chain, np.array([21])), (examples()[1], np.array([3]))]
    found = features.masked_nll(jobs)
    assert features.num_embedded == 0
    alphabet, trunk = features.alphabet, features.model.trunk
    for (example, positions), losses in zip(jobs, found, strict=True):
        true = torch.from_numpy(alphabet.encode(example.sequence))
        tokens = torch.cat([torch.tensor([alphabet.cls_id]), true, torch.tensor([alphabet.eos_id])])
        tokens[positions + 1] = alphabet.mask_id
        with torch.no_grad():
            log_p = trunk.lm_logits(trunk(Packed(tokens, (len(tokens),)))).log_softmax(-1)
        expected = -log_p[torch.from_numpy(positions) + 1, true[positions]]
        # float32 rounding of another batching.
        torch.testing.assert_close(losses, expected, atol=1e-5, rtol=0)


def test_a_model_without_3di_head_gives_no_3di_logits(tmp_path: Path) -> None:
    assert make_features(train_config(tmp_path, tmp_path, structure=0.0)).threedi_logits(examples()) is None


def test_the_own_heads_logits_are_those_of_training(tmp_path: Path) -> None:
    from pretrain.batch import Packed

    features, chain = make_features(train_config(tmp_path, tmp_path)), examples()[0]
    alphabet, model = features.alphabet, features.model
    residues = torch.from_numpy(alphabet.encode(chain.sequence))
    tokens = torch.cat([torch.tensor([alphabet.cls_id]), residues, torch.tensor([alphabet.eos_id])])
    with torch.no_grad():
        hidden = model.trunk(Packed(tokens, (len(tokens),)))
        expected = model.threedi_logits(hidden, torch.arange(1, len(tokens) - 1))
    found = features.threedi_logits([chain])
    assert found is not None
    torch.testing.assert_close(found[0], expected, atol=1e-6, rtol=0)


def test_batches_hold_every_sequence_once_and_stay_in_budget() -> None:
    lengths = np.random.default_rng(0).integers(1, 60, size=50).tolist()
    batches = list(batches_of(lengths, 100))
    assert sorted(i for batch in batches for i in batch) == list(range(50))
    assert all(sum(lengths[i] for i in batch) <= 100 for batch in batches)
    assert lengths[batches[0][0]] == max(lengths)
    assert list(batches_of([500, 3], 100)) == [[0], [1]]
    assert list(batches_of([], 100)) == []
