"""The ESM-2 trunk against fair-esm, the reference implementation."""

import argparse
import copy
from pathlib import Path

import esm
import pytest
import torch
import torch.nn.functional as F
from esm.model.esm2 import ESM2

from pretrain.model.contacts import predict_contacts, read_contact_regression
from pretrain.model.encoder import Encoder
from pretrain.model.export import fair_esm_files, to_fair_esm
from pretrain.model.weights import load_trunk_weights
from tests.parity.trunks import ESM2_8M, masked_proteins, pack, pad, scramble, scrambled_encoder, unpad

# fp32 sums of at most 1280 terms of order 1 in another order, over 6 layers.
LOGITS = 1e-5


@pytest.fixture(scope="module")
def fair_esm() -> ESM2:
    model = ESM2(ESM2_8M.layers, ESM2_8M.width, ESM2_8M.heads).eval()
    scramble(model, seed=3)
    # Random weights attend almost evenly; a steep regression spreads the contacts that come of it.
    model.contact_head.regression.weight.data.mul_(5)
    return model


@pytest.fixture(scope="module")
def fair_esm_file(fair_esm: ESM2, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the layout of the published ones, made from fair-esm's own state dict."""
    path = tmp_path_factory.mktemp("fair_esm") / "esm2_t6_8M_UR50D.pt"
    state = {
        f"encoder.{name}" if name.startswith("lm_head") else f"encoder.sentence_encoder.{name}": tensor
        for name, tensor in fair_esm.state_dict().items()
        if not name.startswith("contact_head")
    }
    torch.save({"cfg": {"model": argparse.Namespace(encoder_attention_heads=20)}, "model": state}, path)
    regression = {f"contact_head.{k}": v for k, v in fair_esm.contact_head.state_dict().items()}
    torch.save({"model": regression}, path.with_name("esm2_t6_8M_UR50D-contact-regression.pt"))
    return path


@pytest.fixture(scope="module")
def ours(fair_esm_file: Path) -> Encoder:
    encoder = Encoder(ESM2_8M).eval()
    load_trunk_weights(encoder, str(fair_esm_file), "esm2_t6_8M_UR50D")
    return encoder


@torch.no_grad()
def test_logits_and_states_of_packed_proteins_equal_fair_esm_on_padded_ones(fair_esm: ESM2, ours: Encoder) -> None:
    proteins = masked_proteins("esm2")
    padded, _ = pad(proteins, ESM2_8M.alphabet)
    theirs = fair_esm(padded, repr_layers=range(7))
    hidden = ours(pack(proteins))

    assert unpad(theirs["logits"], proteins).std() > 0.3, "logits too flat to compare"
    difference = (ours.lm_logits(hidden) - unpad(theirs["logits"], proteins)).abs().max()
    assert difference <= LOGITS
    for layer, state in enumerate(ours.layer_states(pack(proteins))):
        expected = unpad(theirs["representations"][layer], proteins)
        # States grow with depth: relative to their largest value, the same rounding.
        assert (state - expected).abs().max() <= LOGITS * max(1, expected.abs().max())


def test_gradients_of_packed_proteins_equal_fair_esm_on_padded_ones(fair_esm: ESM2, ours: Encoder) -> None:
    proteins = masked_proteins("esm2")
    padded, _ = pad(proteins, ESM2_8M.alphabet)
    targets = torch.randint(4, 24, (sum(map(len, proteins)),), generator=torch.Generator().manual_seed(0))
    fair_esm.zero_grad()
    ours.zero_grad()
    F.cross_entropy(unpad(fair_esm(padded)["logits"], proteins), targets).backward()
    F.cross_entropy(ours.lm_logits(ours(pack(proteins))), targets).backward()
    # Gradients go under fair-esm's names as weights do: a permutation of rows.
    holder = copy.deepcopy(ours)
    with torch.no_grad():
        for parameter, source in zip(holder.parameters(), ours.parameters(), strict=True):
            parameter.copy_(source.grad)
    exported = to_fair_esm(holder)
    theirs = {name: p.grad for name, p in fair_esm.named_parameters() if not name.startswith("contact_head")}
    assert len(theirs) > 90
    for name, expected in theirs.items():
        # The bias of keys shifts all scores of a query alike: its gradient is 0 but for rounding.
        assert expected.abs().max() > 1e-4 or name.endswith("k_proj.bias"), name
        assert (exported[name] - expected).abs().max() <= LOGITS * max(1.0, expected.abs().max()), name


@torch.no_grad()
def test_attention_maps_and_contacts_equal_fair_esm(fair_esm: ESM2, ours: Encoder, fair_esm_file: Path) -> None:
    proteins = [tokens for tokens in masked_proteins("esm2") if len(tokens) > 10]
    regression = read_contact_regression(fair_esm_file.with_name("esm2_t6_8M_UR50D-contact-regression.pt"))
    for tokens, maps in zip(proteins, ours.attention_maps(pack(proteins)), strict=True):
        theirs = fair_esm(tokens[None], return_contacts=True)
        # Probabilities and sigmoids in [0, 1].
        assert (maps - theirs["attentions"][0].flatten(0, 1)).abs().max() <= 1e-5
        contacts = predict_contacts(maps, regression)
        assert contacts.std() > 0.01
        assert (contacts - theirs["contacts"][0]).abs().max() <= 1e-5


@torch.no_grad()
def test_frequencies_rounded_through_fp16_are_used_as_the_file_has_them(fair_esm: ESM2, tmp_path: Path) -> None:
    # Released ESM-2 files hold such frequencies; at position 400 the rounding turns angles by up to 0.1.
    state = fair_esm.state_dict()
    for name in state:
        if name.endswith("inv_freq"):
            state[name] = state[name].half()
    path = tmp_path / "esm2_rounded.pt"
    torch.save({"model": state}, path)
    rounded = ESM2(ESM2_8M.layers, ESM2_8M.width, ESM2_8M.heads).eval()
    rounded.load_state_dict(state)
    encoder = Encoder(ESM2_8M).eval()
    load_trunk_weights(encoder, str(path), "custom")

    tokens = masked_proteins("esm2", lengths=(400,))
    packed = pack(tokens)
    expected = rounded(tokens[0][None])["logits"][0]
    assert (fair_esm(tokens[0][None])["logits"][0] - expected).abs().max() > 10 * LOGITS, "rounding would not show"
    assert (encoder.lm_logits(encoder(packed)) - expected).abs().max() <= LOGITS

    clone = encoder.bfloat16().float()
    assert torch.equal(clone.rotary.inv_freq, state["layers.0.self_attn.rot_emb.inv_freq"].float())


def test_fair_esm_state_returns_bit_for_bit(fair_esm: ESM2, ours: Encoder) -> None:
    exported = to_fair_esm(ours)
    theirs = {name: tensor for name, tensor in fair_esm.state_dict().items() if not name.startswith("contact_head")}
    assert exported.keys() == theirs.keys()
    assert all(torch.equal(exported[name], theirs[name]) for name in theirs)


@torch.no_grad()
def test_fair_esm_loads_the_files_we_describe(tmp_path: Path) -> None:
    encoder = scrambled_encoder(ESM2_8M, seed=5)
    path = tmp_path / "esm2_ours.pt"
    model_file, regression_file = fair_esm_files(encoder)
    torch.save(model_file, path)
    torch.save(regression_file, tmp_path / "esm2_ours-contact-regression.pt")
    with torch.serialization.safe_globals([argparse.Namespace]):
        model, alphabet = esm.pretrained.load_model_and_alphabet_local(str(path))
    proteins = masked_proteins("esm2")
    padded, _ = pad(proteins, ESM2_8M.alphabet)
    assert alphabet.all_toks == list(ESM2_8M.alphabet.tokens)
    difference = encoder.lm_logits(encoder(pack(proteins))) - unpad(model.eval()(padded)["logits"], proteins)
    assert difference.abs().max() <= LOGITS
