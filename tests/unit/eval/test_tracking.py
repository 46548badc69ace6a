"""Metrics on the checkpoint's logged model; nothing that goes wrong there stops evaluation."""

import json
import logging
from pathlib import Path

import pytest

from eval.tracking import log_results, metric_name
from tests.unit.eval.test_results import make_results


def test_names_are_allowed_by_mlflow_and_distinct() -> None:
    names = [metric_name("contact", metric) for metric in ("P@L_long", "P@L/2_long", "P@L/5_long")]
    assert names == ["eval/contact/P_at_L_long", "eval/contact/P_at_L2_long", "eval/contact/P_at_L5_long"]


def test_metrics_stand_on_the_logged_model_of_the_checkpoint(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("e", (tmp_path / "artifacts").as_uri())
    run = client.create_run(experiment).info.run_id
    model = client.create_logged_model(experiment, name="m", source_run_id=run)
    facts = {"uri": uri, "run_id": run, "models": {"step_00000010": model.model_id}}
    (tmp_path / "tracking.json").write_text(json.dumps(facts))
    assert log_results(tmp_path, make_results())
    assert not log_results(tmp_path, make_results(step=20)), "that checkpoint has no logged model yet"
    assert log_results(tmp_path, make_results(step=20), needs_model=False)
    metrics = {m.key: (m.value, m.step) for m in client.get_logged_model(model.model_id).metrics}
    assert metrics["eval/threedi/accuracy"] == (0.5, 10)
    assert metrics["eval/threedi/accuracy/ci_low"] == (0.4, 10)
    history = client.get_metric_history(run, "eval/threedi/accuracy")
    assert sorted(point.step for point in history) == [10, 20]


@pytest.mark.parametrize("content", ["{", '{"uri": "sqlite:///nowhere/x.db", "run_id": "r", "models": {}}'])
def test_a_tracker_that_fails_is_a_warning(tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "tracking.json").write_text(content.replace("nowhere", f"{tmp_path}/nowhere\\u0000"))
    with caplog.at_level(logging.WARNING):
        assert not log_results(tmp_path, make_results(), needs_model=False)
    assert "were not logged" in caplog.text


def test_a_run_that_was_not_tracked_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert not log_results(tmp_path, make_results())
    assert caplog.text == ""
