"""Derived teacher columns: content, forms, continuation, replacement, and what a user can get wrong."""

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.errors import UserError
from configs.loading import dump_config
from configs.teacher import DeriveConfig, GearNetConfig, TeacherConfig
from configs.train import TrainConfig
from configs.training_data import DataConfig
from data_pipeline.derived import DerivedReader, derived_names
from data_pipeline.reader import ShardFile, ShardReader
from data_pipeline.shards import write_shards
from pretrain.checkpoints import Share, save
from pretrain.derive import derive_teacher
from pretrain.derive_forms import Errors, read_projection
from pretrain.derive_shard import ShardTask, ShardWorker
from pretrain.sampler import Position
from pretrain.stages.align import AlignStage
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
    generators = [np.random.default_rng((seed, number)) for number in range(len(CHAINS["train"]))]
    multiview_loss(model, make_views(CHAINS["train"], teacher.multiview, generators))
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    save(runs / config.name, 1, dump_config(config), {"step": 1}, Share(weights, {}))
    return runs / config.name


def derive_config(
    shards: Path, weights: Path | None, column: str | None = "gearnet", derive: dict[str, Any] | None = None
) -> TrainConfig:
    # The sizes of the checkpoint count, not those of this config.
    teacher = TeacherConfig(weights=weights, column=column, gearnet=GearNetConfig(layers=1, width=16))
    data = DataConfig(shards=shards)
    trunk = {"layers": 1, "width": 8, "heads": 1}
    return TrainConfig(
        stage="align", name="x", data=data, teacher=teacher, trunk=trunk, derive=DeriveConfig(**(derive or {}))
    )


def test_the_column_holds_the_teachers_embeddings_of_every_chain(tmp_path: Path, shards: Path) -> None:
    config = derive_config(shards, write_teacher(tmp_path / "runs", shards), derive={"batch_residues": 50})
    derive_teacher(config, shards)
    teacher = load_teacher(config.teacher)
    with ShardReader(shards) as reader, DerivedReader(reader, "gearnet") as column:
        facts = dict(column.facts)
        error = facts.pop("error")
        assert len(facts.pop("identity")) == 64
        assert facts == {
            "teacher": "gearnet",
            "weights_sha256": teacher.weights_sha256,
            "teacher_width": 8,
            "width": 8,
            "form": "float16",
            "dtype": "float16",
            "batch_residues": 50,
        }
        assert error["residues"] == sum(int(chain.valid.sum()) for chains in CHAINS.values() for chain in chains)
        # Half a unit in the eleventh binary digit at most.
        assert 0 < error["relative_rms"] < 2**-11
        for split, chains in CHAINS.items():
            for number, chain in enumerate(chains):
                embedding = column.arrays(split, number)["embedding"]
                assert embedding.dtype == np.float16
                # float16 keeps three digits of embeddings of size 1 to 5.
                np.testing.assert_allclose(embedding, teacher.embed(chain), atol=4e-3)
                np.testing.assert_array_equal(column.embedding(split, number), embedding.astype(np.float32))
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


def test_every_teacher_that_names_a_column_gets_it(tmp_path: Path, shards: Path) -> None:
    first, second, online = (write_teacher(tmp_path / "runs", shards, seed) for seed in (0, 1, 2))
    config = derive_config(shards, first)
    more = (TeacherConfig(weights=second, column="second"), TeacherConfig(weights=online))
    derive_teacher(config.model_copy(update={"more_teachers": more}), shards)
    alone = derive_config(shards, second, column="alone")
    derive_teacher(alone, shards)
    with ShardReader(shards) as reader:
        assert derived_names(shards) == ["alone", "gearnet", "second"]
        with DerivedReader(reader, "second") as column, DerivedReader(reader, "alone") as same:
            assert column.facts["weights_sha256"] == load_teacher(more[0]).weights_sha256
            assert column.manifest.splits == same.manifest.splits, "the same bytes"
    twice = config.model_copy(update={"more_teachers": (TeacherConfig(weights=second, column="gearnet"),)})
    with pytest.raises(UserError, match="one column for each teacher"):
        derive_teacher(twice, shards)


def test_what_a_user_can_get_wrong_is_named(tmp_path: Path, shards: Path) -> None:
    with pytest.raises(UserError, match=r"teacher\.column is not set"):
        derive_teacher(derive_config(shards, None, column=None), shards)
    with pytest.raises(UserError, match=r"teacher\.weights is not set"):
        derive_teacher(derive_config(shards, None), shards)
    other = write_teacher(tmp_path / "runs", shards, stage="align")
    with pytest.raises(UserError, match="stage 'align'"):
        derive_teacher(derive_config(shards, other), shards)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def made_shards(monkeypatch: pytest.MonkeyPatch, fail_after: int | None = None) -> list[str]:
    """Names of the shards that are computed from now on; beyond `fail_after` the program breaks off."""
    names: list[str] = []
    write = ShardWorker._write

    def watched(worker: ShardWorker, base: ShardFile, task: ShardTask) -> Any:
        if len(names) == fail_after:
            raise KeyboardInterrupt
        names.append(base.facts.name)
        return write(worker, base, task)

    monkeypatch.setattr(ShardWorker, "_write", watched)
    return names


FORMS = [
    pytest.param({}, id="float16"),
    pytest.param({"form": "int8"}, id="int8"),
    pytest.param({"form": "pca", "pca_width": 4}, id="pca"),
    pytest.param({"form": "pca", "pca_width": 8, "pca_storage": "int8", "pca_residues": 40}, id="pca_int8"),
]


@pytest.mark.parametrize("form", FORMS)
def test_the_error_that_a_column_states_is_that_of_its_embeddings(
    tmp_path: Path, shards: Path, form: dict[str, Any]
) -> None:
    config = derive_config(shards, write_teacher(tmp_path / "runs", shards), derive=form)
    derive_teacher(config, shards)
    teacher = load_teacher(config.teacher)
    theirs, ours = [], []
    with ShardReader(shards) as reader, DerivedReader(reader, "gearnet") as column:
        facts = column.facts
        assert facts["form"] == form.get("form", "float16")
        assert facts["width"] == form.get("pca_width", 8)
        for split, chains in CHAINS.items():
            for number, chain in enumerate(chains):
                embedding = column.embedding(split, number)
                assert embedding.dtype == np.float32
                assert embedding.shape == (len(chain), facts["width"])
                assert not embedding[~chain.valid].any()
                ours.append(embedding[chain.valid])
                theirs.append(teacher.embed(chain)[chain.valid])
    stored, expected = np.concatenate(ours), np.concatenate(theirs)
    if config.derive.form == "pca":
        stored = read_projection(column.folder).restore(stored)
    # The teacher's last digits depend on the batch.
    found = Errors.of(expected, stored).figures()
    assert facts["error"] == pytest.approx(found, rel=1e-3, abs=1e-5)
    assert 0 < facts["error"]["relative_rms"] < 1


@pytest.mark.parametrize("form", FORMS)
def test_a_column_broken_off_at_any_shard_continues_to_the_same_bytes(
    tmp_path: Path, shards: Path, form: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = derive_config(shards, write_teacher(tmp_path / "runs", shards), derive=form)
    derive_teacher(config, shards)
    folder = shards / "derived" / "gearnet"
    expected = contents(folder)
    every = ["train-000000.tar", "train-000001.tar", "train-000002.tar", "test-000000.tar"]
    for done in range(4):
        shutil.rmtree(folder)
        with monkeypatch.context() as broken:
            names = made_shards(broken, fail_after=done)
            with pytest.raises(KeyboardInterrupt):
                derive_teacher(config, shards)
            assert names == every[:done]
        with ShardReader(shards) as reader, pytest.raises(UserError, match="not there"):
            DerivedReader(reader, "gearnet")
        with monkeypatch.context() as resumed:
            names = made_shards(resumed)
            derive_teacher(config, shards)
            assert names == every[done:], "finished shards are not made again"
        assert contents(folder) == expected


def test_finished_shards_of_other_settings_teachers_or_bytes_are_made_again(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = write_teacher(tmp_path / "runs", shards)
    config = derive_config(shards, weights)
    folder = shards / "derived" / "gearnet"

    def break_off(broken_config: TrainConfig) -> None:
        with monkeypatch.context() as broken:
            made_shards(broken, fail_after=2)
            with pytest.raises(KeyboardInterrupt):
                derive_teacher(broken_config, shards)

    def resume() -> int:
        with monkeypatch.context() as resumed:
            names = made_shards(resumed)
            derive_teacher(config, shards)
            return len(names)

    for other in (
        derive_config(shards, weights, derive={"form": "int8"}),
        derive_config(shards, write_teacher(tmp_path / "runs", shards, seed=1)),
    ):
        shutil.rmtree(folder, ignore_errors=True)
        break_off(other)
        assert resume() == 4
    expected = contents(folder)
    shutil.rmtree(folder)
    break_off(config)
    tar = folder / "train-000001.tar"
    tar.write_bytes(tar.read_bytes()[:-5] + b"wrong")
    assert resume() == 3
    assert contents(folder) == expected
    shutil.rmtree(folder)
    break_off(config)
    write_shards(shards, {**CHAINS, "train": [CHAINS["train"][4], *CHAINS["train"][1:]]}, samples_per_shard=2)
    assert resume() == 3, "only the second base shard is what it was"


def test_only_the_damaged_and_lost_shards_of_a_finished_column_are_made_again(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = derive_config(shards, write_teacher(tmp_path / "runs", shards), derive={"form": "int8"})
    derive_teacher(config, shards)
    folder = shards / "derived" / "gearnet"
    expected = contents(folder)
    (folder / "train-000001.tar").unlink()
    (folder / "test-000000.index.npy").write_bytes(b"damaged")
    names = made_shards(monkeypatch)
    derive_teacher(config, shards)
    assert names == ["train-000001.tar", "test-000000.tar"]
    assert contents(folder) == expected


def test_a_replaced_column_leaves_nothing_of_the_old_one(tmp_path: Path, shards: Path) -> None:
    weights = write_teacher(tmp_path / "runs", shards)
    derive_teacher(derive_config(shards, weights, derive={"form": "pca", "pca_width": 3}), shards)
    folder = shards / "derived" / "gearnet"
    assert (folder / "pca.safetensors").is_file()
    write_shards(shards, {"train": CHAINS["train"][:2]}, samples_per_shard=2)
    derive_teacher(derive_config(shards, weights), shards)
    assert sorted(contents(folder)) == ["manifest.json", "train-000000.index.npy", "train-000000.tar"]


def test_ray_actors_write_the_bytes_that_one_process_writes(tmp_path: Path, shards: Path, ray_cluster: str) -> None:
    weights = write_teacher(tmp_path / "runs", shards)
    found = []
    for workers in (1, 2):
        shutil.rmtree(shards / "derived", ignore_errors=True)
        derive_teacher(
            derive_config(shards, weights, derive={"form": "pca", "pca_width": 4, "num_workers": workers}), shards
        )
        found.append(contents(shards / "derived" / "gearnet"))
    assert found[0] == found[1]


def test_training_reads_every_form_and_takes_the_width_that_is_stored(tmp_path: Path, shards: Path) -> None:
    weights = write_teacher(tmp_path / "runs", shards)
    for form in ({"form": "int8"}, {"form": "pca", "pca_width": 3}):
        config = derive_config(shards, weights, derive=form)
        derive_teacher(config, shards)
        stage = AlignStage(config)
        batch = next(stage.batches(Position(0, 0), 0, 1)).batch
        assert batch.teacher.shape == (len(batch.structure_valid), form.get("pca_width", 8))
        assert (batch.teacher.any(dim=1) == batch.structure_valid).all()


def test_settings_and_folders_that_cannot_serve_are_user_errors(tmp_path: Path, shards: Path) -> None:
    weights = write_teacher(tmp_path / "runs", shards)
    with pytest.raises(UserError, match=r"derive\.pca_width 9: the teacher has 8 features; allowed: 1 to 8"):
        derive_teacher(derive_config(shards, weights, derive={"form": "pca", "pca_width": 9}), shards)
    (shards / "derived").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot be written"):
        derive_teacher(derive_config(shards, weights), shards)
    (shards / "derived").unlink()
    with pytest.raises(ValueError, match=r"'pca' needs derive\.pca_width"):
        DeriveConfig(form="pca")
    with pytest.raises(ValueError, match=r"has no use for derive\.pca_width"):
        DeriveConfig(form="int8", pca_width=4)
    chains = [make_chain(5, 1, missing=(0, 1, 2, 3, 4))]
    write_shards(shards, {"train": chains})
    with pytest.raises(UserError, match="no residue of split 'train' has a backbone"):
        derive_teacher(derive_config(shards, weights, derive={"form": "pca", "pca_width": 2}), shards)
