"""The checkpoint format: what is written is what is read, complete or not at all, whatever the number of ranks."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from configs.errors import UserError
from configs.loading import dump_config
from pretrain import checkpoints
from pretrain.checkpoints import Share, list_checkpoints, open_checkpoint, prune, remove_unfinished, save
from pretrain.snapshot import Piece, Snapshot, Writers
from pretrain.tensor_files import TensorFile, hash_file, write_tensors
from tests.unit.pretrain.training import make_config

STATE = {"step": 1, "optimizer_steps": 1}


def make_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"trunk.weight": (5, 3), "trunk.bias": (7,), "scale": (1,), "empty": (0, 4)}
    floats = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return floats | {"count": torch.tensor(12), "half": torch.randn(3, generator=generator).bfloat16()}


def shares_of(tensors: dict[str, torch.Tensor], size: int) -> list[Share]:
    names = list(tensors)
    parts = [{name: tensors[name] for name in names[rank::size]} for rank in range(size)]
    return [Share(part, {f"{name}:exp_avg": part[name].float() + 1 for name in part}) for part in parts]


def exchanges(size: int) -> list[Callable[[object], list[Any]]]:
    """Gathering among threads that stand for ranks."""
    barrier, slots = threading.Barrier(size), [None] * size

    def exchange(rank: int, value: object) -> list[Any]:
        slots[rank] = value
        barrier.wait(timeout=20)
        found = list(slots)
        barrier.wait(timeout=20)
        return found

    return [lambda value, rank=rank: exchange(rank, value) for rank in range(size)]


def save_as(run: Path, step: int, size: int = 1, seed: int = 0, state: dict[str, Any] | None = None) -> Path:
    """A checkpoint written by `size` ranks; `state` is what its state.json holds beside the usual."""
    config, shares = dump_config(make_config(run.parent)), shares_of(make_tensors(seed), size)
    with ThreadPoolExecutor(size) as pool:
        futures = [
            pool.submit(save, run, step, config, {**STATE, "step": step, **(state or {})}, shares[rank], rank, exchange)
            for rank, exchange in enumerate(exchanges(size))
        ]
        paths = [future.result() for future in futures]
    return paths[0]


def test_tensors_state_and_config_come_back_as_they_were(tmp_path: Path) -> None:
    path = save_as(tmp_path / "run", 7, size=2)
    checkpoint = open_checkpoint(path)
    tensors = make_tensors()
    found = checkpoint.weights()
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in tensors)
    moments = dict(checkpoint.tensors("optimizer"))
    assert torch.equal(moments["trunk.weight:exp_avg"], tensors["trunk.weight"] + 1)
    assert checkpoint.step == checkpoint.state["step"] == 7
    assert checkpoint.config == make_config(tmp_path)


def test_the_weights_have_one_name_whatever_the_number_of_ranks(tmp_path: Path) -> None:
    names = {open_checkpoint(save_as(tmp_path / f"run{size}", 1, size)).weights_sha256 for size in (1, 2, 3)}
    assert len(names) == 1
    assert open_checkpoint(save_as(tmp_path / "other", 1, seed=1)).weights_sha256 not in names


def test_files_are_plain_safetensors_with_aligned_data(tmp_path: Path) -> None:
    tensors = make_tensors()
    facts = write_tensors(tmp_path / "x.safetensors", tensors)
    found = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert facts.sha256 == hash_file(tmp_path / "x.safetensors")
    assert facts.num_bytes == (tmp_path / "x.safetensors").stat().st_size
    header_bytes = int.from_bytes((tmp_path / "x.safetensors").read_bytes()[:8], "little")
    assert header_bytes % 8 == 0


def test_a_folder_without_manifest_is_no_checkpoint_and_is_replaced(tmp_path: Path) -> None:
    run = tmp_path / "run"
    good = save_as(run, 1)
    cut_off = run / "checkpoints" / "step_00000002"
    cut_off.mkdir()
    (cut_off / "weights-00000.safetensors").write_bytes(b"half a file")
    (cut_off / "left_over").write_bytes(b"x")
    assert list_checkpoints(run) == [good]
    assert open_checkpoint(run).path == good
    with pytest.raises(UserError, match=r"step_00000002: not complete"):
        open_checkpoint(cut_off)
    assert save_as(run, 2) == cut_off
    assert open_checkpoint(run).path == cut_off
    assert not (cut_off / "left_over").exists()


def test_a_run_folder_its_checkpoints_folder_and_a_checkpoint_can_all_be_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    paths = [save_as(run, step) for step in (3, 20, 100)]
    assert list_checkpoints(run) == paths, "in step order"
    assert open_checkpoint(run).path == open_checkpoint(run / "checkpoints").path == paths[-1]
    assert open_checkpoint(paths[0]).path == paths[0]
    assert open_checkpoint(str(paths[1])).step == 20


def test_nothing_to_open_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for missing in ("run", "nowhere", "run/checkpoints/step_00000001"):
        with pytest.raises(UserError, match="checkpoint"):
            open_checkpoint(tmp_path / missing)


def test_a_rank_that_cannot_write_fails_every_rank_and_leaves_no_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Share.write

    def full_disk(share: Share, folder: Path, rank: int) -> dict:
        if rank == 1:
            raise OSError(28, "No space left on device")
        return write(share, folder, rank)

    monkeypatch.setattr(Share, "write", full_disk)
    shares, raised = shares_of(make_tensors(), 2), []

    def attempt(rank: int, exchange: Callable) -> None:
        with pytest.raises(OSError, match=r"rank 1: .*No space left"):
            save(tmp_path / "run", 1, "", STATE, shares[rank], rank, exchange)
        raised.append(rank)

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(attempt, rank, exchange) for rank, exchange in enumerate(exchanges(2))]:
            future.result()
    assert sorted(raised) == [0, 1]
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == [], "what was written is freed"


def test_pruning_keeps_the_newest(tmp_path: Path) -> None:
    run = tmp_path / "run"
    paths = [save_as(run, step) for step in (1, 2, 3, 4)]
    assert prune(run, 2) == paths[:2]
    assert list_checkpoints(run) == paths[2:]
    assert not paths[0].exists()


def test_another_major_format_is_refused_by_name(tmp_path: Path) -> None:
    path = save_as(tmp_path / "run", 1)
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["manifest_sha256"]
    manifest["format_version"] = "2.0"
    sealed = {**manifest, "manifest_sha256": checkpoints._digest(manifest)}
    (path / "manifest.json").write_bytes(checkpoints._json(sealed))
    with pytest.raises(UserError, match=r"format 2\.0"):
        open_checkpoint(path)


def test_what_an_interrupted_save_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    run = tmp_path / "run"
    good = [save_as(run, step) for step in (1, 2)]
    cut_off = run / "checkpoints" / "step_00000003"
    cut_off.mkdir()
    (cut_off / "weights-00000.safetensors").write_bytes(b"half a file")
    assert remove_unfinished(run) == [cut_off]
    assert sorted((run / "checkpoints").iterdir()) == good


def test_a_tensor_that_was_not_declared_is_our_mistake(tmp_path: Path) -> None:
    file = TensorFile(tmp_path / "x.safetensors", {"a": (torch.float32, (2,)), "b": (torch.int64, ())})
    file.write("a", torch.ones(2))
    with pytest.raises(AssertionError, match="not the next"):
        file.write("a", torch.ones(2))


def test_a_snapshot_keeps_what_stood_when_it_was_taken_and_is_written_like_whole_tensors(tmp_path: Path) -> None:
    live = {"weights": torch.arange(6.0), "optimizer": torch.ones(6)}

    def pieces() -> Iterator[Piece]:
        for kind, values in live.items():
            yield Piece(kind, f"{kind}.x", 0, (2, 3), torch.float32, 0, values)

    copied, linked = Snapshot(pieces(), Writers(), copy=True), Snapshot(pieces(), Writers(), copy=False)
    live["weights"].zero_()
    for name, snapshot, expected in (("copied", copied, torch.arange(6.0)), ("linked", linked, torch.zeros(6))):
        (tmp_path / name).mkdir()
        facts = snapshot.write(tmp_path / name, 0)
        file = tmp_path / name / "weights-00000.safetensors"
        assert torch.equal(load_file(file)["weights.x"], expected.reshape(2, 3))
        assert facts[file.name].sha256 == hash_file(file)
        assert facts.keys() == {"weights-00000.safetensors", "optimizer-00000.safetensors"}


def test_a_snapshot_that_cannot_be_written_says_so_only_after_every_tensor_was_put_together(tmp_path: Path) -> None:
    asked = []

    class Counting(Snapshot):
        def _whole(self, piece: Piece, parts: Sequence[tuple[int, int]]) -> torch.Tensor | None:
            asked.append(piece.name)
            return super()._whole(piece, parts)

    values = torch.ones(3)
    pieces = [Piece("weights", name, 0, (3,), torch.float32, 0, values) for name in "abc"]
    with pytest.raises(FileNotFoundError):
        Counting(pieces, Writers(), copy=False).write(tmp_path / "no such folder", 0)
    assert asked == ["a", "b", "c"], "the other ranks send all the same, and must not be left waiting"
