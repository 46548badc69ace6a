"""Damage to checkpoints: every kind is detected, named, and answered by the last good one."""

import logging
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.checkpoints import DamagedCheckpoint, last_good, list_checkpoints, open_checkpoint
from tests.unit.pretrain.test_checkpoints import save_as

FILES = (
    "manifest.json",
    "config.yaml",
    "state.json",
    "weights-00000.safetensors",
    "weights-00001.safetensors",
    "optimizer-00000.safetensors",
    "optimizer-00001.safetensors",
)


def truncate(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def cut_last_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_one_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (10, 20):
        save_as(tmp_path / "run", step, size=2, seed=step)
    return tmp_path / "run"


@pytest.mark.parametrize("damage", [truncate, cut_last_byte, flip_one_bit, empty, lengthen, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_damage_is_detected_named_and_the_one_before_is_taken(
    run: Path, name: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    damaged, good = run / "checkpoints" / "step_00000020", run / "checkpoints" / "step_00000010"
    damage(damaged / name)
    with pytest.raises(DamagedCheckpoint, match=f"step_00000020: .*{name}") as error:
        open_checkpoint(damaged)
    assert "\n" not in str(error.value)
    with caplog.at_level(logging.WARNING):
        assert open_checkpoint(run).path == good
    if (damaged / "manifest.json").exists():
        assert "step_00000020" in caplog.text
        assert name in caplog.text
    else:
        assert list_checkpoints(run) == [good], "without a manifest it is not even a candidate"


def test_each_of_three_hundred_bit_flips_is_detected(run: Path) -> None:
    folder = run / "checkpoints" / "step_00000020"
    chance = random.Random(0)
    for _ in range(300):
        path = folder / chance.choice(FILES)
        before = path.read_bytes()
        data = bytearray(before)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        with pytest.raises(DamagedCheckpoint):
            open_checkpoint(folder)
        path.write_bytes(before)
    assert open_checkpoint(folder).step == 20, "undamaged again"


def test_when_every_checkpoint_is_damaged_there_is_none(run: Path) -> None:
    for folder in list_checkpoints(run):
        flip_one_bit(folder / "weights-00000.safetensors")
    assert last_good(run) is None
