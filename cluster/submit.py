"""Sending a program to a Ray cluster as a job."""

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from cluster.programs import ROOT, Call
from configs.errors import UserError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

EXCLUDES = (
    *("/.git", ".venv", "/data", "/runs", "/shards", "/demo", "/shared", "/site", "/build", "/release"),
    *("__pycache__", ".pytest_cache", ".ruff_cache", ".hypothesis", "*.egg-info", "*.db", "*.log"),
)
"""What stays behind, as gitignore patterns, beside all that .gitignore names."""
MAX_PACKAGE_BYTES = 512 * 2**20
"""Ray's own limit on an uploaded working directory."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Package:
    """What a job is made of."""

    entrypoint: str
    runtime_env: dict[str, object]
    metadata: dict[str, str]


def package(call: Call, address: str, python: str | None = None) -> Package:
    """The job of a call: the repository as working directory, the commit in its environment and metadata.

    `python` is the interpreter on the cluster's nodes: by default this one on a cluster of this machine, `python`
    elsewhere.
    """
    if call.config is not None:
        _require_sent(call.config)
    commit = working_tree_commit()
    interpreter = python or (sys.executable if urlsplit(address).hostname in LOOPBACK else "python")
    variables = {"SAPLM_COMMIT": commit} if commit else {}
    if os.environ.get("SAPLM_LOG"):
        variables["SAPLM_LOG"] = os.environ["SAPLM_LOG"]
    return Package(
        entrypoint=shlex.join([interpreter, "-m", *call.program.words, *call.arguments]),
        runtime_env={"working_dir": str(ROOT), "excludes": list(EXCLUDES), "env_vars": variables},
        metadata={
            "program": call.program.name,
            "config": call.config or "-",
            "commit": commit or "unknown",
            "arguments": shlex.join(call.arguments),
        },
    )


def send(client: "JobSubmissionClient", job: Package) -> str:
    """Upload the working directory where it is not there yet and start the job; returns its id."""
    try:
        return client.submit_job(
            entrypoint=job.entrypoint, runtime_env=dict(job.runtime_env), metadata=dict(job.metadata)
        )
    except (RuntimeError, ValueError, OSError) as error:
        text = " ".join(str(error).split())
        if "exceed" in text or "Package size" in text:
            raise UserError(
                f"the working tree {ROOT} is above Ray's limit of {MAX_PACKAGE_BYTES >> 20} MiB ({text}); "
                "move data out of it or name it in .gitignore"
            ) from None
        raise UserError(f"the cluster did not take the job: {text[:300]}") from None


def working_tree_commit() -> str | None:
    """Hash of the checked-out commit, with `-dirty` where tracked files differ from it; None outside git."""
    head = _git("rev-parse", "HEAD")
    if head is None or head.returncode:
        return None
    status = _git("status", "--porcelain", "--untracked-files=no")
    dirty = status is None or bool(status.stdout.strip())
    return head.stdout.strip() + ("-dirty" if dirty else "")


def _require_sent(config: str) -> None:
    ignored = _git("check-ignore", "-q", config)
    if ignored is not None and ignored.returncode == 0:
        raise UserError(f"config {config} is ignored by git, so it is not sent to the cluster; move it to configs/")


def _git(*arguments: str) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
