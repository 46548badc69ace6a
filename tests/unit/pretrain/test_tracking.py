"""MLflow behind the run folder: everything arrives, and nothing waits for it."""

import json
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from configs.train import TrainConfig
from pretrain import tracking
from pretrain.run_folder import METRICS, claim, run_path
from pretrain.tracking import Tracker, commit, read_progress
from tests.unit.pretrain.test_checkpoints import save_as
from tests.unit.pretrain.training import make_config


def write_rows(config: TrainConfig, steps: range) -> None:
    with (run_path(config) / METRICS).open("a") as file:
        for step in steps:
            file.write(json.dumps({"step": step, "loss": 10.0 - step, "loss_mlm": 1.0}) + "\n")


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A run that was tracked in two sittings, the second after a resume from step 3."""
    config = make_config(tmp_path_factory.mktemp("tracking"), tracking__mlflow=True)
    claim(config).close()
    for steps, state in ((range(1, 4), "stopped"), (range(4, 6), "finished")):
        write_rows(config, steps)
        save_as(run_path(config), steps[-1])
        Tracker(config, "abc123").close(state)
    return config


def test_every_row_arrives_once_in_one_run_over_both_sittings(tracked: TrainConfig) -> None:
    progress = read_progress(run_path(tracked))
    client = MlflowClient(progress.uri)
    history = client.get_metric_history(progress.run_id, "loss")
    assert sorted((m.step, m.value) for m in history) == [(step, 10.0 - step) for step in range(1, 6)]
    assert client.get_run(progress.run_id).info.status == "FINISHED"
    assert len(client.search_runs([progress.experiment_id])) == 1


def test_the_run_names_config_code_and_data(tracked: TrainConfig) -> None:
    progress = read_progress(run_path(tracked))
    run = MlflowClient(progress.uri).get_run(progress.run_id)
    assert run.info.run_name == "tiny"
    assert run.data.params["optimizer.trunk_lr"] == "0.01"
    assert run.data.params["data.pack_tokens"] == "128"
    assert run.data.tags["data_manifest_sha256"] == "abc123"
    assert run.data.tags["mlflow.source.git.commit"]
    assert progress.uri == f"sqlite:///{tracked.runs}/mlflow.db"


def test_each_checkpoint_is_a_ready_logged_model_with_its_weights_name(tracked: TrainConfig) -> None:
    progress = read_progress(run_path(tracked))
    assert sorted(progress.models) == ["step_00000003", "step_00000005"]
    model = MlflowClient(progress.uri).get_logged_model(progress.models["step_00000005"])
    assert model.status.value == "READY"
    assert len(model.tags["weights_sha256"]) == 64
    assert model.source_run_id == progress.run_id


def test_a_dead_server_costs_training_nothing_and_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setattr(tracking, "DRAIN_SECONDS", 3.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = make_config(tmp_path, tracking__mlflow=True, tracking__uri=f"http://127.0.0.1:{port}")
    claim(config).close()
    write_rows(config, range(1, 4))
    begun = time.monotonic()
    tracker = Tracker(config, "abc123")
    # Starting only starts a thread.
    assert time.monotonic() - begun < 1.0
    tracker.close("finished")
    # The limit set above, and room for a slow machine.
    assert time.monotonic() - begun < 20.0
    assert "MLflow lacks 3 rows" in caplog.text


def test_a_run_that_never_began_leaves_no_trace(tmp_path: Path) -> None:
    config = make_config(tmp_path, tracking__mlflow=True)
    claim(config).close()
    Tracker(config, "abc123").close("failed")
    assert read_progress(run_path(config)) is None
    assert not (tmp_path / "runs" / "mlflow.db").exists()


def test_a_recorded_commit_comes_before_asking_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAPLM_COMMIT", "f00")
    assert commit() == "f00"


def test_rows_of_an_outage_arrive_when_the_server_is_there_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(tracking, "POLL_SECONDS", 0.05)
    server = FallibleClient()
    monkeypatch.setattr(tracking, "_client", lambda uri: server)
    config = make_config(tmp_path, tracking__mlflow=True)
    claim(config).close()
    tracker = Tracker(config, "abc123")
    write_rows(config, range(1, 4))
    wait_until(lambda: server.logged == [1, 2, 3])
    server.down = True
    failures = server.failures
    write_rows(config, range(4, 6))
    save_as(run_path(config), 5)
    wait_until(lambda: server.failures > failures)
    server.down = False
    wait_until(lambda: server.logged == [1, 2, 3, 4, 5] and server.models == ["tiny-step_00000005"])
    tracker.close("finished")
    assert server.logged == [1, 2, 3, 4, 5]
    assert server.models == ["tiny-step_00000005"]
    assert server.ended == "FINISHED"


class FallibleClient:
    """What the tracker asks of MLflow, from a server that can be down."""

    def __init__(self) -> None:
        self.down = False
        self.failures = 0
        self.logged: list[int] = []
        self.models: list[str] = []
        self.ended = ""

    def _answer(self) -> None:
        if self.down:
            self.failures += 1
            raise ConnectionError("no route")

    def get_experiment_by_name(self, name: str) -> None:
        self._answer()

    def create_experiment(self, name: str, artifacts: str | None) -> str:
        return "1"

    def create_run(self, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(info=SimpleNamespace(run_id="run"))

    def log_batch(self, run_id: str, metrics: Sequence[Any] = (), params: Sequence[Any] = ()) -> None:
        self._answer()
        self.logged += [metric.step for metric in metrics if metric.key == "loss"]

    def create_logged_model(self, experiment_id: str, name: str, **_: Any) -> Any:
        self._answer()
        self.models.append(name)
        return SimpleNamespace(model_id=name)

    def finalize_logged_model(self, model_id: str, status: str) -> None:
        self._answer()

    def set_terminated(self, run_id: str, status: str) -> None:
        self.ended = status


def wait_until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "the tracker did not get there"
        time.sleep(0.02)
