"""The ESM-C trunk against transformers' EsmcForMaskedLM, in both directions."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, EsmcConfig, EsmcForMaskedLM
from transformers.utils import logging as transformers_logging

from configs.trunk import TrunkConfig
from pretrain.model.encoder import Encoder
from pretrain.model.export import write_huggingface_folder
from pretrain.model.shape import TrunkShape, trunk_shape
from pretrain.model.weights import load_trunk_weights
from tests.parity.trunks import masked_proteins, pack, pad, scramble, scrambled_encoder, unpad

SHAPE = TrunkShape("esmc", 4, 128, 2)
LOGITS = 1e-5
"""fp32 sums in another order, over 4 layers, of logits of order 1."""


@pytest.fixture(autouse=True, scope="module")
def _quiet_transformers() -> None:
    transformers_logging.disable_progress_bar()


@pytest.fixture(scope="module")
def theirs() -> EsmcForMaskedLM:
    config = EsmcConfig(
        hidden_size=128, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=2, intermediate_size=512
    )
    model = EsmcForMaskedLM(config).eval()
    scramble(model, seed=3)
    return model


@torch.no_grad()
def test_a_folder_of_transformers_gives_its_logits_and_states_in_our_trunk(
    theirs: EsmcForMaskedLM, tmp_path: Path
) -> None:
    theirs.save_pretrained(tmp_path)
    encoder = Encoder(SHAPE).eval()
    load_trunk_weights(encoder, str(tmp_path), "custom")
    proteins = masked_proteins("esmc", lengths=(20, 20, 9))
    padded, mask = pad(proteins, SHAPE.alphabet)
    expected = theirs(padded, attention_mask=mask, output_hidden_states=True)
    hidden = encoder(pack(proteins))
    logits = unpad(expected.logits, proteins)
    assert logits.std() > 0.3, "logits too flat to compare"
    assert (encoder.lm_logits(hidden) - logits).abs().max() <= LOGITS
    assert (hidden - unpad(expected.hidden_states[-1], proteins)).abs().max() <= LOGITS


@torch.no_grad()
def test_attention_maps_are_those_of_transformers(theirs: EsmcForMaskedLM, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path)
    eager = EsmcForMaskedLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    encoder = Encoder(SHAPE).eval()
    load_trunk_weights(encoder, str(tmp_path), "custom")
    (tokens,) = masked_proteins("esmc", lengths=(20,))
    expected = torch.cat([layer[0] for layer in eager(tokens[None], output_attentions=True).attentions])
    assert (encoder.attention_maps(pack([tokens]))[0] - expected).abs().max() <= LOGITS


@torch.no_grad()
def test_the_written_folder_serves_in_the_stock_class_and_comes_back_bit_for_bit(tmp_path: Path) -> None:
    encoder, again = scrambled_encoder(SHAPE), scrambled_encoder(SHAPE, seed=2)
    write_huggingface_folder(encoder, tmp_path)
    model, info = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(model, EsmcForMaskedLM)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    proteins = masked_proteins("esmc", lengths=(20, 9))
    padded, mask = pad(proteins, SHAPE.alphabet)
    expected = unpad(model.eval()(padded, attention_mask=mask).logits, proteins)
    assert (encoder.lm_logits(encoder(pack(proteins))) - expected).abs().max() <= LOGITS
    load_trunk_weights(again, str(tmp_path), "custom")
    state = again.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in encoder.state_dict().items())


def test_the_tokenizer_of_the_folder_gives_our_tokens(tmp_path: Path) -> None:
    write_huggingface_folder(scrambled_encoder(TrunkShape("esmc", 1, 16, 2)), tmp_path)
    tokenizer, tokens = AutoTokenizer.from_pretrained(tmp_path), SHAPE.alphabet
    sequence = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQXBUZO"
    assert tokenizer(sequence).input_ids == [tokens.cls_id, *tokens.encode(sequence), tokens.eos_id]
    assert tokenizer.mask_token_id == tokens.mask_id


def test_the_published_size_has_its_number_of_parameters() -> None:
    with torch.device("meta"):
        trunk = Encoder(trunk_shape(TrunkConfig(model="ESMC_300M")))
        theirs = EsmcForMaskedLM(
            EsmcConfig(
                hidden_size=960, num_hidden_layers=30, num_attention_heads=15, num_key_value_heads=15,
                intermediate_size=2560,
            )
        )  # fmt: skip
    assert sum(p.numel() for p in trunk.parameters()) == sum(p.numel() for p in theirs.parameters())
