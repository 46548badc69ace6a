"""Models of transformers, opened as peers, give what this project's own implementation of the same weights gives."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from configs.evaluate import EvalConfig
from eval.models.checkpoint_model import CheckpointModel, checkpoint_model
from eval.models.open import open_model
from eval.models.protocol import RESIDUES
from eval.models.transformers_model import TransformersModel
from pretrain.model.export import write_huggingface_folder
from tests.unit.eval.makers import train_config, write_checkpoint

SEQUENCES = ("MKTAYIAKQRQISFVKSHFSRQ", "ACDEFGHIKLMNPQRSTVWYX", "M", "GSHMACDEF")
FAMILIES = ("esm2", "amplify", "esmc")


def both_ways(tmp_path: Path, family: str) -> tuple[CheckpointModel, TransformersModel]:
    """A random checkpoint, and the folder that a release of it holds."""
    path = write_checkpoint(train_config(tmp_path, tmp_path, family=family), 10)
    ours = checkpoint_model(path)
    folder = tmp_path / "release"
    write_huggingface_folder(ours.model.trunk, folder)
    heads = {name: t for name, t in ours.model.state_dict().items() if not name.startswith("trunk.")}
    save_file(heads, folder / "heads.safetensors")
    return ours, open_model(folder, EvalConfig(device="cpu", batch_tokens=64))


@pytest.mark.parametrize("family", FAMILIES)
def test_states_and_likelihoods_of_a_release_are_the_checkpoints(family: str, tmp_path: Path) -> None:
    ours, peer = both_ways(tmp_path, family)
    jobs = [(SEQUENCES[0], np.array([0, 5])), (SEQUENCES[1], np.array([20])), (SEQUENCES[0], np.array([21]))]
    for all_layers in (False, True):
        for a, b in zip(ours.hidden(SEQUENCES, all_layers), peer.hidden(SEQUENCES, all_layers), strict=True):
            # Two implementations of a two-layer trunk in float32, one of them padded.
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    for a, b in zip(ours.log_probs(SEQUENCES), peer.log_probs(SEQUENCES), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    for a, b in zip(ours.masked_log_probs(jobs), peer.masked_log_probs(jobs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.attention_maps(SEQUENCES[0]), peer.attention_maps(SEQUENCES[0]), atol=1e-5, rtol=0)
    assert (ours.width, ours.layers) == (peer.width, peer.layers)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_release_has_the_name_of_its_checkpoints_weights(family: str, tmp_path: Path) -> None:
    ours, peer = both_ways(tmp_path, family)
    assert peer.weights_sha256 == ours.weights_sha256
    changed = peer.model.state_dict()[next(n for n in peer.model.state_dict() if n.endswith("weight"))]
    folder = tmp_path / "changed"
    changed.flatten()[0] += 1e-3
    peer.model.save_pretrained(folder)
    for name in ("vocab.txt", "tokenizer_config.json", "tokenizer.json"):
        if (tmp_path / "release" / name).is_file():
            (folder / name).write_bytes((tmp_path / "release" / name).read_bytes())
    assert open_model(folder, EvalConfig(device="cpu")).weights_sha256 != ours.weights_sha256


@pytest.mark.parametrize("family", FAMILIES)
def test_trunks_to_tune_give_the_frozen_states_and_gradients_to_every_adapted_matrix(
    family: str, tmp_path: Path
) -> None:
    for model in both_ways(tmp_path, family):
        tunable = model.trunk()
        tunable.module.eval()
        states = tunable.states(SEQUENCES)
        for a, b in zip(states, model.hidden(SEQUENCES), strict=True):
            torch.testing.assert_close(a.detach(), b, atol=1e-5, rtol=0)
        torch.cat(states).square().sum().backward()
        adapted = [
            (name, parameter)
            for name, parameter in tunable.module.named_parameters()
            if name.endswith(".weight") and any(name.removesuffix(".weight").endswith(n) for n in tunable.linear_names)
        ]
        assert len(adapted) >= 4 * model.layers
        assert all(p.grad is not None and p.grad.abs().max() > 0 for _, p in adapted)
        assert all(p.grad is None for p in model.model.parameters()), "the frozen model is another copy"


def test_saprot_in_sequence_mode_hides_structure_and_sums_over_its_states(tmp_path: Path) -> None:
    folder = saprot_like(tmp_path)
    peer = open_model(folder, EvalConfig(device="cpu"))
    assert [len(states) for states in peer.hidden(SEQUENCES)] == [len(s) for s in SEQUENCES]
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([[0, *tokenizer.convert_tokens_to_ids(["M#", "##", "T#"]), 2]])
    with torch.no_grad():
        probabilities = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 2].softmax(-1)
    vocabulary = tokenizer.get_vocab()
    expected = torch.stack([
        probabilities[[i for token, i in vocabulary.items() if len(token) == 2 and token[0] == letter]].sum()
        for letter in RESIDUES
    ])  # fmt: skip
    found = peer.masked_log_probs([("MKT", np.array([1]))])[0][0]
    torch.testing.assert_close(found.exp(), expected, atol=1e-6, rtol=0)


def saprot_like(tmp_path: Path) -> Path:
    """A tiny ESM whose tokens are a residue and a structure state, as SaProt's are."""
    from transformers import EsmConfig, EsmForMaskedLM, EsmTokenizer

    folder = tmp_path / "saprot"
    folder.mkdir()
    states = "pynwrqhgdlvtmfsaeikc#"
    tokens = ["<cls>", "<pad>", "<eos>", "<unk>", "<mask>"]
    tokens += [residue + state for residue in "ACDEFGHIKLMNPQRSTVWY#" for state in states]
    (folder / "vocab.txt").write_text("\n".join(tokens))
    EsmTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    config = EsmConfig(
        vocab_size=len(tokens), mask_token_id=4, pad_token_id=1, hidden_size=32, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=128, position_embedding_type="rotary", token_dropout=True,
        emb_layer_norm_before=False, layer_norm_eps=1e-5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        EsmForMaskedLM(config).save_pretrained(folder)
    return folder


def test_every_letter_of_a_saprot_like_vocabulary_counts_once(tmp_path: Path) -> None:
    log_p = open_model(saprot_like(tmp_path), EvalConfig(device="cpu")).log_probs(["MKTX"])[0]
    # The 21st residue letter and five special tokens hold the rest of the probability.
    total = log_p.exp().sum(-1)
    assert bool(((total > 0.5) & (total < 1)).all())
