"""results.json and what may be compared."""

import json
from pathlib import Path

import numpy as np
import pytest

from configs.errors import UserError
from configs.evaluate import EvalConfig, EvalDataConfig
from eval.intervals import Measurement
from eval.results import (
    Result,
    Results,
    TaskFacts,
    check_comparable,
    compare,
    protocol_sha256,
    read_examples,
    read_results,
    write_examples,
    write_results,
)


def make_results(step: int = 10, version: str = "1", **changes: object) -> Results:
    result = Result(
        task="threedi",
        task_version=version,
        split="test",
        metric="accuracy",
        value=0.5,
        ci_low=0.4,
        ci_high=0.6,
        seeds=(0,),
        num_examples=3,
        num_clusters=3,
        seconds=1.0,
    )
    content: dict[str, object] = {
        "run": "small",
        "stage": "align",
        "trunk": "esm2 2x32x4",
        "step": step,
        "weights_sha256": f"{step:064d}",
        "manifest_sha256": "m" * 64,
        "protocol_sha256": "p" * 64,
        "fit_split": "train",
        "num_fit_chains": 5,
        "num_test_chains": 3,
        "num_embedded": 8,
        "seconds": 2.0,
        "tasks": {"threedi": TaskFacts(version=version, frozen="f", head="h", method="how")},
        "results": (result,),
        "skipped": (),
    }
    return Results(**{**content, **changes})


def measurement(values: list[float]) -> Measurement:
    n = len(values)
    return Measurement("accuracy", tuple(f"k{i}" for i in range(n)), np.array(values), np.ones(n), np.arange(n))


def write_evaluation(folder: Path, values: list[float], **changes: object) -> Path:
    folder.mkdir()
    write_examples({"threedi": [measurement(values)]}, folder)
    write_results(make_results(**changes), folder)
    return folder


def test_results_read_back_equal(tmp_path: Path) -> None:
    results = make_results()
    path = write_results(results, tmp_path)
    assert read_results(path) == read_results(tmp_path) == results
    row = json.loads(path.read_text())["results"][0]
    fields = "task task_version split metric value ci_low ci_high seeds num_examples num_clusters seconds"
    assert list(row) == fields.split()


@pytest.mark.parametrize("content", ["", "{", '{"run": 1}', "[]"])
def test_a_damaged_file_is_a_user_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match="evaluate the checkpoint again"):
        read_results(tmp_path)


def test_another_format_or_no_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_results(tmp_path)
    write_results(make_results(format_version="9.0"), tmp_path)
    with pytest.raises(UserError, match=r"format 9\.0"):
        read_results(tmp_path)


def test_examples_read_back_equal(tmp_path: Path) -> None:
    m = measurement([0.1, 0.2, 0.7])
    write_examples({"threedi": [m]}, tmp_path)
    found = read_examples(tmp_path)["threedi", "accuracy"]
    assert (found.keys, found.link) == (m.keys, m.link)
    assert np.array_equal(found.values, m.values)
    (tmp_path / "examples.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="cannot be read"):
        read_examples(tmp_path)


def test_comparison_is_paired_over_examples(tmp_path: Path) -> None:
    first = write_evaluation(tmp_path / "a", [0.1, 0.5, 0.9, 0.4])
    second = write_evaluation(tmp_path / "b", [0.2, 0.6, 1.0, 0.5], step=20)
    found = compare(first, second)["threedi/accuracy"]
    assert found.difference == pytest.approx(0.1)
    assert found.ci_low == pytest.approx(0.1)  # every example gained the same


def test_different_task_versions_or_shards_are_not_compared(tmp_path: Path) -> None:
    first = write_evaluation(tmp_path / "a", [0.1, 0.5])
    second = write_evaluation(tmp_path / "b", [0.1, 0.5], version="2")
    with pytest.raises(UserError, match="task 'threedi' has versions 1 and 2"):
        compare(first, second)
    with pytest.raises(UserError, match="different shards"):
        check_comparable(make_results(), make_results(manifest_sha256="n" * 64))


def test_the_protocol_hash_sees_what_moves_numbers_and_nothing_else() -> None:
    def hash_of(**settings: object) -> str:
        data = settings.pop("data", {})
        config = EvalConfig(data=EvalDataConfig(**{"shards": Path("a"), **data}), **settings)
        return protocol_sha256(config, "m")

    plain = hash_of()
    assert plain == hash_of(device="cpu", mlflow=False, poll_seconds=9.0, data={"shards": Path("elsewhere")})
    assert len({plain, hash_of(seed=1), hash_of(head_epochs=3), hash_of(data={"max_residues": 50})}) == 4
