"""Marks of best values and remembered comparisons: what is tested, how often, and what leaves no mark."""

import os
import re
import threading
import time
from collections.abc import Callable
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from configs.errors import UserError
from eval.examples import write_examples
from eval.intervals import estimate, scored
from eval.results import Result, TaskRecord, examples_path, write_record
from eval.service import significance
from eval.service.pages import add_pages
from eval.service.significance import Candidate, Comparisons
from tests.unit.eval.service.boards import MadeBoard, compare, make_facts, make_results, paired_test

DEADLINE_SECONDS = 20.0


def wait_for(condition: Callable[[], bool]) -> None:
    """Return when the condition holds; fail after a deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def empty(tmp_path: Path) -> MadeBoard:
    """A board before the first evaluation."""
    return MadeBoard(tmp_path / "board")


def _text(page: str) -> str:
    return unescape(re.sub(r"<[^>]*>", "", page))


def _settled(comparisons: Comparisons, name: str, candidates: list[Candidate]) -> int | None:
    wait_for(lambda: comparisons.best(name, candidates)[1])
    return comparisons.best(name, candidates)[0]


def _candidates(*values: float) -> list[Candidate]:
    return [Candidate(number, Path(f"/nowhere/{number}"), value) for number, value in enumerate(values)]


@pytest.mark.parametrize(
    ("metric", "p_values", "winner"),
    [
        ("fmax", {0: 0.001, 1: 0.001}, 2),
        ("fmax", {0: 0.001, 1: 0.2}, None),
        # Each passes alone, and with two rivals the smaller must pass 0.025.
        ("fmax", {0: 0.04, 1: 0.04}, None),
        ("fmax", {0: 0.02, 1: 0.04}, 2),
        ("rmse", {1: 0.001, 2: 0.001}, 0),
    ],
)
def test_a_value_is_best_only_when_all_rivals_are_significantly_worse(
    metric: str, p_values: dict[int, float], winner: int | None
) -> None:
    def test(first: Path, second: Path, task: str, name: str, num_samples: int) -> tuple[float, float]:
        assert (task, name) == ("ec", metric)
        return 0.1, p_values[int(first.name)]

    comparisons = Comparisons(lambda *_: {}, test)
    assert _settled(comparisons, f"ec/{metric}", _candidates(0.1, 0.2, 0.3)) == winner


def test_equal_values_refusals_and_errors_leave_no_mark_and_the_next_column_is_still_tested(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def test(first: Path, second: Path, task: str, name: str, num_samples: int) -> tuple[float, float]:
        if task == "refused":
            raise UserError("comparison: the two evaluations hold different examples")
        if task == "broken":
            raise ValueError("what nobody expected")
        return (0.0, 1.0) if task == "equal" else (0.1, 0.001)

    comparisons = Comparisons(lambda *_: {}, test)
    for task in ("refused", "broken", "equal"):
        assert _settled(comparisons, f"{task}/fmax", _candidates(0.1, 0.2)) is None
    assert "what nobody expected" in caplog.text
    assert _settled(comparisons, "ec/fmax", _candidates(0.1, 0.2)) == 1
    assert comparisons.best("ec/fmax", _candidates(0.1)) == (None, True)


def test_a_mark_is_worked_out_once_the_nearest_rival_first_and_with_samples_enough_for_their_number() -> None:
    asked: list[tuple[str, int]] = []
    gate = threading.Event()

    def test(first: Path, second: Path, task: str, name: str, num_samples: int) -> tuple[float, float]:
        assert gate.wait(DEADLINE_SECONDS)
        asked.append((first.name, num_samples))
        return 0.1, 2 / (num_samples + 1)

    comparisons = Comparisons(lambda *_: {}, test)
    candidates = _candidates(*np.linspace(0, 1, 150))
    for _ in range(5):
        assert comparisons.best("ec/fmax", candidates) == (None, False)
    gate.set()
    assert _settled(comparisons, "ec/fmax", candidates) == 149
    assert len(asked) == 149
    assert asked[0] == ("148", 149 * 80)


def test_a_changed_result_is_compared_anew_and_an_unchanged_one_is_not(empty: MadeBoard, tmp_path: Path) -> None:
    calls = []
    empty.add(make_results("esm2-8m-align", 0))

    def counted(first: Path, second: Path, num_samples: int) -> dict:
        calls.append((first.name, second.name))
        return compare(first, second, num_samples)

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text((empty.folder_of(1) / "results.json").read_text())
    comparisons = Comparisons(counted, paired_test)
    assert comparisons.pair(tmp_path / "a", tmp_path / "b") is comparisons.pair(tmp_path / "a", tmp_path / "b")
    time_ns = (tmp_path / "b" / "results.json").stat().st_mtime_ns + 1_000_000
    os.utime(tmp_path / "b" / "results.json", ns=(time_ns, time_ns))
    comparisons.pair(tmp_path / "a", tmp_path / "b")
    assert len(calls) == 2


def _evaluated(board: MadeBoard, step: int, gain: float, noise: np.ndarray, **changes: str) -> int:
    """An evaluation with true records and examples of one task, as the evaluation program writes them."""
    keys = tuple(f"protein_{i}" for i in range(len(noise)))
    columns = {"values": noise + gain, "weights": np.ones(len(noise))}
    measured = scored("accuracy", "mean", keys, np.arange(len(noise)) // 2, columns)
    found = estimate([measured], 200, seed=0)
    result = Result(
        task="fold", task_version="1", split="test", metric="accuracy", value=found.value, ci_low=found.ci_low,
        ci_high=found.ci_high, seeds=found.seeds, num_examples=found.num_examples, num_clusters=found.num_clusters,
        seconds=1.0,
    )  # fmt: skip
    row = board.add(make_results("run", step, results=(result,), tasks={"fold": make_facts("fold", **changes)}))
    folder = board.folder_of(row.id)
    values = {"weights_sha256": row.weights_sha256, "protocol_sha256": row.protocol_sha256, "seconds": 1.0}
    write_record(TaskRecord(task="fold", facts=make_facts("fold", **changes), results=(result,), **values), folder)
    write_examples(examples_path(folder, "fold"), [measured])
    return row.id


def test_marks_and_comparisons_come_from_the_examples_on_disk(empty: MadeBoard) -> None:
    random = np.random.default_rng(3)
    noise = random.normal(0.5, 0.1, size=60)
    _evaluated(empty, 0, 0.0, noise)
    _evaluated(empty, 100, 0.03, noise + random.normal(scale=0.01, size=60))
    app = FastAPI()
    add_pages(app, empty, "Evaluation")
    client = TestClient(app)
    wait_for(lambda: "still being tested" not in client.get("/").text)
    assert client.get("/").text.count('class="best"') == 1
    page = _text(client.get("/compare?first=1&second=2").text)
    assert "1 better, 0 worse, 0 without a significant difference" in page
    assert re.search(r"\+0\.0[23]\d \[\+0\.0", page)
    other = _evaluated(empty, 200, 0.05, noise, version="2")
    refusal = _text(client.get(f"/compare?first=1&second={other}").text)
    assert "task 'fold' has versions '1' and '2'" in refusal


def test_a_test_without_examples_is_refused(empty: MadeBoard) -> None:
    first = _evaluated(empty, 0, 0.0, np.linspace(0, 1, 20))
    second = _evaluated(empty, 100, 0.1, np.linspace(0, 1, 20))
    folders = (empty.folder_of(first), empty.folder_of(second))
    with pytest.raises(UserError, match="no examples of 'fmax'"):
        significance.paired_test(*folders, "fold", "fmax", 100)
    with pytest.raises(UserError, match="no such file"):
        significance.paired_test(*folders, "ec", "fmax", 100)
