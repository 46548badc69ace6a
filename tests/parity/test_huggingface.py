"""Folders we write against stock transformers classes, and transformers folders read back."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, EsmConfig, EsmForMaskedLM, EuroBertForMaskedLM
from transformers.utils import logging as transformers_logging

from pretrain.model.contacts import ContactRegression, predict_contacts
from pretrain.model.encoder import Encoder
from pretrain.model.export import write_huggingface_folder
from pretrain.model.shape import TrunkShape
from pretrain.model.weights import load_trunk_weights
from tests.parity.trunks import (
    ESM2_8M,
    LETTERS,
    SMALL_AMPLIFY,
    masked_proteins,
    pack,
    pad,
    scramble,
    scrambled_encoder,
    unpad,
)

# fp32 sums in another order, over at most 6 layers, of logits of order 1.
LOGITS = 1e-5
SHAPES = pytest.mark.parametrize("shape", [ESM2_8M, SMALL_AMPLIFY], ids=["esm2", "amplify"])


@SHAPES
@torch.no_grad()
def test_saved_folder_gives_equal_logits_in_the_stock_class(shape: TrunkShape, tmp_path: Path) -> None:
    encoder = scrambled_encoder(shape)
    write_huggingface_folder(encoder, tmp_path)
    model, info = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(model, EsmForMaskedLM if shape.family == "esm2" else EuroBertForMaskedLM)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info

    proteins = masked_proteins(shape.family)
    padded, mask = pad(proteins, shape.alphabet)
    theirs = unpad(model.eval()(padded, attention_mask=mask).logits, proteins)
    assert theirs.std() > 0.3, "logits too flat to compare"
    assert (encoder.lm_logits(encoder(pack(proteins))) - theirs).abs().max() <= LOGITS


@SHAPES
def test_written_folder_reads_back_bit_for_bit(shape: TrunkShape, tmp_path: Path) -> None:
    encoder, again = scrambled_encoder(shape, seed=1), scrambled_encoder(shape, seed=2)
    write_huggingface_folder(encoder, tmp_path)
    load_trunk_weights(again, str(tmp_path), "custom")
    theirs = again.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in encoder.state_dict().items())


@SHAPES
def test_auto_tokenizer_of_the_folder_gives_our_tokens(shape: TrunkShape, tmp_path: Path) -> None:
    write_huggingface_folder(scrambled_encoder(TrunkShape(shape.family, 1, 16, 2)), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokens = shape.alphabet
    sequence = LETTERS + "BXJ" + LETTERS[::-1]
    expected = [tokens.cls_id, *tokens.encode(sequence), tokens.eos_id]
    if shape.family == "esm2":
        # transformers' EsmTokenizer makes one <unk> of a run of letters it does not know, J here.
        assert tokenizer("J").input_ids == [tokens.cls_id, tokens.unk_id, tokens.eos_id]
    assert tokenizer(sequence).input_ids == expected
    assert tokenizer(f"LA{tokenizer.mask_token}G").input_ids[3] == tokens.mask_id
    assert tokenizer.pad_token_id == tokens.pad_id


@torch.no_grad()
def test_contact_regression_travels_with_the_esm_folder(tmp_path: Path) -> None:
    encoder = scrambled_encoder(ESM2_8M)
    generator = torch.Generator().manual_seed(0)
    regression = ContactRegression(torch.randn(120, generator=generator), 0.3)
    write_huggingface_folder(encoder, tmp_path, regression)
    model = EsmForMaskedLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    (tokens,) = masked_proteins("esm2", lengths=(40,))
    theirs = model.predict_contacts(tokens[None], torch.ones_like(tokens)[None])[0]
    (maps,) = encoder.attention_maps(pack([tokens]))
    # Probabilities in [0, 1] from 120 maps with weights of order 1.
    assert (predict_contacts(maps, regression) - theirs).abs().max() <= 1e-5


@torch.no_grad()
def test_folder_saved_by_transformers_gives_its_logits_in_our_trunk(tmp_path: Path) -> None:
    config = EsmConfig(
        vocab_size=33, mask_token_id=32, pad_token_id=1, hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=256, layer_norm_eps=1e-5, position_embedding_type="rotary", token_dropout=True,
        emb_layer_norm_before=False,
    )  # fmt: skip
    model = EsmForMaskedLM(config).eval()
    scramble(model, seed=4)
    model.save_pretrained(tmp_path)
    encoder = Encoder(TrunkShape("esm2", 3, 64, 4)).eval()
    load_trunk_weights(encoder, str(tmp_path), "custom")
    proteins = masked_proteins("esm2")
    padded, mask = pad(proteins, encoder.shape.alphabet)
    theirs = unpad(model(padded, attention_mask=mask).logits, proteins)
    assert (encoder.lm_logits(encoder(pack(proteins))) - theirs).abs().max() <= LOGITS


@pytest.fixture(autouse=True, scope="module")
def _quiet_transformers() -> None:
    transformers_logging.disable_progress_bar()
