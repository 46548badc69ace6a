"""Another number of workers after a restart: the run goes on, with its pools dealt to as many ranks as there are."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from configs.train import TrainConfig
from pretrain.checkpoints import list_checkpoints, open_checkpoint
from pretrain.launch import EXIT_STOPPED
from pretrain.run_folder import METRICS, read_metrics, read_status, run_path
from tests.faults.elastic_cluster import EVERY, NUM_STEPS, elastic_config
from tests.faults.training_runs import USER_ERROR, Fault, launch, log_of, losses_of
from tests.unit.pretrain.training import ROOT, make_config, write_task

STEPS = 9


def config_of(folder: Path, name: str, **overrides: Any) -> TrainConfig:
    return make_config(
        folder,
        name=name,
        data__packs_per_pool=3,
        optimizer__steps=STEPS,
        engine__num_workers=3,
        engine__min_workers=1,
        **overrides,
    )


def test_three_workers_then_two_with_uneven_shares_then_one_are_one_run(tmp_path: Path) -> None:
    write_task(tmp_path)
    alone, elastic = config_of(tmp_path, "alone"), config_of(tmp_path, "elastic")
    assert launch(alone, size=1) == 0
    for size, stop in ((3, 3), (2, 6)):
        assert launch(elastic, size, Fault(terminate_at=stop)) == EXIT_STOPPED
    assert launch(elastic, size=1) == 0
    written_by = [
        open_checkpoint(path).state["written_by"]["world_size"] for path in list_checkpoints(run_path(elastic))
    ]
    assert sorted(set(written_by)) == [1, 2, 3]
    # Another order of summation in float32, at losses near 7.
    assert losses_of(elastic) == pytest.approx(losses_of(alone), abs=1e-5)


def test_a_number_of_workers_outside_the_configured_range_is_refused(tmp_path: Path) -> None:
    write_task(tmp_path)
    config = make_config(tmp_path, name="too_few", data__packs_per_pool=3, engine__num_workers=3, engine__min_workers=2)
    assert launch(config, size=1) == USER_ERROR
    assert "engine.num_workers is 2 to 3 but 1 processes were started" in log_of(config)


@pytest.mark.long
def test_a_ray_run_that_loses_a_node_goes_on_by_itself_with_the_workers_that_are_left(tmp_path: Path) -> None:
    write_task(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "tests.faults.elastic_cluster", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    folder = run_path(elastic_config(tmp_path))
    assert read_status(folder)["state"] == "finished"
    assert [row["step"] for row in read_metrics(folder / METRICS)] == list(range(1, NUM_STEPS + 1))
    sizes = [open_checkpoint(path, verify=False).state["written_by"]["world_size"] for path in list_checkpoints(folder)]
    assert len(sizes) == NUM_STEPS // EVERY
    assert (sizes[0], sizes[-1]) == (2, 1)
