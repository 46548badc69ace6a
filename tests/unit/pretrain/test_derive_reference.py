"""The derived column of the reference model: content, agreement with the model itself, continuation, refusals."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.errors import UserError
from configs.loading import dump_config
from configs.train import TrainConfig
from data_pipeline.derived import DerivedReader, DerivedWriter
from data_pipeline.reader import ShardReader
from pretrain.batch import Batch
from pretrain.checkpoints import Share, save
from pretrain.collate import Item, collate
from pretrain.derive import derive_reference
from pretrain.derive_reference import windows_of
from pretrain.model.alignment import AlignmentModel
from pretrain.model.shape import trunk_shape
from pretrain.run_folder import run_path
from pretrain.sampler import Crop
from pretrain.stages.embeddings import open_embeddings
from pretrain.stages.reference import ColumnReference, OnlineReference, check_reference, open_reference
from pretrain.vocab import alphabet
from tests.unit.pretrain.test_derive import contents, made_shards
from tests.unit.pretrain.training import TEACHER_WIDTH, make_config, write_task

NUM_CHAINS = 14
MORE = ({"column": "second"},)


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """Shards with two teacher columns and a reference run that knows both teachers."""
    shards = write_task(tmp_path, NUM_CHAINS)
    with ShardReader(shards) as reader, DerivedWriter(reader, "second", {"width": 5}) as writer:
        for i, length in enumerate(reader.index("train").residues.tolist()):
            rows = np.random.default_rng(i).normal(size=(length, 5))
            writer.write("train", i, {"embedding": rows.astype(np.float16)})
    write_reference(make_config(tmp_path, stage="reference", name="reference", trunk__width=16, more_teachers=MORE))
    return tmp_path


def write_reference(config: TrainConfig, widths: tuple[int, ...] = (TEACHER_WIDTH, 5), seed: int = 3) -> Path:
    """A checkpoint of a random model whose losses differ from residue to residue."""
    torch.manual_seed(seed)
    model = AlignmentModel(trunk_shape(config.trunk), config.losses, widths)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    weights = {name: tensor.detach() * (1 if tensor.ndim < 2 else 3) for name, tensor in tensors.items()}
    return save(run_path(config), 1, dump_config(config), {"step": 1}, Share(weights, {}))


def selecting(
    task: Path, column: str | None = "known", reference: str | None = "reference", **more: Any
) -> TrainConfig:
    """An alignment run whose chains are never cropped."""
    named = None if reference is None else str(task / "runs" / reference)
    selection = {"mode": "large", "ratio": 0.5, "reference": named, "column": column}
    defaults = {"more_teachers": MORE, "data__max_residues": 62, "derive": {"masks": 1, "num_workers": 1}}
    return make_config(task, selection=selection, **{**defaults, **more})


def whole_batch(config: TrainConfig, reader: ShardReader, rows: Any = None, epoch: int = 0) -> Batch:
    """All chains, masked as training masks them in an epoch."""
    items, embeddings = [], open_embeddings(config, reader)
    for number in range(NUM_CHAINS):
        sample = reader.sample("train", number)
        first, *more = embeddings(number, sample)
        known = None if rows is None else rows(number)
        items.append(Item(Crop(number, 0, len(sample)), sample, sample.cluster, first, tuple(more), known))
    return collate(items, alphabet("esm2"), config.data.mask_fraction, config.seed, epoch)


def test_with_one_mask_the_column_gives_the_losses_of_the_model_itself_on_that_mask(task: Path) -> None:
    config = selecting(task)
    derive_reference(config, task / "shards")
    with ShardReader(task / "shards") as reader:
        column = open_reference(config, reader)
        online = open_reference(selecting(task, column=None), reader, (TEACHER_WIDTH, 5))
        assert isinstance(column, ColumnReference)
        assert isinstance(online, OnlineReference)
        batch = whole_batch(config, reader, column.arrays)
        approximate, exact = column.losses(batch), online.losses(batch)
        other = online.losses(whole_batch(config, reader, epoch=1))
    # Stored in float32; other batches of chains add up in another order.
    torch.testing.assert_close(approximate.structure, exact.structure, rtol=1e-5, atol=1e-5)
    assert (other.structure - exact.structure).abs().max() > 0.01, "losses do depend on the mask"
    assert len(exact.contrast) == len(approximate.contrast) == 2
    for ours, theirs in zip(approximate.contrast, exact.contrast, strict=True):
        for direction, wanted in zip(ours, theirs, strict=True):
            # A cosine of float16 rows is off by at most 2^-10, and the scale of 14 multiplies it.
            torch.testing.assert_close(direction, wanted, rtol=0, atol=14.3 * 2**-10)
            assert wanted.std() > 0.1


def test_several_masks_are_averaged_and_the_mean_of_projections_has_length_one(task: Path) -> None:
    config = selecting(task, derive={"masks": 3, "num_workers": 1, "batch_residues": 100})
    derive_reference(config, task / "shards")
    with ShardReader(task / "shards") as reader, DerivedReader(reader, "known") as column:
        online = open_reference(selecting(task, column=None), reader, (TEACHER_WIDTH, 5))
        batches = [whole_batch(config, reader, epoch=mask) for mask in range(3)]
        wanted = torch.stack([online.losses(batch).structure for batch in batches]).mean(0)
        stored = [column.arrays("train", number) for number in range(NUM_CHAINS)]
        samples = [reader.sample("train", number) for number in range(NUM_CHAINS)]
    losses = np.concatenate([arrays["structure_loss"] for arrays in stored])
    has_state = (batches[0].threedi >= 0).numpy()
    np.testing.assert_allclose(losses[has_state], wanted.numpy(), rtol=1e-5, atol=1e-5)
    assert not losses[~has_state].any()
    assert set(stored[0]) == {"structure_loss", "sequence.0", "structure.0", "sequence.1", "structure.1"}
    for arrays, sample in zip(stored, samples, strict=True):
        for name in set(arrays) - {"structure_loss"}:
            assert arrays[name].dtype == np.float16
            # Sixteen float16 features, each rounded by 2^-11 of its size.
            lengths = np.linalg.norm(arrays[name].astype(np.float32), axis=1)
            np.testing.assert_allclose(lengths, sample.valid, atol=2**-10)


def test_the_column_and_the_log_say_that_it_is_an_approximation(task: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = selecting(task, derive={"masks": 2, "num_workers": 1})
    with caplog.at_level(logging.INFO):
        derive_reference(config, task / "shards")
        with ShardReader(task / "shards") as reader:
            open_reference(config, reader)
            with DerivedReader(reader, "known") as column:
                facts = column.facts
    assert "averaged over 2 fixed masks" in facts["approximation"]
    assert "column known is an approximation" in caplog.text
    assert "are approximate: 3Di loss averaged over 2 fixed masks" in caplog.text
    assert facts["masks"] == 2
    assert facts["logit_scale"] == pytest.approx([1 / 0.07] * 2, rel=1e-5)
    assert 0 < facts["error"]["relative_rms"] < 2**-11


def test_windows_cover_a_chain_evenly() -> None:
    assert windows_of(30, 62) == [(0, 30)]
    assert windows_of(62, 62) == [(0, 62)]
    assert windows_of(63, 62) == [(0, 62), (1, 62)]
    assert windows_of(10, 4) == [(0, 4), (3, 4), (6, 4)]


def test_long_chains_are_covered_by_windows_no_longer_than_training_crops(task: Path) -> None:
    config = selecting(task, data__max_residues=16)
    derive_reference(config, task / "shards")
    with ShardReader(task / "shards") as reader, DerivedReader(reader, "known") as column:
        for number in range(NUM_CHAINS):
            sample, arrays = reader.sample("train", number), column.arrays("train", number)
            assert len(sample) > 16
            assert (arrays["sequence.0"].any(axis=1) == sample.valid).all()
            assert ((arrays["structure_loss"] > 0) == (sample.threedi_codes() >= 0)).all()


def test_a_column_broken_off_continues_to_the_same_bytes_and_a_finished_one_is_kept(
    task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = selecting(task), task / "shards" / "derived" / "known"
    derive_reference(config, task / "shards")
    expected = contents(folder)
    names = made_shards(monkeypatch)
    derive_reference(config, task / "shards")
    assert not names
    shutil.rmtree(folder)
    with monkeypatch.context() as broken:
        made_shards(broken, fail_after=1)
        with pytest.raises(KeyboardInterrupt):
            derive_reference(config, task / "shards")
    with ShardReader(task / "shards") as reader, pytest.raises(UserError, match="not there"):
        open_reference(config, reader)
    names.clear()
    derive_reference(config, task / "shards")
    assert names == ["train-000001.tar"]
    assert contents(folder) == expected
    derive_reference(selecting(task, derive={"masks": 2, "num_workers": 1}), task / "shards")
    assert contents(folder) != expected, "other settings replace it"


def test_ray_actors_write_the_bytes_that_one_process_writes(task: Path, ray_cluster: str) -> None:
    found = []
    for workers in (1, 2):
        shutil.rmtree(task / "shards" / "derived" / "known", ignore_errors=True)
        derive_reference(selecting(task, derive={"num_workers": workers}), task / "shards")
        found.append(contents(task / "shards" / "derived" / "known"))
    assert found[0] == found[1]


def test_a_column_made_for_another_run_is_refused_in_one_line(task: Path) -> None:
    derive_reference(selecting(task, losses__structure=0.0), task / "shards")
    write_reference(make_config(task, stage="reference", name="other", trunk__width=16, more_teachers=MORE), seed=4)
    cases = {
        "other reference weights": selecting(task, reference="other", losses__structure=0.0),
        "other teachers or teacher columns": selecting(task, more_teachers=(), losses__structure=0.0),
        "another data.mask_fraction": selecting(task, data__mask_fraction=0.2, losses__structure=0.0),
        "losses.structure not among its losses": selecting(task),
        "another token alphabet": selecting(task, reference=None, trunk__family="amplify", losses__structure=0.0),
        "no reference losses": selecting(task, column="second"),
        "not there": selecting(task, column="nowhere"),
    }
    with ShardReader(task / "shards") as reader:
        for message, config in cases.items():
            for look in (check_reference, open_reference):
                with pytest.raises(UserError, match=message) as error:
                    look(config, reader)
                assert "\n" not in str(error.value)
        fits = selecting(task, reference=None, losses__structure=0.0)
        assert open_reference(fits, reader) is not None, "the column alone is enough"


def test_what_a_user_can_get_wrong_when_deriving_is_named(task: Path) -> None:
    shards = task / "shards"
    with pytest.raises(UserError, match=r"selection\.column is not set"):
        derive_reference(selecting(task, column=None), shards)
    with pytest.raises(UserError, match=r"'fixed': is a teacher's column"):
        derive_reference(selecting(task, column="fixed"), shards)
    with pytest.raises(UserError, match=r"selection\.reference is not set"):
        derive_reference(selecting(task, reference=None), shards)


def test_without_contrast_the_column_needs_no_teacher_and_holds_3di_losses_alone(task: Path) -> None:
    config = selecting(task, losses__contrast=0.0, teacher__column="not_there", more_teachers=())
    derive_reference(config, task / "shards")
    with ShardReader(task / "shards") as reader:
        reference = open_reference(config, reader)
        assert set(reference.arrays(0)) == {"structure_loss"}
        items = [
            Item(Crop(n, 0, len(s)), s, 0, None, (), reference.arrays(n)) for n, s in [(0, reader.sample("train", 0))]
        ]
        found = reference.losses(collate(items, alphabet("esm2"), 0.15, 0, 0))
    assert found.contrast == ()
    assert len(found.structure) == int((items[0].sample.threedi_codes() >= 0).sum())


def test_rows_are_cropped_with_their_chain(task: Path) -> None:
    config = selecting(task)
    derive_reference(config, task / "shards")
    with ShardReader(task / "shards") as reader:
        reference = open_reference(config, reader)
        whole = whole_batch(config, reader, reference.arrays).reference
        sample, arrays = reader.sample("train", 2), reference.arrays(2)
        item = Item(Crop(2, 5, 9), sample, 0, np.ones((len(sample), 17)), (), arrays)
        part = collate([item], alphabet("esm2"), 0.15, 0, 0).reference
        start = len(reader.sample("train", 0)) + len(reader.sample("train", 1)) + 5
    for name in ("sequence", "structure"):
        for ours, all_rows in zip(getattr(part, name), getattr(whole, name), strict=True):
            assert torch.equal(ours, all_rows[start : start + 9])
    assert torch.equal(part.structure_loss, whole.structure_loss[start : start + 9])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_reference_model_has_a_precision_of_its_own_and_keeps_no_graph(task: Path, precision: str) -> None:
    config = selecting(task, column=None)
    config = config.model_copy(update={"selection": config.selection.model_copy(update={"precision": precision})})
    with ShardReader(task / "shards") as reader:
        reference = open_reference(config, reader, (TEACHER_WIDTH, 5))
        exact = open_reference(selecting(task, column=None), reader, (TEACHER_WIDTH, 5))
        batch = whole_batch(config, reader)
        found, wanted = reference.losses(batch), exact.losses(batch)
    model = reference._model
    assert model.trunk.embedding.weight.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
    assert float(model.temperature()) == pytest.approx(1 / 0.07, rel=1e-6), "the temperature is never rounded"
    assert not any(parameter.requires_grad for parameter in model.parameters())
    for ours, theirs in ((found.structure, wanted.structure), (found.contrast[0][0], wanted.contrast[0][0])):
        assert ours.dtype == torch.float32
        assert not ours.requires_grad
        # bfloat16 keeps two to three digits of the similarities, which the scale of 14 multiplies.
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.4 if precision == "bf16" else 0)


def test_a_reference_trained_with_other_teachers_is_refused(task: Path) -> None:
    with ShardReader(task / "shards") as reader, pytest.raises(UserError, match=r"teachers of 12 \+ 5 features"):
        open_reference(selecting(task, column=None, more_teachers=()), reader, (TEACHER_WIDTH,))


def test_a_reference_may_know_more_losses_than_the_run_trains(task: Path) -> None:
    config = selecting(task, column=None, losses__contrast=0.0)
    with ShardReader(task / "shards") as reader:
        batch = replace(whole_batch(selecting(task), reader), teacher=None)
        found = open_reference(config, reader).losses(batch)
    assert found.contrast == ()
    assert torch.isfinite(found.structure).all()
