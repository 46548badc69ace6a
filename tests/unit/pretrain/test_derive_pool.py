"""The actor pool of derived columns: results, lost actors, and mistakes of users."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from configs.errors import UserError
from pretrain.derive_pool import MAX_DEATHS, Pool, PoolSize


@dataclass(frozen=True)
class Plan:
    """What the test's worker does: dies, or complains, at certain tasks."""

    folder: Path
    fatal: int = -1
    deaths: int = 0
    """Times that the fatal task ends its actor."""
    wrong: int = -1
    cannot_open: bool = False
    dies_opening: int = 0
    meet: int = 0
    """Every task waits until so many workers have opened."""


def leave_trace(folder: Path, kind: str) -> int:
    """How often this was called with the same arguments, by any process."""
    for number in range(1, 1000):
        try:
            (folder / f"{kind}-{number}").touch(exist_ok=False)
        except FileExistsError:
            continue
        return number
    raise AssertionError("a thousand traces")


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def open_test_worker(plan: Plan) -> Callable[[int], int]:
    if leave_trace(plan.folder, "opened") <= plan.dies_opening:
        os.kill(os.getpid(), signal.SIGKILL)
    if plan.cannot_open:
        raise UserError("teacher.weights: not on this machine")

    def work(task: int) -> int:
        if task == plan.fatal and leave_trace(plan.folder, "died") <= plan.deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        if task == plan.wrong:
            raise UserError("the shard is damaged")
        wait_for(lambda: len(list(plan.folder.glob("opened-*"))) >= plan.meet)
        return task * task

    return work


def results(plan: Plan, num_tasks: int = 8, actors: int = 2) -> list[int]:
    tasks = list(range(num_tasks))
    with Pool(open_test_worker, plan, PoolSize(actors), lambda task: f"shard {task}") as pool:
        return sorted(pool.run(tasks))


SQUARES = [n * n for n in range(8)]


def test_every_task_is_done_once_by_actors_that_open_once(tmp_path: Path, ray_cluster: str) -> None:
    # Otherwise one actor may have done everything before a slow machine has started the other.
    assert results(Plan(tmp_path, meet=2)) == SQUARES
    assert len(list(tmp_path.glob("opened-*"))) == 2


def test_actors_stay_open_for_the_next_list_of_tasks(tmp_path: Path, ray_cluster: str) -> None:
    with Pool(open_test_worker, Plan(tmp_path), PoolSize(2), str) as pool:
        assert sorted(pool.run([1])) == [1]
        assert len(list(tmp_path.glob("opened-*"))) == 1, "no more actors than tasks"
        assert sorted(pool.run(range(8))) == SQUARES
        assert sorted(pool.run([])) == []
        assert sorted(pool.run(range(8))) == SQUARES
    assert len(list(tmp_path.glob("opened-*"))) <= 2


def test_an_actor_that_the_cluster_has_no_room_for_holds_nothing_up(tmp_path: Path, ray_cluster: str) -> None:
    assert results(Plan(tmp_path), actors=5) == SQUARES


def test_a_task_whose_actor_was_killed_is_done_by_a_fresh_one(tmp_path: Path, ray_cluster: str) -> None:
    assert results(Plan(tmp_path, fatal=3, deaths=MAX_DEATHS - 1)) == SQUARES
    assert len(list(tmp_path.glob("died-*"))) == MAX_DEATHS, "it died twice and then did it"


def test_a_task_that_kills_three_actors_ends_the_run_and_is_named(tmp_path: Path, ray_cluster: str) -> None:
    with pytest.raises(UserError, match="shard 3: ended 3 workers") as error:
        results(Plan(tmp_path, fatal=3, deaths=MAX_DEATHS))
    assert "\n" not in str(error.value)
    assert len(list(tmp_path.glob("died-*"))) == MAX_DEATHS


def test_an_actor_lost_while_it_opens_is_replaced(tmp_path: Path, ray_cluster: str) -> None:
    assert results(Plan(tmp_path, dies_opening=1), actors=1) == SQUARES


def test_a_users_mistake_in_a_task_or_in_opening_arrives_as_one_line(tmp_path: Path, ray_cluster: str) -> None:
    with pytest.raises(UserError, match=r"^the shard is damaged$"):
        results(Plan(tmp_path, wrong=5))
    with pytest.raises(UserError, match=r"^teacher\.weights: not on this machine$"):
        results(Plan(tmp_path, cannot_open=True))
