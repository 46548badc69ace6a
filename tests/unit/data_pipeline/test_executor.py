"""Tasks through Ray Data: results as given, few at a time, and progress that people can read."""

import logging
import socket
from pathlib import Path

import pytest

from configs.errors import UserError
from data_pipeline.executor import _connect, ray_session, run_tasks, with_progress


def test_results_keep_their_types_and_each_task_runs_once(ray_cluster: str) -> None:
    tasks = [("a", 1), ("b", 2.5), (Path("c"), None)]
    results = list(run_tasks(tuple, tasks, num_workers=2))
    assert sorted(results, key=str) == sorted(tasks, key=str)
    assert list(run_tasks(tuple, [], num_workers=2)) == []


def test_a_failing_task_is_not_swallowed(ray_cluster: str) -> None:
    with pytest.raises(Exception, match="ZeroDivisionError"):
        list(run_tasks(_reciprocal, [0], 1))


def _reciprocal(number: int) -> float:
    return 1 / number


def test_a_running_ray_is_used_and_left_running(ray_cluster: str) -> None:
    import ray

    with ray_session(None) as workers:
        assert workers == 2
    with ray_session(1) as workers:
        assert workers == 1
    assert ray.is_initialized()


def test_a_cluster_that_does_not_answer_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        # Bound but not listening: connections are refused.
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(UserError, match=r"no Ray cluster answers there.*unset RAY_ADDRESS"):
            _connect(None)


def test_progress_lines_tell_rate_and_end(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "data_pipeline"):
        assert list(with_progress(iter([4, 6]), 2, "parsing", lambda n: n, "chains")) == [4, 6]
    assert "parsing: 2 of 2 tasks, 10 chains" in caplog.text
