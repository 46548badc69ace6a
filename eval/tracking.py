"""Metrics of an evaluation into MLflow, on the logged model of the checkpoint; a failure never stops evaluation."""

import json
import logging
import os
import re
import time
from pathlib import Path

from eval.results import Results

TRACKING_FILE = "tracking.json"
_FORBIDDEN = re.compile(r"[^\w\-. /:]")
log = logging.getLogger("eval")


def metric_name(task: str, metric: str) -> str:
    """A name that MLflow allows and that still reads: `P@L/2_long` becomes `eval/contact/P_at_L2_long`."""
    readable = metric.replace("@", "_at_").replace("/", "")
    return _FORBIDDEN.sub("_", f"eval/{task}/{readable}")


def log_results(run: Path, results: Results, needs_model: bool = True) -> bool:
    """Log values and interval ends of one checkpoint; True where there is nothing left to do.

    A run without tracking.json is not tracked (yet). With `needs_model`, nothing is logged before the checkpoint has
    its logged model. Anything that goes wrong (no server, an unknown run) is a warning.
    """
    path = run / TRACKING_FILE
    if not path.is_file():
        return False
    # By default a dead server holds a call for minutes; evaluation does not wait for it.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    try:
        facts = json.loads(path.read_text())
        model_id = facts.get("models", {}).get(f"step_{results.step:08d}")
        if facts.get("run_id") is None or (needs_model and model_id is None):
            return False
        _log(facts["uri"], facts["run_id"], model_id, results)
    except Exception as error:
        first = " ".join(str(error).split())[:300]
        log.warning("MLflow: metrics of step %d were not logged (%s)", results.step, first)
        return False
    return True


def _log(uri: str, run_id: str, model_id: str | None, results: Results) -> None:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    values: dict[str, float] = {}
    for result in results.results:
        name = metric_name(result.task, result.metric)
        values[name] = result.value
        if result.ci_low is not None and result.ci_high is not None:
            values |= {f"{name}/ci_low": result.ci_low, f"{name}/ci_high": result.ci_high}
    metrics = [
        Metric(key=key, value=value, timestamp=now, step=results.step, model_id=model_id, run_id=run_id)
        for key, value in values.items()
    ]
    MlflowClient(tracking_uri=uri).log_batch(run_id, metrics=metrics, synchronous=True)
