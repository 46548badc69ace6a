"""results.json and the records of tasks."""

import json
from pathlib import Path

import pytest

from configs.benchmarks import BenchmarksConfig, ProbeConfig
from configs.errors import UserError
from configs.evaluate import EvalConfig, EvalDataConfig
from eval.results import (
    Result,
    Results,
    TaskRecord,
    protocol_sha256,
    read_record,
    read_records,
    read_results,
    record_path,
    task_protocol_sha256,
    write_record,
    write_results,
)
from eval.tasks.protocol import TaskFacts

FACTS = TaskFacts(version="1", frozen="f", head="h", method="how")


def make_result(**changes: object) -> Result:
    content = {
        "task": "threedi",
        "task_version": "1",
        "split": "test",
        "metric": "accuracy",
        "value": 0.5,
        "ci_low": 0.4,
        "ci_high": 0.6,
        "seeds": (0,),
        "num_examples": 3,
        "num_clusters": 3,
        "seconds": 1.0,
    }
    return Result(**{**content, **changes})


def make_results(step: int = 10, **changes: object) -> Results:
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
        "tasks": {"threedi": FACTS},
        "results": (make_result(),),
        "skipped": (),
    }
    return Results(**{**content, **changes})


def make_record(**changes: object) -> TaskRecord:
    content = {"weights_sha256": "w", "protocol_sha256": "p", "facts": FACTS, "results": (make_result(),)}
    return TaskRecord(**{"task": "threedi", "seconds": 1.0, **content, **changes})


def test_results_read_back_equal(tmp_path: Path) -> None:
    results = make_results()
    path = write_results(results, tmp_path)
    assert read_results(path) == read_results(tmp_path) == results
    row = json.loads(path.read_text())["results"][0]
    fields = "task task_version split metric value ci_low ci_high seeds num_examples num_clusters seconds"
    assert list(row) == fields.split()


def test_records_of_tasks_read_back_equal(tmp_path: Path) -> None:
    write_record(make_record(), tmp_path)
    write_record(make_record(task="contact", results=(), skipped="no attention", remarks=("a", "b")), tmp_path)
    found = read_records(tmp_path)
    assert found == {
        "threedi": make_record(),
        "contact": make_record(task="contact", results=(), skipped="no attention", remarks=("a", "b")),
    }


@pytest.mark.parametrize("content", ["", "{", '{"run": 1}', "[]", '{"format_version": "2.0"}'])
def test_a_damaged_file_is_a_user_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match="evaluate the checkpoint again"):
        read_results(tmp_path)
    path = record_path(tmp_path, "threedi")
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(UserError, match="evaluate the checkpoint again"):
        read_record(path)


def test_another_format_or_no_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_results(tmp_path)
    write_results(make_results(format_version="9.0"), tmp_path)
    with pytest.raises(UserError, match=r"format 9\.0"):
        read_results(tmp_path)


def make_config(**settings: object) -> EvalConfig:
    data = settings.pop("data", {})
    return EvalConfig(data=EvalDataConfig(**{"shards": Path("a"), **data}), **settings)


def test_the_protocol_hash_sees_what_moves_numbers_and_nothing_else() -> None:
    def hash_of(**settings: object) -> str:
        return protocol_sha256(make_config(**settings), "m")

    plain = hash_of()
    assert plain == hash_of(device="cpu", mlflow=False, poll_seconds=9.0, data={"shards": Path("elsewhere")})
    assert plain == hash_of(tasks=("contact",), benchmarks=BenchmarksConfig(root=Path("b"), sources={"ec": "c"}))
    assert len({plain, hash_of(seed=1), hash_of(head_epochs=3), hash_of(data={"max_residues": 50})}) == 4


def test_a_task_has_its_own_protocol_hash() -> None:
    on_dataset = TaskFacts(version="1", frozen="f", head="h", method="how", data="d", data_sha256="x")

    def hash_of(task: str, facts: TaskFacts = on_dataset, manifest: str = "m", **settings: object) -> str:
        return task_protocol_sha256(make_config(**settings), manifest, task, facts)

    plain = hash_of("ec")
    assert plain == hash_of("ec", manifest="n", data={"max_residues": 50}), "a dataset does not depend on shards"
    assert plain == hash_of("ec", probes={"fold": ProbeConfig(epochs=3)}), "another task's head"
    other_head = hash_of("ec", probes={"ec": ProbeConfig(head="mlp")})
    other_data = hash_of("ec", TaskFacts("1", "f", "h", "how", "d", "y"))
    other_version = hash_of("ec", TaskFacts("2", "f", "h", "how", "d", "x"))
    assert len({plain, other_head, other_data, other_version, hash_of("fold")}) == 5
    assert hash_of("threedi", FACTS, "m") != hash_of("threedi", FACTS, "n")
