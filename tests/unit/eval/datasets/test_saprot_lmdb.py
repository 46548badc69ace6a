"""SaProt's LMDB files read to their labels where the library for them is there."""

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.benchmarks import BenchmarksConfig
from configs.errors import UserError
from eval.datasets.proteins import LAYOUTS
from eval.datasets.store import DatasetStore
from eval.tasks.protocol import DatasetMissing
from tests.unit.eval.datasets.writing import got, labels, protein

LMDB = [
    ("localisation_10", lambda i: {"seq": protein(i), "label": i % 10}, [8, 9, 0, 1]),
    (
        "thermostability",
        lambda i: {"seq": "".join(a + "dv#p"[i % 4] for a in protein(i)), "fitness": 50.0 + i},
        [58, 59, 60, 61],
    ),
    (
        "ec",
        lambda i: {"seq": protein(i), "label": json.dumps([int(j == i) for j in range(12)])},
        [[8], [9], [10], [11]],
    ),
    ("ppi_human", lambda i: {"seq_1": protein(i), "seq_2": protein(i + 50), "label": str(i % 2)}, [0, 1, 0, 1]),
]


def write_lmdb(folder: Path, row: Callable[[int], dict]) -> None:
    for i, name in enumerate(("train", "valid", "test")):
        values = {"length": 4, **{str(j): row(4 * i + j) for j in range(4)}}
        (folder / name).mkdir(parents=True)
        (folder / name / "data.mdb").write_text(json.dumps(values))


def fake_lmdb() -> types.ModuleType:
    """The part of the library's interface that is used, on JSON files."""

    class Env:
        def __init__(self, path: str, *, subdir: bool, readonly: bool, lock: bool) -> None:
            assert (subdir, readonly, lock) == (False, True, False)
            self.values = {k.encode(): json.dumps(v).encode() for k, v in json.loads(Path(path).read_text()).items()}

        def __enter__(self) -> "Env":
            return self

        def __exit__(self, *error: object) -> None: ...

        def begin(self) -> "Env":
            return self

        def get(self, key: bytes) -> bytes | None:
            return self.values.get(key)

    module = types.ModuleType("lmdb")
    module.open, module.Error = Env, OSError
    return module


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(("name", "row", "expected"), LMDB, ids=[entry[0] for entry in LMDB])
def test_saprots_lmdb_files_read_to_their_labels(
    name: str, row: Callable, expected: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lmdb(tmp_path, row)
    monkeypatch.setitem(sys.modules, "lmdb", fake_lmdb())
    dataset = got(name, tmp_path)
    assert labels(dataset) == expected
    assert [r.sequences[0] for r in dataset.splits["test"]] == [protein(i) for i in range(8, 12)]


@pytest.mark.usefixtures("cache")
def test_saprots_folders_are_found_under_the_root_by_their_own_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lmdb(tmp_path / "LMDB" / "GO" / "AF2" / "MF" / "normal", LMDB[2][1])
    write_lmdb(tmp_path / "LMDB" / "DeepLoc" / "cls10" / "normal", LMDB[0][1])
    write_lmdb(tmp_path / "LMDB" / "HumanPPI" / "normal", LMDB[3][1])
    monkeypatch.setitem(sys.modules, "lmdb", fake_lmdb())
    store = DatasetStore(BenchmarksConfig(root=tmp_path), 0, LAYOUTS)
    for name in ("go_mf", "localisation_10", "ppi_human"):
        assert store.get(name).source.startswith("SaProt LMDB/")
    with pytest.raises(DatasetMissing):
        store.get("go_bp")


@pytest.mark.usefixtures("cache")
def test_without_the_library_lmdb_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lmdb(tmp_path, LMDB[0][1])
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(UserError, match=r"needs the library lmdb .* convert it to JSON lines"):
        got("localisation_10", tmp_path)
