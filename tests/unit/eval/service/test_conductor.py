"""Steps through executors: what ends well, in an error, too late, or with its process."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from configs.loading import dump_config
from eval.service.conductor import Conductor
from eval.service.executors import Ended, Executor, ProcessExecutor, RayExecutor
from eval.service.identity import identify
from eval.service.store import CANCELLED, Store
from eval.service.work import Step
from tests.unit.eval.service.makers import (
    PROTOCOL,
    STAND_IN,
    Script,
    held,
    serve_config,
    tiny_checkpoint,
    wait_until,
)


@contextmanager
def conducting(folder: Path, executor: Executor, **changes: Any) -> Iterator[tuple[Store, Conductor]]:
    config = serve_config(folder, **changes)
    config.folder.mkdir(exist_ok=True)
    store = Store(config.folder)
    conductor = Conductor(store, executor, config, STAND_IN)
    conductor.start()
    try:
        yield store, conductor
    finally:
        conductor.close()
        store.close()


def add(store: Store, conductor: Conductor, checkpoint: Path, **options: Any) -> int:
    evaluation, _ = store.enqueue(identify(checkpoint), PROTOCOL, **options)
    conductor.wake()
    return evaluation


def ended(store: Store, evaluation: int) -> Any:
    wait_until(lambda: store.evaluation(evaluation).state in ("done", "failed"), "the evaluation's end")
    return store.evaluation(evaluation)


def test_a_process_that_dies_is_tried_again_up_to_the_limit(tmp_path: Path) -> None:
    died = Ended("died", 0.1, "its process was ended by SIGKILL")
    script = Script(ends={"fold": [died], "ec": [died, died]})
    with conducting(tmp_path, script) as (store, conductor):
        row = ended(store, add(store, conductor, tiny_checkpoint(tmp_path / "runs", 10)))
        assert row.reason == "1 of its tasks failed: ec: its process was ended by SIGKILL (2 attempts)"
        assert {task.task: (task.state, task.attempts) for task in store.tasks(1) if task.kind == "task"} == {
            "fold": ("done", 2),
            "ec": ("failed", 2),
        }


@pytest.mark.parametrize("how", ["error", "timeout"])
def test_an_error_of_the_task_and_a_timeout_are_final(tmp_path: Path, how: Any) -> None:
    script = Script(ends={"fold": [Ended(how, 0.1, "line one\nline two")]})
    with conducting(tmp_path, script) as (store, conductor):
        row = ended(store, add(store, conductor, tiny_checkpoint(tmp_path / "runs", 10)))
    assert row.reason == "1 of its tasks failed: fold: line one line two"
    assert [step.name for step in script.steps] == ["plan", "embed", "fold", "ec", "finish"]
    assert script.steps[-1].failed == (("fold", "line one line two"),)


def test_a_cancelled_evaluation_is_left_and_the_next_one_runs(tmp_path: Path) -> None:
    script = Script()
    with held(script, "fold"), conducting(tmp_path, script) as (store, conductor):
        first = add(store, conductor, tiny_checkpoint(tmp_path / "runs", 10))
        wait_until(lambda: script.steps and script.steps[-1].name == "fold", "the held step")
        second = add(store, conductor, tiny_checkpoint(tmp_path / "runs", 20))
        assert conductor.cancel(first)
        wait_until(lambda: script.steps[-1].checkpoint.endswith("20"), "the second evaluation")
        script.holds["fold"].set()
        assert ended(store, second).state == "done"
        assert store.evaluation(first).reason == CANCELLED


def test_closing_queues_what_ran_again_without_an_attempt(tmp_path: Path) -> None:
    script = Script()
    with held(script, "ec"), conducting(tmp_path, script) as (store, conductor):
        add(store, conductor, tiny_checkpoint(tmp_path / "runs", 10))
        wait_until(lambda: script.steps and script.steps[-1].name == "ec", "the held step")
        conductor.close()
        assert [(task.task, task.state, task.attempts) for task in store.tasks(1)][3:] == [
            ("ec", "queued", 0),
            ("finish", "queued", 0),
        ]


def test_two_evaluations_run_at_a_time_where_the_configuration_says_so(tmp_path: Path) -> None:
    script = Script()
    with held(script, "fold"), conducting(tmp_path, script, concurrent=2) as (store, conductor):
        for step in (10, 20, 30):
            add(store, conductor, tiny_checkpoint(tmp_path / "runs", step))
        wait_until(lambda: [s.name for s in script.steps].count("fold") == 2, "two held steps")
        assert sorted(row.state for row in store.evaluations()) == ["queued", "running", "running"]
        script.holds["fold"].set()
        assert all(ended(store, number).state == "done" for number in (1, 2, 3))


def test_what_was_queued_under_an_older_configuration_is_evaluated_under_it(tmp_path: Path) -> None:
    script = Script()
    with conducting(tmp_path, script) as (store, conductor):
        older = dump_config(serve_config(tmp_path, evaluation__seed=7).evaluation)
        store.set_protocol(PROTOCOL, older)
        ended(store, add(store, conductor, tiny_checkpoint(tmp_path / "runs", 10)))
        evaluation, _ = store.enqueue(identify(tiny_checkpoint(tmp_path / "runs", 20)), "e" * 64)
        conductor.wake()
        ended(store, evaluation)
    assert [step.config == older for step in script.steps] == [True] * 5 + [False] * 5


def step_of(folder: Path, name: str, kind: str = "task", **changes: Any) -> Step:
    output = folder / "output"
    output.mkdir(exist_ok=True)
    checkpoint = folder / "runs" / "small" / "checkpoints" / "step_00000010"
    facts = {"kind": kind, "name": name, "checkpoint": str(checkpoint), "output": str(output), "evaluation": STAND_IN}
    return Step(config=dump_config(serve_config(folder).evaluation), **{**facts, **changes})


def orders(folder: Path, text: str) -> None:
    tiny_checkpoint(folder / "runs", 10)
    (folder / "runs" / "small" / "stand_in.json").write_text(text)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_child_works_niced_on_its_cpus_with_its_threads(tmp_path: Path) -> None:
    orders(tmp_path, "{}")
    cpu = min(os.sched_getaffinity(0))
    ended = ProcessExecutor().run(step_of(tmp_path, "fold", niceness=7, cpus=(cpu,)), 60.0, threading.Event())
    assert ended.how == "done", ended
    assert ended.answer["version"] == "3"
    assert (tmp_path / "runs/small/measured.txt").read_text() == f"step_00000010 fold 7 [{cpu}]\n"
    assert not list((tmp_path / "output/logs").glob("*.json")), "the report has been read"


def test_what_a_child_ends_with_is_told_in_one_line(tmp_path: Path) -> None:
    orders(tmp_path, '{"raise": {"fold": "labels of fold:\\n not there"}, "die": {"ec": 1}}')
    run = ProcessExecutor().run
    error = run(step_of(tmp_path, "fold"), 60.0, threading.Event())
    assert (error.how, error.reason) == ("error", "labels of fold: not there")
    died = run(step_of(tmp_path, "ec"), 60.0, threading.Event())
    assert (died.how, died.reason) == ("died", "its process was ended by SIGKILL")
    unknown = run(step_of(tmp_path, "fold", evaluation="tests.nowhere"), 60.0, threading.Event())
    assert unknown.how == "error"
    assert "tests.nowhere" in unknown.reason


def test_a_child_that_takes_too_long_or_is_stopped_is_gone_when_that_is_told(tmp_path: Path) -> None:
    orders(tmp_path, '{"hold": ["fold"]}')
    pid_file = tmp_path / "output" / "pid-fold"
    late = ProcessExecutor().run(step_of(tmp_path, "fold"), 3.0, threading.Event())
    assert (late.how, late.reason) == ("timeout", "took longer than 3 s (task_timeouts)")
    assert not pid_file.exists() or not is_alive(int(pid_file.read_text()))
    pid_file.unlink(missing_ok=True)
    stop = threading.Event()
    found: list[Ended] = []
    thread = threading.Thread(target=lambda: found.append(ProcessExecutor().run(step_of(tmp_path, "fold"), 60.0, stop)))
    thread.start()
    wait_until(lambda: pid_file.exists() and pid_file.read_text(), "the child")
    stop.set()
    thread.join()
    assert found[0].how == "stopped"
    assert not is_alive(int(pid_file.read_text()))


def test_a_damaged_checkpoint_fails_before_anything_is_measured(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "runs", 10)
    weights = next(checkpoint.glob("weights-*"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with conducting(tmp_path, ProcessExecutor()) as (store, conductor):
        row = ended(store, add(store, conductor, checkpoint))
    assert row.state == "failed"
    assert "is damaged (sha256 differs)" in row.reason
    assert "\n" not in row.reason
    assert not (tmp_path / "runs/small/measured.txt").exists()


def test_ray_runs_steps_and_ends_them_like_children(tmp_path: Path, ray_cluster: str) -> None:
    orders(tmp_path, '{"hold": ["ec"], "raise": {"fold": "no labels"}, "die": {"stability": 1}}')
    executor = RayExecutor(serve_config(tmp_path).evaluation.execution)
    error = executor.run(step_of(tmp_path, "fold"), 60.0, threading.Event())
    assert (error.how, error.reason) == ("error", "no labels")
    died = executor.run(step_of(tmp_path, "stability"), 60.0, threading.Event())
    assert died.how == "died"
    # Ray's workers begin at a nice level of 15.
    again = executor.run(step_of(tmp_path, "stability", niceness=17), 60.0, threading.Event())
    assert again.how == "done", again
    assert "stability 17 [" in (tmp_path / "runs/small/measured.txt").read_text()
    late = executor.run(step_of(tmp_path, "ec"), 0.5, threading.Event())
    assert late.how == "timeout"
    assert not is_alive(int((tmp_path / "output/pid-ec").read_text()))
    executor.close()
