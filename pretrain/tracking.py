"""MLflow, fed from the run folder by a thread: training neither waits for a tracker nor notices that it is down.

metrics.jsonl is the spool. The thread logs the rows that MLflow has not seen, makes one logged model per checkpoint,
and remembers both in tracking.json; after a crash or an outage the next attempt begins where that file stands.
"""

import json
import logging
import os
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.train import TrainConfig
from pretrain.checkpoints import list_checkpoints, open_checkpoint
from pretrain.run_folder import METRICS, flatten, read_metrics, run_path

TRACKING = "tracking.json"
POLL_SECONDS = 2.0
RETRY_SECONDS = 30.0
DRAIN_SECONDS = 60.0
_LONGEST_VALUE = 500
_ROWS_PER_CALL = 40
log = logging.getLogger("pretrain.tracking")


@dataclass
class Progress:
    """Content of tracking.json."""

    uri: str
    run_id: str | None = None
    experiment_id: str | None = None
    logged_step: int = 0
    models: dict[str, str] = field(default_factory=dict)
    """Checkpoint folder's name -> MLflow model id."""


class Tracker:
    """Follows one run folder until closed."""

    def __init__(self, config: TrainConfig, data_sha256: str) -> None:
        self._config = config
        self._folder = run_path(config)
        self._data_sha256 = data_sha256
        self._progress = read_progress(self._folder) or Progress(tracking_uri(config))
        self._closing = threading.Event()
        self._final: str | None = None
        self._warned = False
        self._thread = threading.Thread(target=self._follow, name="tracking", daemon=True)
        self._thread.start()

    def close(self, state: str) -> None:
        """Log what is left and end MLflow's run as `finished`, `stopped` or `failed`; waits a limited time."""
        self._final = {"finished": "FINISHED", "stopped": "KILLED"}.get(state, "FAILED")
        self._closing.set()
        self._thread.join(timeout=DRAIN_SECONDS)
        left = sum(row["step"] > self._progress.logged_step for row in read_metrics(self._folder / METRICS))
        if self._thread.is_alive() or left:
            log.warning("MLflow lacks %d rows; they are in %s and follow when the run continues", left, METRICS)

    def _follow(self) -> None:
        while not (self._folder / METRICS).exists():
            # Nothing to tell yet, and the import of MLflow would slow down the start of training.
            if self._closing.wait(POLL_SECONDS) and not (self._folder / METRICS).exists():
                return
        client = None
        while True:
            closing = self._closing.is_set()
            try:
                client = client or _client(self._progress.uri)
                self._catch_up(client)
                if closing and self._final:
                    client.set_terminated(self._progress.run_id, self._final)
            except Exception as error:
                self._warn(error)
                if not closing:
                    self._closing.wait(RETRY_SECONDS)
            if closing:
                return
            self._closing.wait(POLL_SECONDS)

    def _catch_up(self, client: Any) -> None:
        from mlflow.entities import Metric

        if self._progress.run_id is None:
            self._start_run(client)
        rows = [row for row in read_metrics(self._folder / METRICS) if row["step"] > self._progress.logged_step]
        now = int(time.time() * 1000)
        for begin in range(0, len(rows), _ROWS_PER_CALL):
            part = rows[begin : begin + _ROWS_PER_CALL]
            metrics = [Metric(k, float(v), now, row["step"]) for row in part for k, v in row.items() if k != "step"]
            for first in range(0, len(metrics), 1000):
                client.log_batch(self._progress.run_id, metrics=metrics[first : first + 1000])
            self._progress.logged_step = part[-1]["step"]
            self._save()
        for path in list_checkpoints(self._folder):
            if path.name not in self._progress.models:
                self._log_model(client, path)

    def _start_run(self, client: Any) -> None:
        """Create experiment and run, with the config as parameters and code and data as tags."""
        from mlflow.entities import Param

        config = self._config
        name = config.tracking.experiment
        experiment = client.get_experiment_by_name(name)
        artifacts = None if config.tracking.uri else (config.runs / "mlartifacts").resolve().as_uri()
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(name, artifacts)
        tags = {
            "mlflow.source.name": "python -m pretrain train",
            "mlflow.source.git.commit": commit() or "unknown",
            "stage": config.stage,
            "data_manifest_sha256": self._data_sha256,
            "run_folder": str(self._folder),
        }
        run_id = client.create_run(experiment_id, tags=tags, run_name=config.name).info.run_id
        values = flatten(config.model_dump(mode="json"))
        params = [Param(key, str(value)[:_LONGEST_VALUE]) for key, value in values.items()]
        for first in range(0, len(params), 100):
            client.log_batch(run_id, params=params[first : first + 100])
        self._progress.experiment_id, self._progress.run_id = experiment_id, run_id
        self._save()

    def _log_model(self, client: Any, path: Path) -> None:
        """One logged model per checkpoint, so that an evaluation's metrics can be tied to it."""
        checkpoint = open_checkpoint(path, verify=False)
        model = client.create_logged_model(
            self._progress.experiment_id,
            name=f"{self._config.name}-{path.name}",
            source_run_id=self._progress.run_id,
            tags={"weights_sha256": checkpoint.weights_sha256, "path": str(path)},
            params={"step": str(checkpoint.step)},
            model_type=self._config.stage,
        )
        client.finalize_logged_model(model.model_id, "READY")
        self._progress.models[path.name] = model.model_id
        self._save()

    def _save(self) -> None:
        partial = self._folder / f".{TRACKING}"
        partial.write_text(json.dumps(vars(self._progress), indent=1) + "\n")
        os.replace(partial, self._folder / TRACKING)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            first_line = next(iter(str(error).splitlines()), type(error).__name__)
            log.warning("MLflow (%s) does not answer: %s; training goes on", self._progress.uri, first_line)
        self._warned = True


def tracking_uri(config: TrainConfig) -> str:
    """The configured URI, or a sqlite file beside the runs."""
    return config.tracking.uri or f"sqlite:///{config.runs.resolve()}/mlflow.db"


def read_progress(folder: Path) -> Progress | None:
    """What tracking.json of a run folder says; None where there is none yet."""
    try:
        return Progress(**json.loads((folder / TRACKING).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def commit() -> str | None:
    """Git commit of the code: SAPLM_COMMIT where it was recorded at submission, else asked of git."""
    if recorded := os.environ.get("SAPLM_COMMIT"):
        return recorded
    here = Path(__file__).parent
    try:
        asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return asked.stdout.strip()


def _client(uri: str) -> Any:
    # A dead server would otherwise block for minutes and keep the last rows from the next attempt.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.tracking import MlflowClient

    for chatty in ("alembic", "mlflow"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)
