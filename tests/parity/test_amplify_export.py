"""AMPLIFY's published keys, through our trunk, in transformers' stock EuroBERT: against the float64 forward itself."""

from pathlib import Path

import safetensors.torch
import torch
from transformers import AutoModelForMaskedLM, EuroBertForMaskedLM

from pretrain.model.encoder import Encoder
from pretrain.model.export import write_huggingface_folder
from pretrain.model.weights import load_trunk_weights
from tests.parity.test_amplify import LOGITS, float64_forward, published_state
from tests.parity.trunks import SMALL_AMPLIFY, masked_proteins


@torch.no_grad()
def test_the_eurobert_export_of_published_keys_equals_their_float64_forward(tmp_path: Path) -> None:
    state = published_state(SMALL_AMPLIFY, seed=2)
    safetensors.torch.save_file(state, tmp_path / "amplify.safetensors")
    encoder = Encoder(SMALL_AMPLIFY).eval()
    load_trunk_weights(encoder, str(tmp_path / "amplify.safetensors"), "custom")
    write_huggingface_folder(encoder, tmp_path / "hub")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "hub").eval()
    assert isinstance(model, EuroBertForMaskedLM)
    for tokens in masked_proteins("amplify", lengths=(20, 9)):
        _, expected, _ = float64_forward(state, SMALL_AMPLIFY, tokens)
        assert expected.std() > 0.3, "logits too flat to compare"
        found = model(tokens[None], attention_mask=torch.ones_like(tokens)[None]).logits[0]
        assert (found - expected).abs().max() <= LOGITS
