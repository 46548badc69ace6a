"""Reading weights: our checkpoints, and one clear line for every source that does not fit."""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from torch import Tensor

from configs.errors import UserError
from configs.losses import LossConfig
from configs.train import TrainConfig
from configs.training_data import DataConfig
from configs.trunk import TrunkConfig
from pretrain.model import load, weights
from pretrain.model.alignment import AlignmentModel
from pretrain.model.contacts import ContactRegression, read_contact_regression, write_contact_regression
from pretrain.model.encoder import Encoder
from pretrain.model.export import fair_esm_files, to_fair_esm, write_huggingface_folder
from pretrain.model.fair_esm import write_fair_esm
from pretrain.model.names import from_dialect
from pretrain.model.shape import TrunkShape
from pretrain.model.weights import load_trunk_weights
from tests.parity.trunks import scrambled_encoder

ESM2 = TrunkShape("esm2", 2, 32, 4)
AMPLIFY = TrunkShape("amplify", 2, 32, 4)


def configured(**changes: object) -> TrainConfig:
    trunk = TrunkConfig(model="custom", layers=2, width=32, heads=4)
    settings = {"stage": "align", "name": "test", "data": DataConfig(shards=Path("shards")), "trunk": trunk}
    return TrainConfig(**(settings | changes))


def tensors_of(model: torch.nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


@pytest.fixture
def checkpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AlignmentModel:
    """A model whose tensors every checkpoint folder is said to hold."""
    model = AlignmentModel(ESM2, LossConfig(), teacher_width=7)
    held = SimpleNamespace(config=configured(), path=tmp_path, weights=lambda: tensors_of(model))
    for module in (load, weights):
        monkeypatch.setattr(module, "open_checkpoint", lambda path: held)
    return model


def test_load_model_restores_every_tensor_without_moving_the_random_state(
    checkpoint: AlignmentModel, tmp_path: Path
) -> None:
    before = torch.random.get_rng_state()
    loaded = load.load_model(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not loaded.training
    assert loaded.structure_projection.linear.in_features == 7
    assert loaded.trunk.lm_head.weight is loaded.trunk.embedding.weight
    expected = tensors_of(checkpoint)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors_of(loaded).items())


def test_a_checkpoint_folder_of_ours_gives_its_trunk(checkpoint: AlignmentModel, tmp_path: Path) -> None:
    encoder = scrambled_encoder(ESM2, seed=9)
    load_trunk_weights(encoder, str(tmp_path), "custom")
    expected = tensors_of(checkpoint.trunk)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors_of(encoder).items())
    # Same shapes, other heads: only the config can tell.
    with pytest.raises(UserError, match=r"holds a trunk of esm2 2 x 32 x 4.*configured one is esm2 2 x 32 x 2"):
        load_trunk_weights(Encoder(TrunkShape("esm2", 2, 32, 2)), str(tmp_path), "custom")


def test_a_checkpoint_without_a_trunk_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    held = SimpleNamespace(config=configured(stage="teacher", trunk=None), path=tmp_path, weights=dict)
    monkeypatch.setattr(load, "open_checkpoint", lambda path: held)
    with pytest.raises(UserError, match="stage 'teacher' trains no trunk"):
        load.load_model(tmp_path)


def test_first_differences_are_listed_in_the_sources_words(tmp_path: Path) -> None:
    state = to_fair_esm(scrambled_encoder(ESM2))
    del state["layers.1.fc2.bias"]
    state["layers.0.fc1.weight"] = torch.zeros(3, 32)
    state["layers.7.fc1.weight"] = torch.zeros(3)
    torch.save({"model": state}, tmp_path / "esm2.pt")
    with pytest.raises(UserError) as caught:
        load_trunk_weights(Encoder(ESM2), str(tmp_path / "esm2.pt"), "custom")
    for part in (
        "layers.1.fc2.bias is missing",
        "layers.7.fc1.weight is unknown",
        "layers.0.fc1.weight has shape [3, 32], wanted [128, 32]",
    ):
        assert part in str(caught.value)


def test_a_failed_load_changes_nothing(tmp_path: Path) -> None:
    state = to_fair_esm(scrambled_encoder(ESM2, seed=1))
    state["layers.1.fc2.bias"] = torch.zeros(5)
    torch.save({"model": state}, tmp_path / "esm2.pt")
    encoder = scrambled_encoder(ESM2, seed=2)
    before = {name: tensor.clone() for name, tensor in tensors_of(encoder).items()}
    with pytest.raises(UserError):
        load_trunk_weights(encoder, str(tmp_path / "esm2.pt"), "custom")
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors_of(encoder).items())


def test_number_of_heads_is_compared_though_shapes_do_not_show_it(tmp_path: Path) -> None:
    encoder = scrambled_encoder(ESM2)
    write_huggingface_folder(encoder, tmp_path / "folder")
    torch.save(fair_esm_files(encoder)[0], tmp_path / "esm2_small.pt")
    other = Encoder(TrunkShape("esm2", 2, 32, 2))
    for source in ("folder", "esm2_small.pt"):
        with pytest.raises(UserError, match=r"has 4 attention heads, the configured trunk 2"):
            load_trunk_weights(other, str(tmp_path / source), "custom")


def test_sources_that_cannot_serve_are_one_clear_line(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "owned",))

    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil()))
    (tmp_path / "broken.safetensors").write_bytes(b"not a tensor file")
    safetensors.torch.save_file({"some.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    torch.save({"model": to_fair_esm(scrambled_encoder(ESM2))}, tmp_path / "esm2.pt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text(json.dumps({"num_attention_heads": 4}))
    for name, message in {
        "nowhere.pt": "no such file or folder",
        "evil.pt": "cannot be read safely",
        "broken.safetensors": "cannot be read as safetensors",
        "other.safetensors": r"of no known kind \(first: some.weight\)",
        "esm2.pt": "holds fair-esm ESM-2 weights, the configured trunk is amplify",
        "empty": r"has config.json but no model\*.safetensors",
    }.items():
        with pytest.raises(UserError, match=message):
            load_trunk_weights(Encoder(AMPLIFY), str(tmp_path / name), "custom")
    assert not (tmp_path / "owned").exists()


def test_eurobert_with_mlp_biases_is_not_taken_for_amplify(tmp_path: Path) -> None:
    write_huggingface_folder(scrambled_encoder(AMPLIFY), tmp_path)
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    state["model.layers.0.mlp.up_proj.bias"][3] = 0.5
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"model.layers.0.mlp.up_proj.bias is not zero"):
        load_trunk_weights(Encoder(AMPLIFY), str(tmp_path), "custom")


def test_hub_downloads_the_published_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = []

    def snapshot(repository: str, allow_patterns: list[str]) -> str:
        asked.append(repository)
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    for model in ("esm2_t6_8M_UR50D", "AMPLIFY_120M", "ESMC_300M"):
        with pytest.raises(UserError, match=r"could not be downloaded .* check the network"):
            load_trunk_weights(Encoder(ESM2), "hub", model)
    assert asked == ["facebook/esm2_t6_8M_UR50D", "chandar-lab/AMPLIFY_120M", "biohub/ESMC-300M"]
    with pytest.raises(UserError, match=r"needs a published trunk\.model, got 'custom'"):
        load_trunk_weights(Encoder(ESM2), "hub", "custom")


def test_contact_regression_returns_from_its_file_and_other_files_are_refused(tmp_path: Path) -> None:
    regression = ContactRegression(torch.arange(8.0), -1.5)
    path = tmp_path / "contact_regression.safetensors"
    write_contact_regression(regression, path)
    again = read_contact_regression(path)
    assert torch.equal(again.weight, regression.weight)
    assert again.bias == -1.5
    with pytest.raises(UserError, match="no such file"):
        read_contact_regression(tmp_path / "none.pt")
    torch.save({"weights": 1}, tmp_path / "esm2-contact-regression.pt")
    with pytest.raises(UserError, match=r"allowed: fair-esm's <model>-contact-regression\.pt"):
        read_contact_regression(tmp_path / "esm2-contact-regression.pt")


def test_the_regression_that_an_evaluation_fitted_is_read(tmp_path: Path) -> None:
    arrays = {"weight": torch.arange(8.0), "bias": torch.tensor([-1.5])}
    safetensors.torch.save_file(arrays, tmp_path / "contact_regression.safetensors")
    found = read_contact_regression(tmp_path / "contact_regression.safetensors")
    assert torch.equal(found.weight, arrays["weight"])
    assert found.bias == -1.5


def anonymous_bytes() -> int:
    """Memory of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")
def test_loading_a_file_takes_no_second_copy_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = TrunkShape("esm2", 2, 960, 8)
    encoder, source = scrambled_encoder(shape, seed=1), scrambled_encoder(shape, seed=2)
    write_fair_esm(source, tmp_path / "esm2.pt")
    size, most = (tmp_path / "esm2.pt").stat().st_size, []

    def watched(*arguments: object) -> Iterator[tuple[str, Tensor]]:
        for each in from_dialect(*arguments):
            yield each
            most.append(anonymous_bytes())

    monkeypatch.setattr(weights, "from_dialect", watched)
    before = anonymous_bytes()
    load_trunk_weights(encoder, str(tmp_path / "esm2.pt"), "custom")
    assert size > 80e6
    # The largest matrix is a sixth of the file; reading it whole would take all of it.
    assert max(most) - before < size / 2
    assert torch.equal(encoder.layers[1].ffn.up.weight, source.layers[1].ffn.up.weight)
