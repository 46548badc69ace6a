"""A release is what transformers loads, or it does not exist."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from configs.errors import UserError
from configs.train import TrainConfig
from eval import release
from eval.release import check_push, sha256_of, verify_release, write_release
from eval.results import write_results
from pretrain.batch import Packed
from pretrain.checkpoints import open_checkpoint
from pretrain.model.load import load_model
from tests.unit.eval.makers import train_config, write_checkpoint
from tests.unit.eval.test_results import make_results


def evaluated(tmp_path: Path, family: str = "esm2") -> tuple[TrainConfig, Path, Path]:
    """A config, its checkpoint and an evaluation of it with a fitted contact regression."""
    config = train_config(tmp_path / "runs", tmp_path / "shards", family=family)
    path = write_checkpoint(config, 10)
    folder = tmp_path / "runs" / "small" / "eval" / "step_00000010"
    folder.mkdir(parents=True)
    weight = np.linspace(-3, 3, 8, dtype=np.float32)
    save_file(
        {"weight": torch.from_numpy(weight), "bias": torch.tensor([-1.0])}, folder / "contact_regression.safetensors"
    )
    write_results(make_results(weights_sha256=open_checkpoint(path).weights_sha256), folder)
    return config, path, folder


@pytest.fixture
def released(tmp_path: Path) -> tuple[Path, Path]:
    """Checkpoint and release folder."""
    _, path, folder = evaluated(tmp_path)
    write_release(path, folder, tmp_path / "out", None, "mit")
    return path, tmp_path / "out"


def run_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Execute the card's code where a reader of the folder would."""
    monkeypatch.chdir(folder)
    found: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL):
        exec(block, found)
    return found


def test_the_cards_code_runs_and_gives_the_checkpoints_answers(
    released: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder = released
    found = run_card(folder, monkeypatch)
    model = load_model(path)
    tokens = found["inputs"]["input_ids"][0]
    with torch.no_grad():
        hidden = model.trunk(Packed(tokens, (len(tokens),)))
        logits = model.trunk.lm_logits(hidden)
        threedi = model.threedi_logits(hidden, torch.arange(1, len(tokens) - 1))
    # Two implementations of a two-layer trunk in float32: 1e-5.
    torch.testing.assert_close(found["logits"][0], logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(found["threedi_logits"], threedi, atol=1e-5, rtol=0)
    assert len(found["threedi"]) == len(found["sequence"])
    assert found["contacts"].std() > 0, "the fitted regression is in the contact head"


@pytest.mark.parametrize(("family", "name"), [("amplify", "EuroBertForMaskedLM"), ("esmc", "EsmcForMaskedLM")])
def test_other_families_load_without_remote_code(
    family: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, path, folder = evaluated(tmp_path, family=family)
    write_release(path, folder, tmp_path / "out", "lab/name", "mit")
    card = tmp_path / "out" / "README.md"
    assert 'from_pretrained("lab/name")' in card.read_text()
    write_release(path, folder, tmp_path / "out", None, "mit")
    found = run_card(tmp_path / "out", monkeypatch)
    model, tokens = load_model(path), found["inputs"]["input_ids"][0]
    with torch.no_grad():
        hidden = model.trunk(Packed(tokens, (len(tokens),)))
        threedi = model.threedi_logits(hidden, torch.arange(1, len(tokens) - 1))
    torch.testing.assert_close(found["threedi_logits"], threedi, atol=1e-5, rtol=0)
    assert type(found["model"]).__name__ == name


def test_the_manifest_names_every_file_with_its_sha256(released: tuple[Path, Path]) -> None:
    path, folder = released
    manifest = json.loads((folder / "release.json").read_text())
    files = {file.name for file in folder.iterdir()} - {"release.json"}
    assert set(manifest["files"]) == files
    assert {"model.safetensors", "config.json", "vocab.txt", "heads.safetensors", "heads.json", "results.json"} <= files
    assert all(sha256_of(folder / name) == facts["sha256"] for name, facts in manifest["files"].items())
    assert manifest["weights_sha256"] == open_checkpoint(path).weights_sha256
    assert not any(file.suffix in (".bin", ".pt", ".pkl") for file in folder.iterdir())


def test_heads_are_described_by_what_is_in_the_file(released: tuple[Path, Path]) -> None:
    _, folder = released
    facts, tensors = json.loads((folder / "heads.json").read_text()), load_file(folder / "heads.safetensors")
    assert facts["tensors"] == {name: list(tensor.shape) for name, tensor in tensors.items()}
    assert set(facts["heads"]) == {name.split(".")[0] for name in tensors}


def test_the_front_matter_holds_licence_and_results(released: tuple[Path, Path]) -> None:
    _, folder = released
    front = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert (front["license"], front["pipeline_tag"], front["library_name"]) == ("mit", "fill-mask", "transformers")
    metric = front["model-index"][0]["results"][0]["metrics"][0]
    assert (metric["type"], metric["value"]) == ("accuracy", 0.5)


def test_results_of_other_weights_are_refused(tmp_path: Path) -> None:
    config, _, folder = evaluated(tmp_path)
    other = write_checkpoint(config, 20, seed=5)
    with pytest.raises(UserError, match="of other weights"):
        write_release(other, folder, tmp_path / "out", None, "mit")
    assert not (tmp_path / "out").exists()


def test_a_run_and_its_evaluation_folder_name_the_last_checkpoint(tmp_path: Path) -> None:
    config, _, folder = evaluated(tmp_path)
    written = write_release(config.runs / config.name, folder.parent, tmp_path / "out", None, "mit")
    assert json.loads((written.folder / "release.json").read_text())["step"] == 10


def test_a_folder_whose_logits_differ_is_never_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, path, folder = evaluated(tmp_path)
    honest = release.write_huggingface_folder

    def careless(encoder, target, regression):
        honest(encoder, target, regression)
        tensors = load_file(target / "model.safetensors")
        tensors["lm_head.bias"] = tensors["lm_head.bias"] + 1e-3
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(release, "write_huggingface_folder", careless)
    with pytest.raises(UserError, match="logits or contacts of the written model differ"):
        write_release(path, folder, tmp_path / "out", None, "mit")
    assert not (tmp_path / "out").exists()
    assert [file.name for file in tmp_path.iterdir() if file.name.endswith(".part")] == []


@pytest.mark.parametrize(
    ("tensor", "word"), [(torch.empty(0, 3), "empty"), (torch.tensor([1.0, float("nan")]), "finite")]
)
def test_an_empty_or_non_finite_tensor_is_refused(released: tuple[Path, Path], tensor: torch.Tensor, word: str) -> None:
    path, folder = released
    save_file({"threedi_head.out.bias": tensor}, folder / "heads.safetensors")
    with pytest.raises(UserError, match=word):
        verify_release(load_model(path), folder)


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    _, path, folder = evaluated(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="something other than a release"):
        write_release(path, folder, tmp_path / "out", None, "mit")
    assert (tmp_path / "out" / "thesis.tex").read_text() == "mine"


def test_an_upload_that_cannot_work_is_refused_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="needs --repo"):
        check_push(None)
    with pytest.raises(UserError, match="ORG/NAME"):
        check_push("name")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UserError, match="no token"):
        check_push("lab/name")


def test_an_upload_without_network_is_one_clear_line(
    released: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "token")
    # HF_HUB_OFFLINE is set in tests, so the client refuses before it opens a connection.
    with pytest.raises(UserError, match=r"failed .*can be uploaded later"):
        release.push_release(released[1], "lab/name")
