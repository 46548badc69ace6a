"""Files written for fair-esm, against fair-esm's own loader, and there and back again."""

import argparse
from pathlib import Path

import esm
import pytest
import torch
from esm.model.esm2 import ESM2
from torch import Tensor

from pretrain.model import fair_esm
from pretrain.model.contacts import ContactRegression, predict_contacts, read_contact_regression
from pretrain.model.encoder import Encoder
from pretrain.model.fair_esm import regression_path, write_fair_esm
from pretrain.model.shape import TrunkShape
from pretrain.model.weights import load_trunk_weights
from tests.parity.trunks import ESM2_8M, masked_proteins, pack, pad, scramble, scrambled_encoder, unpad

SMALL = TrunkShape("esm2", 2, 32, 4)
TOLERANCE = 1e-5
"""fp32 sums of at most 1280 terms of order 1 in another order, over 6 layers; contacts lie in [0, 1]."""
_PROTEINS = (30, 12, 7)


def load_in_fair_esm(path: Path) -> ESM2:
    with torch.serialization.safe_globals([argparse.Namespace]):
        model, _ = esm.pretrained.load_model_and_alphabet_local(str(path))
    return model.eval()


def read_pt(path: Path) -> dict:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True)


def fitted_regression(shape: TrunkShape) -> ContactRegression:
    generator = torch.Generator().manual_seed(0)
    return ContactRegression(torch.randn(shape.layers * shape.heads, generator=generator), -0.3)


@torch.no_grad()
def test_fair_esm_gives_our_logits_and_contacts_from_the_written_files(tmp_path: Path) -> None:
    encoder, regression = scrambled_encoder(ESM2_8M, seed=5), fitted_regression(ESM2_8M)
    write_fair_esm(encoder, tmp_path / "esm2_t6_8M_sa.pt", regression)
    model = load_in_fair_esm(tmp_path / "esm2_t6_8M_sa.pt")
    proteins = masked_proteins("esm2", lengths=_PROTEINS)
    theirs = unpad(model(pad(proteins, ESM2_8M.alphabet)[0])["logits"], proteins)
    assert theirs.std() > 0.3, "logits too flat to compare"
    assert (encoder.lm_logits(encoder(pack(proteins))) - theirs).abs().max() <= TOLERANCE
    for tokens, maps in zip(proteins, encoder.attention_maps(pack(proteins)), strict=True):
        expected = model.predict_contacts(tokens[None])[0]
        assert expected.std() > 0.01
        assert (predict_contacts(maps, regression) - expected).abs().max() <= TOLERANCE


def test_without_a_regression_fair_esm_still_loads_and_knows_no_contact(tmp_path: Path) -> None:
    write_fair_esm(scrambled_encoder(SMALL), tmp_path / "esm2_small.pt")
    model = load_in_fair_esm(tmp_path / "esm2_small.pt")
    (tokens,) = masked_proteins("esm2", lengths=(10,))
    with torch.no_grad():
        assert torch.equal(model.predict_contacts(tokens[None]), torch.full((1, 10, 10), 0.5))


def test_nothing_but_tensors_containers_and_one_namespace_is_pickled(tmp_path: Path) -> None:
    path = tmp_path / "esm2_small.pt"
    write_fair_esm(scrambled_encoder(SMALL), path)
    assert torch.serialization.get_unsafe_globals_in_checkpoint(path) == ["argparse.Namespace"]
    assert torch.serialization.get_unsafe_globals_in_checkpoint(regression_path(path)) == []
    content = read_pt(path)
    assert content.keys() == {"cfg", "model"}
    assert all(type(tensor) is Tensor for tensor in content["model"].values())
    tensors = sum(tensor.nbytes for tensor in content["model"].values())
    # Every tensor with its own bytes only; the zip's records of about 200 bytes each come on top.
    assert path.stat().st_size < tensors + 1000 * len(content["model"]) + 20_000


def test_a_fair_esm_file_comes_back_with_identical_tensors(tmp_path: Path) -> None:
    model = ESM2(SMALL.layers, SMALL.width, SMALL.heads)
    scramble(model, seed=7)
    state = {
        f"encoder.{name}" if name.startswith("lm_head") else f"encoder.sentence_encoder.{name}": tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith("contact_head")
    }
    # Published files keep frequencies that were rounded through half precision.
    rounded = {name: tensor.half().float() for name, tensor in state.items() if name.endswith("inv_freq")}
    state |= rounded
    settings = argparse.Namespace(encoder_layers=2, encoder_embed_dim=32, encoder_attention_heads=4, arch="esm2")
    torch.save({"cfg": {"model": settings}, "model": state}, tmp_path / "esm2_theirs.pt")
    regression = {f"contact_head.{name}": tensor for name, tensor in model.contact_head.state_dict().items()}
    torch.save({"model": regression}, tmp_path / "esm2_theirs-contact-regression.pt")

    encoder = Encoder(SMALL)
    load_trunk_weights(encoder, str(tmp_path / "esm2_theirs.pt"), "custom")
    ours = read_contact_regression(tmp_path / "esm2_theirs-contact-regression.pt")
    write_fair_esm(encoder, tmp_path / "esm2_again.pt", ours)
    for name in ("", "-contact-regression"):
        before = read_pt(tmp_path / f"esm2_theirs{name}.pt")["model"]
        after = read_pt(tmp_path / f"esm2_again{name}.pt")["model"]
        assert after.keys() == before.keys()
        assert all(torch.equal(after[key], before[key]) for key in before)


def test_the_bytes_depend_on_the_weights_alone(tmp_path: Path) -> None:
    for name in ("esm2_one.pt", "esm2_other.pt"):
        write_fair_esm(scrambled_encoder(SMALL, seed=3), tmp_path / name, fitted_regression(SMALL))
    assert (tmp_path / "esm2_one.pt").read_bytes() == (tmp_path / "esm2_other.pt").read_bytes()


def test_files_in_half_precision_and_of_the_old_format_are_read(tmp_path: Path) -> None:
    encoder = scrambled_encoder(SMALL, seed=4)
    write_fair_esm(encoder, tmp_path / "esm2.pt")
    content = read_pt(tmp_path / "esm2.pt")
    torch.save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    # The published 3B and 15B files are in half precision.
    content["model"] = {name: tensor.half() for name, tensor in content["model"].items()}
    torch.save(content, tmp_path / "half.pt")
    for name, rounded in (("old", lambda tensor: tensor), ("half", lambda tensor: tensor.half().float())):
        again = Encoder(SMALL)
        load_trunk_weights(again, str(tmp_path / f"{name}.pt"), "custom")
        theirs = dict(again.named_parameters())
        assert all(torch.equal(theirs[key], rounded(value)) for key, value in encoder.named_parameters())
        assert torch.equal(again.rotary.inv_freq, rounded(encoder.rotary.inv_freq))


def test_an_interrupted_write_leaves_neither_a_file_nor_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "esm2.pt"
    write_fair_esm(scrambled_encoder(SMALL, seed=1), path)
    before = path.read_bytes()

    def full(content: dict, file: object) -> None:
        file.write(b"PK")
        raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")

    monkeypatch.setattr(fair_esm.torch, "save", full)
    with pytest.raises(OSError, match="file write failed"):
        write_fair_esm(scrambled_encoder(SMALL, seed=2), path)
    assert path.read_bytes() == before
    assert {file.name for file in tmp_path.iterdir()} == {"esm2.pt", "esm2-contact-regression.pt"}
