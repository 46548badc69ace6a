"""Lost workers: the run continues by itself and ends as an undisturbed one does."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from configs.train import TrainConfig
from pretrain.launch import train
from pretrain.run_folder import METRICS, read_metrics, read_status, run_path
from tests.unit.pretrain.training import make_config, write_task

NUM_STEPS = 60


def kill_worker(config: TrainConfig, after_step: int) -> None:
    """SIGKILL rank 0 as soon as it has made `after_step` steps."""
    for _ in range(3000):
        status = read_status(run_path(config))
        if status.get("state") == "running" and status["step"] >= after_step:
            os.kill(status["pid"], signal.SIGKILL)
            return
        time.sleep(0.05)


@pytest.mark.long
def test_a_killed_ray_worker_is_replaced_and_the_losses_are_those_of_an_undisturbed_run(
    tmp_path: Path, ray_cluster: str
) -> None:
    write_task(tmp_path)
    losses = {}
    for name in ("undisturbed", "killed"):
        config = make_config(
            tmp_path,
            name=name,
            engine__launcher="ray",
            engine__address=ray_cluster,
            engine__num_workers=2,
            optimizer__steps=NUM_STEPS,
            checkpoint__every=5,
        )
        killer = threading.Thread(target=kill_worker, args=(config, 12))
        if name == "killed":
            killer.start()
        assert train(config) == 0
        rows = read_metrics(run_path(config) / METRICS)
        assert [row["step"] for row in rows] == list(range(1, NUM_STEPS + 1))
        losses[name] = [row["loss"] for row in rows]
    killer.join()
    log = (run_path(config) / "log.txt").read_text()
    assert "continuing from" in log, "the worker must really have been lost"
    # The same sums in the same order: nothing but exact resumption gives this.
    assert losses["killed"] == pytest.approx(losses["undisturbed"], abs=1e-6)
