"""A derived column, of a teacher or of the reference model, that is killed and restarted gives the same bytes."""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from configs.loading import validate
from configs.train import TrainConfig
from data_pipeline.audit import audit
from data_pipeline.shards import write_shards
from tests.faults.killing import kill_when, sha256s
from tests.unit.pretrain.chains import make_chain
from tests.unit.pretrain.test_derive_mpnn import write_random_mpnn
from tests.unit.pretrain.test_derive_reference import write_reference

ROOT = Path(__file__).parents[2]
NUM_SHARDS = 10
SHORT_KILLS, LONG_KILLS = 3, 20
FORMS = (
    {"form": "float16"},
    {"form": "int8"},
    {"form": "pca", "pca_width": 6, "pca_residues": 500},
    {"masks": 2, "batch_residues": 200},
)
"""Of three teacher columns and, the last, of the column of a reference model."""
REFERENCE = FORMS[-1]


@dataclass(frozen=True)
class Case:
    """Folder of config and shards, and the sha256 of every file of each form's undisturbed column."""

    folder: Path
    sha256: tuple[dict[str, str], ...]


def column_of(folder: Path, form: dict[str, object]) -> Path:
    return folder / "shards" / "derived" / ("known" if form is REFERENCE else "mpnn")


def start(folder: Path, form: dict[str, object], workers: int) -> subprocess.Popen:
    config = {
        "stage": "align",
        "name": "x",
        "data": {"shards": str(folder / "shards")},
        "trunk": {"layers": 1, "width": 8, "heads": 1},
        "teacher": {"kind": "mpnn", "weights": str(folder / "mpnn.npz"), "column": "mpnn"},
        "derive": {**form, "num_workers": workers},
    }
    what = "teacher"
    if form is REFERENCE:
        what, config["teacher"]["column"] = "reference", None
        config["selection"] = {"mode": "large", "reference": str(folder / "runs" / "small"), "column": "known"}
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    arguments = [sys.executable, "-m", "pretrain", "derive", what, str(file), str(folder / "shards")]
    return subprocess.Popen(
        arguments,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(folder: Path, form: dict[str, object], workers: int) -> None:
    process = start(folder, form, workers)
    _, words = process.communicate()
    assert process.returncode == 0, words[-3000:]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory, ray_cluster: str) -> Case:
    folder = tmp_path_factory.mktemp("derive_faults")
    chains = [make_chain(60 + 7 * (i % 9), i, (5,)) for i in range(4 * NUM_SHARDS)]
    write_shards(folder / "shards", {"train": chains[4:], "test": chains[:4]}, samples_per_shard=4)
    write_random_mpnn(folder / "mpnn.npz")
    data, trunk = {"shards": str(folder / "shards")}, {"layers": 1, "width": 8, "heads": 1}
    reference = {"stage": "reference", "name": "small", "runs": str(folder / "runs"), "data": data, "trunk": trunk}
    write_reference(validate(TrainConfig, reference, "test"), (16,))
    found = []
    for form in FORMS:
        finish(folder, form, 1)
        assert not audit(folder / "shards").damage
        found.append(sha256s(column_of(folder, form)))
        shutil.rmtree(folder / "shards" / "derived")
    return Case(folder, tuple(found))


def there(column: Path, pattern: str, number: int) -> Callable[[], bool]:
    """Whether so many files of a pattern are there by now."""
    return lambda: len(list(column.glob(pattern))) >= number


def moments(column: Path, count: int, seed: int) -> list[Callable[[], bool]]:
    """Conditions at which to kill: so many finished shards, a file being written, or the file of components."""
    chosen = random.Random(seed)

    def moment(number: int) -> Callable[[], bool]:
        if number % 3 == 1:
            return there(column, ".work/*.part", 1)
        if number == 2:
            return there(column, "*.safetensors", 1)
        if number % 3 == 2:
            return there(column, "*.tar", chosen.randint(1, NUM_SHARDS))
        return there(column, ".work/*.json", chosen.randint(1, NUM_SHARDS - 1))

    return [moment(number) for number in range(count)]


def check_kills(case: Case, kills: int, seed: int) -> None:
    """Kill derivations of one folder again and again, finishing each with the other number of workers."""
    killed = 0
    # Three kills meet the reference's column and, where the file of components is what is waited for, `pca`.
    order = (3, 1, 2, 0)
    for number in range(kills):
        chosen = order[number % len(order)]
        form, expected, column = FORMS[chosen], case.sha256[chosen], column_of(case.folder, FORMS[chosen])
        reached = moments(column, kills, seed)[number]
        killed += kill_when(start(case.folder, form, 1 + number % 2), reached)
        if number % 4 == 3:
            last = start(case.folder, form, 1)
            killed += kill_when(last, there(column, "*.tar", NUM_SHARDS - 1))
        finish(case.folder, form, 2 - number % 2)
        assert sha256s(column) == expected, "every file the same, and none left over"
        assert not audit(case.folder / "shards").damage
        shutil.rmtree(column)
    # One may win the race against its signal now and then, but a test in which all do shows nothing.
    assert killed >= kills / 2


def test_a_column_killed_at_three_moments_and_restarted_gives_the_same_bytes(case: Case) -> None:
    check_kills(case, SHORT_KILLS, seed=1)


@pytest.mark.long
def test_a_column_killed_at_twenty_moments_and_restarted_gives_the_same_bytes(case: Case) -> None:
    check_kills(case, LONG_KILLS, seed=2)
