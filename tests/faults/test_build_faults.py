"""A build that is killed and restarted gives the same bytes; no damage to a shard goes unseen."""

import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from configs.build import BuildConfig, ShardConfig
from configs.loading import dump_config
from configs.source import SourceConfig, SyntheticConfig
from configs.splits import SplitConfig
from data_pipeline.audit import audit
from data_pipeline.build import build
from data_pipeline.manifest import MANIFEST_NAME
from data_pipeline.reader import DamagedShard, ShardReader
from data_pipeline.synthetic.entries import write_synthetic
from tests.faults.killing import kill_when, sha256s

ROOT = Path(__file__).parents[2]
STRUCTURES = SyntheticConfig(num_folds=3, families_per_fold=3, members_per_family=4, max_residues=120)
SHORT_KILLS, LONG_KILLS = (1, 2, 1), 20
SHORT_DAMAGES, LONG_DAMAGES = 60, 1200


@dataclass(frozen=True)
class Case:
    """Input folder and the sha256 of every file of an undisturbed build of it."""

    structures: Path
    built: Path
    sha256: dict[str, str]


def configured(structures: Path, output: Path, workers: int) -> BuildConfig:
    return BuildConfig(
        source=SourceConfig(kind="files", path=structures),
        split=SplitConfig(method="kmers"),
        shards=ShardConfig(samples_per_shard=2),
        structures_per_task=2,
        output=output,
        num_workers=workers,
    )


def start(config: BuildConfig) -> subprocess.Popen:
    """A build in a process of its own."""
    file = config.output.with_suffix(".yaml")
    file.write_text(dump_config(config))
    arguments = [sys.executable, "-m", "data_pipeline", "build", str(file)]
    return subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory, ray_cluster: str) -> Case:
    folder = tmp_path_factory.mktemp("faults")
    write_synthetic(STRUCTURES, folder / "structures")
    build(configured(folder / "structures", folder / "built", 2))
    return Case(folder / "structures", folder / "built", sha256s(folder / "built"))


def moments(output: Path, count: int, seed: int) -> list[Callable[[], bool]]:
    """Conditions at which to kill: after so many parsed batches, or after so many shards, in random order."""
    chosen = random.Random(seed)

    def after(pattern: str, number: int) -> Callable[[], bool]:
        return lambda: len(list(output.glob(pattern))) >= number

    def moment(number: int) -> Callable[[], bool]:
        if number % 2:
            return after("*-[0-9]*.tar", chosen.randint(1, 15))
        return after(".work/parsed/*.arrow", chosen.randint(1, 17))

    return [moment(number) for number in range(count)]


def check_kills(case: Case, output: Path, workers: Sequence[int], seed: int) -> None:
    """Kill a build of so many workers for each number, and let another number of them complete it."""
    killed = 0
    for count, reached in zip(workers, moments(output, len(workers), seed), strict=True):
        killed += kill_when(start(configured(case.structures, output, count)), reached)
        build(configured(case.structures, output, 3 - count))
        assert sha256s(output) == case.sha256
        for path in output.iterdir():
            path.unlink()
    # A build may win the race against its signal now and then, but a test in which all do shows nothing.
    assert killed >= len(workers) / 2


def test_a_build_killed_at_three_moments_and_restarted_gives_the_same_bytes(case: Case, tmp_path: Path) -> None:
    check_kills(case, tmp_path / "out", SHORT_KILLS, seed=1)


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 2])
def test_a_build_killed_at_twenty_moments_and_restarted_gives_the_same_bytes(
    case: Case, tmp_path: Path, workers: int
) -> None:
    check_kills(case, tmp_path / "out", [workers] * LONG_KILLS, seed=1 + workers)


@pytest.mark.long
def test_a_build_killed_again_and_again_still_ends_with_the_same_bytes(case: Case, tmp_path: Path) -> None:
    output = tmp_path / "out"
    for number in (2, 5, 9):
        kill_when(
            start(configured(case.structures, output, 2)),
            lambda number=number: len(list(output.glob(".work/parsed/*.arrow"))) >= number,  # type: ignore[misc]
        )
    build(configured(case.structures, output, 2))
    assert sha256s(output) == case.sha256


def check_damage(folder: Path, trials: int, seed: int) -> None:
    """Flip one bit, or truncate, one file after another: audit must name it and the reader refuse it."""
    chosen = random.Random(seed)
    shards = sorted(p for p in folder.iterdir() if p.suffix in (".tar", ".npy") or p.name == MANIFEST_NAME)
    for trial in range(trials):
        path = chosen.choice(shards)
        whole = path.read_bytes()
        position = chosen.randrange(len(whole))
        flipped = whole[:position] + bytes([whole[position] ^ (1 << chosen.randrange(8))]) + whole[position + 1 :]
        path.write_bytes(whole[:position] if trial % 6 == 5 else flipped)
        assert list(audit(folder).damage) == [path.name]
        with pytest.raises(DamagedShard, match=path.name):
            read_everything(folder)
        path.write_bytes(whole)
    assert not audit(folder).damage


def read_everything(folder: Path) -> None:
    with ShardReader(folder) as reader:
        for split in reader.splits:
            for i in range(len(reader.index(split))):
                reader.sample(split, i)


@pytest.fixture
def copied(case: Case, tmp_path: Path) -> Path:
    return Path(shutil.copytree(case.built, tmp_path / "shards"))


def test_some_flips_and_truncations_are_all_detected(copied: Path) -> None:
    check_damage(copied, SHORT_DAMAGES, seed=5)


@pytest.mark.long
def test_a_thousand_flips_and_two_hundred_truncations_are_all_detected(copied: Path) -> None:
    check_damage(copied, LONG_DAMAGES, seed=6)
