"""New checkpoints from run folders and from an MLflow registry, each once; trackers that do not answer."""

import json
import logging
import threading
from pathlib import Path

import pytest
import torch

from configs.loading import dump_config, validate
from configs.train import TrainConfig
from eval.service.board import EvaluationRow
from eval.service.promotion import CANDIDATE, CHAMPION
from eval.service.registry import Registry
from eval.service.store import Store
from eval.service.watcher import RegistryWatcher, Reporter, Rounds, RunWatcher
from pretrain import checkpoints
from tests.unit.eval.service import stand_in
from tests.unit.eval.service.makers import PROTOCOL, serve_config, tiny_checkpoint, wait_until


@pytest.fixture(scope="module")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all: its tables take seconds to make."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


def store_of(folder: Path) -> Store:
    (folder / "service").mkdir(exist_ok=True)
    return Store(folder / "service")


def complete(store: Store) -> EvaluationRow:
    """Carry out the next evaluation with results by the stand-in."""
    claim = store.claim()
    store.planned(claim, (), 0.1)
    store.done(store.claim(), 0.1)
    last = store.claim()
    folder = store.folder_of(claim.evaluation)
    folder.mkdir(parents=True)
    (folder / "tasks").mkdir()
    (folder / "tasks" / "fold.json").write_text(json.dumps({"task": "fold", "score": 0.5}))
    stand_in.finish(stand_in.Job(claim.checkpoint, serve_config(folder).evaluation, folder))
    store.done(last, 0.1)
    return store.evaluation(claim.evaluation)


def test_each_complete_checkpoint_of_watched_runs_is_queued_once(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    store = store_of(tmp_path)
    watcher = RunWatcher(store, serve_config(tmp_path), PROTOCOL)
    assert watcher.look() == 0, "the folder is not there yet"
    tiny_checkpoint(runs, 10)
    tiny_checkpoint(runs, 10, name="other", seed=5)
    unfinished = runs / "small" / "checkpoints" / "step_00000020"
    unfinished.mkdir()
    assert watcher.look() == 2
    assert watcher.look() == 0
    tiny_checkpoint(runs, 20)
    assert watcher.look() == 1
    assert RunWatcher(store, serve_config(tmp_path), PROTOCOL).look() == 0, "a new watcher finds all of them there"
    assert sorted((row.run, row.step) for row in store.evaluations()) == [("other", 10), ("small", 10), ("small", 20)]


def test_a_teachers_checkpoints_are_not_queued(tmp_path: Path) -> None:
    tree = {"stage": "teacher", "name": "teacher", "data": {"shards": "shards"}, "optimizer": {"steps": 20}}
    config = dump_config(validate(TrainConfig, tree, "test"))
    share = checkpoints.Share({"weight": torch.ones(3)}, {})
    checkpoints.save(tmp_path / "runs" / "teacher", 10, config, {"step": 10}, share)
    tiny_checkpoint(tmp_path / "runs", 10)
    store = store_of(tmp_path)
    assert RunWatcher(store, serve_config(tmp_path), PROTOCOL).look() == 1
    assert [row.run for row in store.evaluations()] == ["small"]


def test_a_run_folder_itself_may_be_watched(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "runs", 10)
    config = serve_config(tmp_path, watch__runs=[str(tmp_path / "runs" / "small")])
    assert RunWatcher(store_of(tmp_path), config, PROTOCOL).look() == 1


def test_a_damaged_manifest_is_a_failed_evaluation_and_told_once(tmp_path: Path) -> None:
    manifest = tiny_checkpoint(tmp_path / "runs", 10) / "manifest.json"
    manifest.write_text("{")
    store = store_of(tmp_path)
    watcher = RunWatcher(store, serve_config(tmp_path), PROTOCOL)
    watcher.look()
    watcher.look()
    (row,) = store.evaluations()
    assert (row.state, row.run, row.step) == ("failed", "small", 10)
    assert "damaged" in row.reason


def test_versions_of_registered_models_are_queued_and_their_aliases_moved(
    tmp_path: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    uri = mlflow_uri
    # MLflow looks up the logged model of a new version there, whatever the client's address is.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.create_registered_model("it's mine")
    client.create_registered_model("unwatched")
    runs = tmp_path / "runs"
    experiment = client.create_experiment("versions", (tmp_path / "artifacts").as_uri())
    by_tag, by_model, by_source = (tiny_checkpoint(runs, step) for step in (10, 20, 30))
    logged = client.create_logged_model(experiment, name="m", tags={"path": str(by_model)})
    client.create_model_version("it's mine", source="anything", tags={"path": str(by_tag)})
    client.create_model_version("it's mine", source=f"models:/{logged.model_id}", model_id=logged.model_id)
    client.create_model_version("it's mine", source=by_source.as_uri())
    client.create_model_version("it's mine", source=(tmp_path / "nowhere").as_uri())
    client.create_model_version("unwatched", source=by_source.as_uri())
    store = store_of(tmp_path)
    config = serve_config(tmp_path, watch__registry=uri, watch__models=["it's mine"])
    watcher = RegistryWatcher(store, config, PROTOCOL, Registry(uri, config.watch.models), lambda first, second: {})
    assert watcher.look() == 3
    assert watcher.look() == 0
    assert sorted(row.step for row in store.evaluations()) == [10, 20, 30]
    complete(store)
    watcher.look()
    model = client.get_registered_model("it's mine")
    assert {name: str(version) for name, version in model.aliases.items()} == {CANDIDATE: "1", CHAMPION: "1"}
    assert [row.decision for row in store.promotions()] == ["champion"]


def test_metrics_are_logged_once_to_the_checkpoints_logged_model(tmp_path: Path, mlflow_uri: str) -> None:
    from mlflow import MlflowClient

    uri = mlflow_uri
    client = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("metrics", (tmp_path / "artifacts").as_uri())
    run = client.create_run(experiment).info.run_id
    checkpoint = tiny_checkpoint(tmp_path / "runs", 10)
    store = store_of(tmp_path)
    RunWatcher(store, serve_config(tmp_path), PROTOCOL).look()
    complete(store)
    reporter = Reporter(store)
    assert reporter.look() == 0, "the run is not tracked yet"
    model = client.create_logged_model(experiment, name="m", source_run_id=run)
    facts = {"uri": uri, "run_id": run, "models": {checkpoint.name: model.model_id}}
    (tmp_path / "runs" / "small" / "tracking.json").write_text(json.dumps(facts))
    assert wait_until(reporter.look, "the next attempt") == 1
    metrics = {m.key: m.value for m in client.get_logged_model(model.model_id).metrics}
    assert metrics == {"eval/fold/accuracy": 0.5}
    assert store.unlogged() == []
    assert Reporter(store).look() == 0


def test_rounds_go_on_after_errors_and_tell_each_once(caplog: pytest.LogCaptureFixture) -> None:
    looks, found = [], threading.Event()

    def look() -> int:
        looks.append(1)
        if len(looks) < 4:
            raise ConnectionError("nobody\nthere")
        return 1

    rounds = Rounds("registry", look, 0.01, found.set)
    with caplog.at_level(logging.WARNING):
        rounds.start()
        assert found.wait(30)
        rounds.close(10)
    assert caplog.text.count("ConnectionError: nobody there") == 1


def test_a_call_that_hangs_does_not_hold_the_end() -> None:
    hanging = threading.Event()
    rounds = Rounds("registry", lambda: int(hanging.wait(60)), 0.01, lambda: None)
    rounds.start()
    rounds.close(0.1)
    assert not hanging.is_set()
    hanging.set()
