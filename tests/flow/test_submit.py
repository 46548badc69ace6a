"""Jobs on a Ray head that was started on loopback by the documented command, with token authentication."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from cluster.programs import ROOT

TOKEN = "0123456789abcdef" * 2
START_SECONDS = 150
TINY_BUILD = (
    *("source.synthetic.num_folds=2", "source.synthetic.families_per_fold=2", "source.synthetic.members_per_family=2"),
    *("source.synthetic.min_residues=40", "source.synthetic.max_residues=60"),
)
TINY_TRAINING = (
    *("optimizer.steps=2", "optimizer.warmup_steps=1", "data.max_residues=100", "data.pack_tokens=128"),
    *("trunk.layers=1", "trunk.width=32", "trunk.heads=2", "engine.num_workers=1", "tracking.mlflow=false"),
)


@dataclass(frozen=True)
class Head:
    """A running Ray head and how to call `python -m cluster` against it."""

    address: str
    folder: Path
    """Working directory of the calls, which is not the repository."""

    def call(self, *arguments: str, token: str = TOKEN, seconds: float = 240) -> subprocess.CompletedProcess[str]:
        """Run one command with the head's address."""
        return subprocess.run(
            [sys.executable, "-m", "cluster", *arguments, "--address", self.address],
            cwd=self.folder,
            env={**_environment(self.folder), "RAY_AUTH_TOKEN": token, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder = tmp_path_factory.mktemp("submit")
    # Ray's socket paths must stay below 108 characters, so its files cannot lie under pytest's folder.
    ray_folder = Path(f"/tmp/ray_{os.getpid()}")
    port, dashboard_port = _free_port(), _free_port()
    command = [
        *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats"),
        *("--node-ip-address=127.0.0.1", f"--port={port}", f"--ray-client-server-port={_free_port()}"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}", "--dashboard-agent-listen-port=0"),
        *("--num-cpus=2", "--object-store-memory=100000000", f"--temp-dir={ray_folder}"),
    ]
    log = (folder / "head.log").open("wb")
    process = subprocess.Popen(
        command,
        env={**_environment(folder), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN},
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        _wait_until_listening(dashboard_port, process, folder / "head.log")
        yield Head(f"http://127.0.0.1:{dashboard_port}", folder)
    finally:
        _end(process)
        subprocess.run(["rm", "-rf", str(ray_folder)], check=False)


def test_a_submitted_build_succeeds_with_its_shards_where_the_user_stands(head: Head) -> None:
    config = str(ROOT / "configs/data/demo.yaml")
    result = head.call("submit", "data_pipeline", "build", config, "output=shards", *TINY_BUILD)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "SUCCEEDED" in result.stdout
    # What the job printed is followed, not only its end.
    assert "chains kept" in result.stdout
    manifest = json.loads((head.folder / "shards/manifest.json").read_text())
    assert manifest["kept"] > 0
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    assert commit in (manifest["commit"] or "")


def test_a_submitted_training_succeeds_with_its_run_where_the_config_says(head: Head) -> None:
    config = str(ROOT / "configs/pretrain/demo_mlm.yaml")
    overrides = ("data.shards=shards", "runs=runs", *TINY_TRAINING)
    result = head.call("submit", "pretrain", "train", config, *overrides)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "SUCCEEDED" in result.stdout
    assert (head.folder / "runs/mlm/checkpoints/step_00000002/manifest.json").is_file()


def test_a_users_error_inside_a_job_ends_the_submission_with_code_two(head: Head) -> None:
    result = head.call("submit", "data_pipeline", "audit", "no_such_shards")
    assert result.returncode == 2
    assert "FAILED" in result.stdout
    assert f"{head.folder}/no_such_shards" in result.stdout


def test_a_job_is_listed_logged_and_stopped(head: Head) -> None:
    config = str(ROOT / "configs/data/demo.yaml")
    sent = head.call(
        "submit", "data_pipeline", "build", config, "output=large", "source.synthetic.num_folds=500", "--no-wait"
    )
    assert sent.returncode == 0, sent.stderr
    job = sent.stdout.split()[1].rstrip(":")
    row = next(line for line in head.call("list").stdout.splitlines() if line.startswith(job))
    assert "data_pipeline build" in row
    assert "configs/data/demo.yaml" in row
    stopped = head.call("stop", job)
    assert stopped.returncode == 0, stopped.stderr
    assert "STOPPED" in stopped.stdout
    followed = head.call("logs", job, "--follow")
    assert followed.returncode == 1
    assert "STOPPED" in followed.stdout
    assert "STOPPED" in next(line for line in head.call("list").stdout.splitlines() if line.startswith(job))


def test_an_unknown_job_is_one_line(head: Head) -> None:
    result = head.call("logs", "raysubmit_nothing")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "is not known" in result.stderr


def test_a_wrong_token_is_one_line_within_seconds(head: Head) -> None:
    began = time.monotonic()
    result = head.call("submit", "data_pipeline", "audit", "shards", token="f" * 32)
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert "rejects the token" in result.stderr
    # Importing Ray takes most of it; a minute would be a retry loop.
    assert time.monotonic() - began < 30


def _environment(home: Path) -> dict[str, str]:
    """Ours without what this session knows about Ray, and with a home that holds no token."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_listening(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up = time.monotonic() + START_SECONDS
    while time.monotonic() < give_up:
        assert process.poll() is None, f"the head ended: {log.read_text()[-3000:]}"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    pytest.fail(f"no Ray head after {START_SECONDS} s: {log.read_text()[-3000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the head, then whatever it started, by process id."""
    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
    for child in children:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(children, timeout=10)
