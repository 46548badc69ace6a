"""Contact probabilities against transformers' EsmForMaskedLM.predict_contacts with the same weights and regression."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, EsmForMaskedLM

from eval.tasks.contact import contact_logits
from pretrain.model.contacts import ContactRegression, predict_contacts
from pretrain.model.export import write_huggingface_folder
from tests.unit.eval.makers import make_features, train_config

SEQUENCES = ("MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVG", "ACDEFGHIKLMNPQRSTVWYX")


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_contact_probabilities_equal_those_of_transformers(tmp_path: Path, sequence: str) -> None:
    features = make_features(train_config(tmp_path, tmp_path))
    generator = torch.Generator().manual_seed(3)
    # Weights as large as fitted ones, so that probabilities leave 0.5.
    regression = ContactRegression(20 * torch.randn(8, generator=generator), -2.0)
    write_huggingface_folder(features.model.model.trunk, tmp_path / "hub", regression)
    theirs = EsmForMaskedLM.from_pretrained(tmp_path / "hub", attn_implementation="eager").eval()
    inputs = AutoTokenizer.from_pretrained(tmp_path / "hub")(sequence, return_tensors="pt")
    with torch.no_grad():
        expected = theirs.predict_contacts(inputs["input_ids"], inputs["attention_mask"])[0]
    maps = features.model.attention_maps(sequence)
    found = torch.sigmoid(contact_logits(maps, regression))
    assert expected.std() > 0.01
    # float32 attention of two layers, times weights of about 20: 1e-5 in probability.
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(predict_contacts(maps, regression), expected, atol=1e-5, rtol=0)
