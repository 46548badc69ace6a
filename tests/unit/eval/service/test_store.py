"""The queue on disk: once per weights and protocol, nothing lost, nothing done twice."""

import sqlite3
import threading
from pathlib import Path

import pytest

from configs.errors import UserError
from eval.service.identity import Identity, identify, protocol_of
from eval.service.store import CANCELLED, QueueFull, Store
from tests.unit.eval.service.makers import PROTOCOL, serve_config, tiny_checkpoint


def who(number: int = 1, place: str = "a", damage: str | None = None) -> Identity:
    return Identity(Path(f"/runs/{place}/step_{number:08d}"), f"{number:x}".ljust(64, "0"), "small", number, damage)


def run_all(store: Store, tasks: tuple[str, ...] = ("fold", "ec")) -> list[str]:
    """Carry everything out well; returns the steps in the order in which they came."""
    names = []
    while (claim := store.claim()) is not None:
        names.append(f"{claim.evaluation}:{claim.name}")
        if claim.kind == "plan":
            store.planned(claim, tasks, 0.1)
        else:
            store.done(claim, 0.1, "1" if claim.kind == "task" else None)
    return names


def test_a_checkpoint_is_queued_once_and_another_protocol_is_another_evaluation(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = store.enqueue(who(), PROTOCOL)
    assert first == (1, True)
    assert store.enqueue(who(place="copy"), PROTOCOL) == (1, False)
    assert store.enqueue(who(), "e" * 64) == (2, True)
    assert [row.state for row in store.evaluations()] == ["queued", "queued"]


def test_the_same_request_from_many_threads_makes_one_evaluation(tmp_path: Path) -> None:
    store, found = Store(tmp_path), []
    start = threading.Barrier(10)

    def ask() -> None:
        start.wait()
        found.append(store.enqueue(who(), PROTOCOL))

    threads = [threading.Thread(target=ask) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [(1, False)] * 9 + [(1, True)]


def test_steps_come_in_order_and_the_evaluation_ends_with_the_last(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.enqueue(who(), PROTOCOL)
    assert run_all(store) == ["1:plan", "1:embed", "1:fold", "1:ec", "1:finish"]
    row = store.evaluation(1)
    assert (row.state, row.num_tasks, row.num_ended, row.attempts, row.reason) == ("done", 2, 2, 5, None)
    assert {task.task: task.version for task in store.tasks(1) if task.kind == "task"} == {"fold": "1", "ec": "1"}
    assert store.queue() == []


def test_urgent_evaluations_come_first_then_the_one_that_was_begun(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for number in (1, 2):
        store.enqueue(who(number), PROTOCOL)
    begun = store.claim()
    store.planned(begun, ("fold",), 0.1)
    store.enqueue(who(3), PROTOCOL, priority=5)
    order = run_all(store, ("fold",))
    assert order[:4] == ["3:plan", "3:embed", "3:fold", "3:finish"]
    assert order[4:7] == ["1:embed", "1:fold", "1:finish"]
    assert order[7:] == ["2:plan", "2:embed", "2:fold", "2:finish"]


def test_asking_again_with_more_priority_raises_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.enqueue(who(1), PROTOCOL)
    store.enqueue(who(2), PROTOCOL)
    assert store.enqueue(who(2), PROTOCOL, priority=1) == (2, False)
    assert [task.evaluation for task in store.queue()] == [2, 1]


def test_an_evaluation_has_one_step_running_at_a_time(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.enqueue(who(), PROTOCOL)
    assert store.claim() is not None
    assert store.claim() is None


def test_what_ran_when_the_service_ended_is_queued_again_and_costs_no_attempt(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.enqueue(who(), PROTOCOL)
    store.planned(store.claim(), ("fold", "ec"), 0.1)
    store.done(store.claim(), 0.1, num_embedded=4)
    store.done(store.claim(), 0.1, "1")
    assert store.claim().name == "ec"
    store.close()
    again = Store(tmp_path)
    assert again.recover() == 1
    assert [(task.task, task.state, task.attempts) for task in again.tasks(1)] == [
        ("plan", "done", 1),
        ("embed", "done", 1),
        ("fold", "done", 1),
        ("ec", "queued", 0),
        ("finish", "queued", 0),
    ]
    claim = again.claim()
    assert (claim.name, claim.attempts, claim.num_embedded) == ("ec", 1, 4)


def test_a_failed_task_leaves_the_others_and_is_told_at_the_end(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.enqueue(who(), PROTOCOL)
    store.planned(store.claim(), ("fold", "ec"), 0.1)
    store.done(store.claim(), 0.1)
    store.failed(store.claim(), 0.1, "no such file")
    store.done(store.claim(), 0.1, "1")
    finish = store.claim()
    assert finish.failed == {"fold": "no such file"}
    store.done(finish, 0.1)
    row = store.evaluation(1)
    assert (row.state, row.reason) == ("failed", "1 of its tasks failed: fold: no such file")


def test_a_failed_embedding_pass_ends_the_evaluation(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.enqueue(who(), PROTOCOL)
    store.planned(store.claim(), ("fold",), 0.1)
    store.failed(store.claim(), 0.1, "out of memory")
    assert store.claim() is None
    assert store.evaluation(1).reason == "embed: out of memory"
    assert {task.task: task.reason for task in store.tasks(1)}["fold"] == "not done: embed: out of memory"


def test_a_failed_evaluation_runs_again_only_when_asked_and_keeps_what_was_done(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.enqueue(who(), PROTOCOL)
    store.planned(store.claim(), ("fold", "ec"), 0.1)
    store.done(store.claim(), 0.1)
    store.done(store.claim(), 0.1, "1")
    store.failed(store.claim(), 0.1, "broken")
    store.done(store.claim(), 0.1)
    assert store.enqueue(who(), PROTOCOL) == (1, False)
    assert store.enqueue(who(place="copy"), PROTOCOL) == (1, False), "another copy would fail the same way"
    assert store.enqueue(who(), PROTOCOL, again=True) == (1, True)
    assert run_all(store) == ["1:embed", "1:ec", "1:finish"]
    assert store.evaluation(1).state == "done"


def test_another_copy_of_a_checkpoint_that_could_not_be_read_is_tried(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.enqueue(who(), PROTOCOL)
    store.failed(store.claim(), 0.1, "weights-00000.safetensors is damaged")
    assert store.evaluation(1).state == "failed"
    assert store.enqueue(who(), PROTOCOL) == (1, False)
    assert store.enqueue(who(place="copy"), PROTOCOL) == (1, True)
    assert "/copy/" in store.claim().checkpoint


def test_a_cancelled_evaluation_stays_cancelled_whatever_its_running_step_says(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.enqueue(who(), PROTOCOL)
    claim = store.claim()
    assert store.cancel(1)
    store.planned(claim, ("fold",), 0.1)
    assert (store.evaluation(1).state, store.evaluation(1).reason) == ("failed", CANCELLED)
    assert len(store.tasks(1)) == 1
    assert not store.cancel(1)
    with pytest.raises(KeyError):
        store.cancel(2)


def test_a_full_queue_takes_nothing_new_and_still_answers_for_what_is_there(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.enqueue(who(1), PROTOCOL, limit=1)
    with pytest.raises(QueueFull):
        store.enqueue(who(2), PROTOCOL, limit=1)
    assert store.enqueue(who(1), PROTOCOL, limit=1) == (1, False)


def test_another_schema_version_and_another_file_are_refused(tmp_path: Path) -> None:
    Store(tmp_path).close()
    with sqlite3.connect(tmp_path / "queue.sqlite") as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(UserError, match="schema version 99"):
        Store(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "queue.sqlite").write_text("no database, but long enough to be taken for one" * 50)
    with pytest.raises(UserError, match="cannot be used"):
        Store(other)


def test_identity_follows_the_weights_and_a_damaged_manifest_is_a_failure_with_a_place(tmp_path: Path) -> None:
    first = identify(tiny_checkpoint(tmp_path, 10))
    copy = identify(tiny_checkpoint(tmp_path, 20, name="copy", seed=10))
    assert first.weights_sha256 == copy.weights_sha256
    assert (first.run, first.step, copy.step) == ("small", 10, 20)
    manifest = copy.checkpoint / "manifest.json"
    manifest.write_text(manifest.read_text().replace("20", "21", 1))
    damaged = identify(copy.checkpoint)
    assert "damaged" in damaged.damage
    assert damaged.weights_sha256.startswith("damaged:")
    store = Store(tmp_path)
    assert store.enqueue(damaged, PROTOCOL) == (1, True)
    assert store.enqueue(damaged, PROTOCOL, again=True) == (1, False)
    assert (store.evaluation(1).state, store.evaluation(1).reason) == ("failed", damaged.damage)
    with pytest.raises(UserError, match="not a checkpoint folder"):
        identify(tmp_path)


def test_the_protocol_changes_with_what_is_measured_and_not_with_how_fast(tmp_path: Path) -> None:
    plain = protocol_of(serve_config(tmp_path).evaluation)
    assert protocol_of(serve_config(tmp_path, evaluation__execution={"threads": 2}).evaluation) == plain
    assert protocol_of(serve_config(tmp_path, evaluation__seed=1).evaluation) != plain
    assert protocol_of(serve_config(tmp_path, evaluation__tasks=["ec"]).evaluation) != plain
