"""`python -m pretrain export`: every form from a checkpoint, and one clear line for what cannot be."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from typer.testing import CliRunner

from configs.errors import UserError
from configs.loading import dump_config
from configs.train import TrainConfig
from pretrain import checkpoints
from pretrain.checkpoints import Checkpoint, Share, open_checkpoint
from pretrain.cli import app
from pretrain.export import export
from pretrain.model import fair_esm
from pretrain.model.alignment import AlignmentModel
from pretrain.model.contacts import read_contact_regression
from pretrain.model.encoder import Encoder
from pretrain.model.lora import apply_lora
from pretrain.model.shape import trunk_shape
from pretrain.model.weights import load_trunk, load_trunk_weights
from tests.parity.trunks import masked_proteins, pack, scramble
from tests.unit.pretrain.training import make_config

FORMS = [("esm2", "fair-esm", "esm2_sa.pt"), ("esm2", "huggingface", "sa"), ("amplify", "huggingface", "sa")]
FORMS += [("amplify", "amplify", "sa.safetensors"), ("esmc", "huggingface", "sa")]


def write_checkpoint(run: Path, step: int = 3, seed: int = 0, **overrides: Any) -> tuple[Checkpoint, AlignmentModel]:
    """A checkpoint of random weights, with adapters where the config has them."""
    config: TrainConfig = make_config(run.parent, name=run.name, losses__projection_width=8, **overrides)
    model = AlignmentModel(trunk_shape(config.trunk), config.losses, teacher_width=7)
    if config.trunk.lora is not None:
        apply_lora(model.trunk, config.trunk.lora)
    scramble(model, seed)
    weights = dict(model.named_parameters()) | dict(model.named_buffers())
    share = Share({name: tensor.detach() for name, tensor in weights.items()}, {})
    return open_checkpoint(checkpoints.save(run, step, dump_config(config), {}, share)), model.eval()


def write_evaluation(checkpoint: Checkpoint, sha256: str, weights: int = 8) -> Path:
    """Results with a refitted contact regression, as `eval run` leaves them in the run folder."""
    folder = checkpoint.path.parent.parent / "eval" / checkpoint.path.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps({"weights_sha256": sha256}))
    arrays = {"weight": np.arange(weights, dtype=np.float32), "bias": np.array([-1.5], dtype=np.float32)}
    safetensors.numpy.save_file(arrays, folder / "contact_regression.safetensors")
    return folder / "contact_regression.safetensors"


@pytest.mark.parametrize(("family", "form", "name"), FORMS)
def test_an_exported_trunk_reads_back_bit_for_bit(family: str, form: str, name: str, tmp_path: Path) -> None:
    checkpoint, model = write_checkpoint(tmp_path / "run", trunk__family=family)
    written = export(checkpoint.path.parent.parent, form, tmp_path / "out" / name)
    assert written.paths[0] == tmp_path / "out" / name
    assert written.num_bytes > 4 * sum(p.numel() for p in model.trunk.parameters())
    again = Encoder(model.trunk.shape)
    load_trunk_weights(again, str(written.paths[0]), "custom")
    expected = model.trunk.state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in again.state_dict().items())
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in written.paths}
    for path in (tmp_path / "out").rglob("*"):
        assert path.stat().st_mode & 0o044 == 0o044, "others may read it"


@torch.no_grad()
def test_adapters_are_merged_into_the_export(tmp_path: Path) -> None:
    lora = {"rank": 2, "alpha": 4.0}
    checkpoint, model = write_checkpoint(tmp_path / "run", trunk__weights="published.pt", trunk__lora=lora)
    export(checkpoint.path, "fair-esm", tmp_path / "esm2.pt")
    plain = Encoder(model.trunk.shape).eval()
    load_trunk_weights(plain, str(tmp_path / "esm2.pt"), "custom")
    packed = pack(masked_proteins("esm2"))
    expected = model.trunk.lm_logits(model.trunk(packed))
    # float32 in another order over two layers; scrambled adapters are as large as the weights.
    torch.testing.assert_close(plain.lm_logits(plain(packed)), expected, atol=1e-5, rtol=1e-5)
    # A further run starts from such a checkpoint as from any other.
    further = Encoder(model.trunk.shape)
    load_trunk_weights(further, str(checkpoint.path), "custom")
    assert all(torch.equal(t, plain.state_dict()[name]) for name, t in further.state_dict().items())


def test_the_contact_head_of_an_evaluation_of_these_weights_is_taken_along(tmp_path: Path) -> None:
    checkpoint, _ = write_checkpoint(tmp_path / "run")
    regression = write_evaluation(checkpoint, checkpoint.weights_sha256)
    assert export(checkpoint.path, "fair-esm", tmp_path / "esm2.pt").contacts == regression
    found = read_contact_regression(fair_esm.regression_path(tmp_path / "esm2.pt"))
    assert found.weight.tolist() == list(range(8))
    assert found.bias == -1.5
    write_evaluation(checkpoint, "of other weights")
    assert export(checkpoint.path, "fair-esm", tmp_path / "esm2_other.pt").contacts is None
    assert export(checkpoint.path, "huggingface", tmp_path / "named", contacts=regression).contacts == regression


@pytest.mark.parametrize(
    ("family", "form", "name", "message"),
    [
        ("esm2", "amplify", "sa.safetensors", "'amplify' is for amplify trunks, this one is esm2; .*fair-esm, hugg"),
        ("amplify", "fair-esm", "esm2.pt", "'fair-esm' is for esm2 trunks, this one is amplify; .*huggingface, ampl"),
        ("esmc", "fair-esm", "esm2.pt", "'fair-esm' is for esm2 trunks, this one is esmc; allowed: huggingface$"),
        ("esm2", "fair-esm", "model.pt", r"fair-esm only loads esm2\*\.pt; name it e\.g\. .*esm2_sa\.pt"),
        ("amplify", "amplify", "folder", r"form amplify is one file; name it e\.g\. .*sa\.safetensors"),
        ("esm2", "huggingface", "there", "there: exists already; remove it, or name another"),
        ("esm2", "fair-esm", "esm2_kept.pt", "esm2_kept-contact-regression.pt: exists already"),
    ],
)
def test_what_cannot_be_written_is_one_clear_line(
    family: str, form: str, name: str, message: str, tmp_path: Path
) -> None:
    checkpoint, _ = write_checkpoint(tmp_path / "run", trunk__family=family)
    (tmp_path / "there").mkdir()
    (tmp_path / "esm2_kept-contact-regression.pt").touch()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=message) as caught:
        export(checkpoint.path, form, tmp_path / name)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_regression_of_another_trunk_is_refused(tmp_path: Path) -> None:
    checkpoint, _ = write_checkpoint(tmp_path / "run")
    other = write_evaluation(checkpoint, "of other weights", weights=7)
    with pytest.raises(UserError, match=r"has 7 weights, the trunk 8 attention maps \(2 layers x 4 heads\)"):
        export(checkpoint.path, "huggingface", tmp_path / "out", contacts=other)
    amplify, _ = write_checkpoint(tmp_path / "amplify", trunk__family="amplify")
    with pytest.raises(UserError, match="only exports of esm2 trunks hold one"):
        export(amplify.path, "huggingface", tmp_path / "out", contacts=other)


def test_a_teacher_has_nothing_to_export(tmp_path: Path) -> None:
    config = make_config(tmp_path, stage="teacher", trunk=None)
    path = checkpoints.save(tmp_path / "teacher", 1, dump_config(config), {}, Share({"a": torch.zeros(1)}, {}))
    with pytest.raises(UserError, match="stage 'teacher' trains no trunk"):
        export(path, "huggingface", tmp_path / "out")
    with pytest.raises(UserError, match="stage 'teacher' trains no trunk"):
        load_trunk(open_checkpoint(path))


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, _ = write_checkpoint(tmp_path / "run", trunk__family="amplify")

    def full(*_: object, **__: object) -> None:
        (tmp_path / ".sa.safetensors.part").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pretrain.export.safetensors.torch.save_file", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        export(checkpoint.path, "amplify", tmp_path / "sa.safetensors")
    assert not list(tmp_path.glob("*sa.safetensors*"))
    assert not list(tmp_path.glob(".sa*"))


def test_the_command_says_what_it_wrote(tmp_path: Path) -> None:
    checkpoint, _ = write_checkpoint(tmp_path / "run")
    output = tmp_path / "esm2_sa.pt"
    shown = CliRunner().invoke(app, ["export", str(checkpoint.path), "--form", "fair-esm", "-o", str(output)])
    assert shown.exit_code == 0, shown.output
    assert f"{output}, {output.with_name('esm2_sa-contact-regression.pt')}" in shown.output
    assert "contacts none fitted" in shown.output
