"""Derived teacher columns: content, idempotence, replacement, and what a user can get wrong."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.errors import UserError
from configs.loading import dump_config
from configs.train import DataConfig, GearNetConfig, TeacherConfig, TrainConfig
from data_pipeline.derived import DerivedReader
from data_pipeline.reader import ShardReader
from data_pipeline.shards import write_shards
from pretrain import derive
from pretrain.checkpoints import Share, save
from pretrain.derive import derive_teacher
from pretrain.teachers.load import load_teacher
from pretrain.teachers.multiview import MultiviewModel, make_views, multiview_loss
from tests.unit.pretrain.chains import make_chain

CHAINS = {"train": [make_chain(20 + i, i, (3,)) for i in range(5)], "test": [make_chain(33, 9)]}
SIZES = GearNetConfig(layers=2, width=8)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_shards(tmp_path / "shards", CHAINS, samples_per_shard=2)
    return tmp_path / "shards"


def write_teacher(runs: Path, shards: Path, seed: int = 0, stage: str = "teacher") -> Path:
    """The run folder of a barely trained GearNet: its running statistics are no longer the initial ones."""
    teacher = TeacherConfig(gearnet=SIZES)
    trunk = None if stage == "teacher" else {"layers": 1, "width": 8, "heads": 1}
    config = TrainConfig(stage=stage, name=f"t{seed}", data=DataConfig(shards=shards), teacher=teacher, trunk=trunk)
    torch.manual_seed(seed)
    model = MultiviewModel(teacher)
    multiview_loss(model, make_views(CHAINS["train"], teacher.multiview, np.random.default_rng(seed)))
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    save(runs / config.name, 1, dump_config(config), {"step": 1}, Share(weights, {}))
    return runs / config.name


def derive_config(shards: Path, weights: Path | None, column: str | None = "gearnet") -> TrainConfig:
    # The sizes of the checkpoint count, not those of this config.
    teacher = TeacherConfig(weights=weights, column=column, gearnet=GearNetConfig(layers=1, width=16))
    data = DataConfig(shards=shards)
    return TrainConfig(stage="align", name="x", data=data, teacher=teacher, trunk={"layers": 1, "width": 8, "heads": 1})


def test_the_column_holds_the_teachers_embeddings_of_every_chain(tmp_path: Path, shards: Path, monkeypatch) -> None:
    monkeypatch.setattr(derive, "BATCH_RESIDUES", 50)
    config = derive_config(shards, write_teacher(tmp_path / "runs", shards))
    derive_teacher(config, shards)
    teacher = load_teacher(config.teacher)
    with ShardReader(shards) as reader, DerivedReader(reader, "gearnet") as column:
        assert column.facts == {
            "teacher": "gearnet",
            "weights_sha256": teacher.weights_sha256,
            "width": 8,
            "dtype": "float16",
        }
        for split, chains in CHAINS.items():
            for number, chain in enumerate(chains):
                embedding = column.arrays(split, number)["embedding"]
                assert embedding.dtype == np.float16
                # float16 keeps three digits of embeddings of size 1 to 5.
                np.testing.assert_allclose(embedding, teacher.embed(chain), atol=4e-3)
                assert (embedding.any(axis=1) == chain.valid).all()


def test_the_loaded_teacher_uses_the_trained_running_statistics(tmp_path: Path, shards: Path) -> None:
    config = derive_config(shards, write_teacher(tmp_path / "runs", shards))
    loaded = load_teacher(config.teacher)._network.state_dict()
    assert loaded["layers.0.batch_norm.num_batches_tracked"] == 1
    assert loaded["layers.0.batch_norm.running_mean"].abs().max() > 0


def test_a_finished_column_of_the_same_teacher_is_kept(
    tmp_path: Path, shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = derive_config(shards, write_teacher(tmp_path / "runs", shards))
    derive_teacher(config, shards)
    manifest = shards / "derived" / "gearnet" / "manifest.json"
    written = manifest.stat().st_mtime_ns
    with caplog.at_level(logging.INFO):
        derive_teacher(config, shards)
    assert manifest.stat().st_mtime_ns == written
    assert "up to date" in caplog.text


def test_a_column_of_another_teacher_is_replaced(tmp_path: Path, shards: Path) -> None:
    first, second = (derive_config(shards, write_teacher(tmp_path / "runs", shards, seed)) for seed in (0, 1))
    derive_teacher(first, shards)
    derive_teacher(second, shards)
    with ShardReader(shards) as reader, DerivedReader(reader, "gearnet") as column:
        assert column.facts["weights_sha256"] == load_teacher(second.teacher).weights_sha256


def test_a_damaged_column_is_written_again(tmp_path: Path, shards: Path) -> None:
    config = derive_config(shards, write_teacher(tmp_path / "runs", shards))
    derive_teacher(config, shards)
    tar = shards / "derived" / "gearnet" / "train-000000.tar"
    good = tar.read_bytes()
    tar.write_bytes(good[:600] + bytes([good[600] ^ 1]) + good[601:])
    derive_teacher(config, shards)
    assert tar.read_bytes() == good


def test_what_a_user_can_get_wrong_is_named(tmp_path: Path, shards: Path) -> None:
    with pytest.raises(UserError, match=r"teacher\.column is not set"):
        derive_teacher(derive_config(shards, None, column=None), shards)
    with pytest.raises(UserError, match=r"teacher\.weights is not set"):
        derive_teacher(derive_config(shards, None), shards)
    other = write_teacher(tmp_path / "runs", shards, stage="align")
    with pytest.raises(UserError, match="stage 'align'"):
        derive_teacher(derive_config(shards, other), shards)
