"""Ray's Jobs API: connecting with a token, following a job's log, listing and stopping."""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import UserError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS")
ANSWER_SECONDS = 10.0
"""How long a cluster may take for its first answer."""
POLL_SECONDS = 0.5
CHATTY = (
    *("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk", "ray._private.authentication"),
    *("ray._private.runtime_env.packaging", "ray._private.runtime_env.working_dir"),
)
"""Loggers of Ray's client that tell about every file that is not sent."""
MAX_LOST_CONNECTIONS = 5
TOKEN_REMEDY = (
    "set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token, or put it into ~/.ray/auth_token "
    "(`ray get-auth-token` prints it on the head node)"
)


def default_address() -> str:
    """The address from the environment, else the dashboard's default on this machine."""
    return next((os.environ[name] for name in ADDRESS_VARIABLES if os.environ.get(name)), DEFAULT_ADDRESS)


def connect(address: str) -> "JobSubmissionClient":
    """A client of the cluster whose dashboard listens at `address` (http://HOST:PORT).

    Raises:
        UserError: nobody answers there, it is not Ray, or the token is missing or wrong; within ANSWER_SECONDS.
    """
    address = _http_address(address)
    _use_token_if_present()
    # Ray lets RAY_ADDRESS and this variable win over the argument; the address that was asked for must win.
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    _probe(address)
    from ray.job_submission import JobSubmissionClient

    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    with _explained(address):
        return JobSubmissionClient(address)


def follow(client: "JobSubmissionClient", job: str, write: Callable[[str], object]) -> "JobDetails":
    """Write a job's log as it grows until the job has ended; returns its final details.

    A stream that breaks is opened again and continued where it broke, at most MAX_LOST_CONNECTIONS times.
    """
    import aiohttp

    printed, lost = 0, 0

    async def tail() -> None:
        nonlocal printed
        seen = 0
        async for text in client.tail_job_logs(job):
            seen += len(text)
            if seen > printed:
                write(text[printed - seen :])
                printed = seen

    while True:
        try:
            asyncio.run(tail())
        except (OSError, RuntimeError, aiohttp.ClientError) as error:
            lost += 1
            if lost > MAX_LOST_CONNECTIONS:
                raise UserError(f"lost the connection ({error}); the job goes on, `logs {job}` shows it") from None
        details = job_details(client, job)
        if details.status.is_terminal():
            write(job_log(client, job)[printed:])
            return details
        time.sleep(POLL_SECONDS)


def job_details(client: "JobSubmissionClient", job: str) -> "JobDetails":
    """Details of one job.

    Raises:
        UserError: the cluster does not know it, or does not answer.
    """
    with _explained(client.get_address(), job):
        return client.get_job_info(job)


def job_log(client: "JobSubmissionClient", job: str) -> str:
    """The whole log so far."""
    with _explained(client.get_address(), job):
        return client.get_job_logs(job)


def list_jobs(client: "JobSubmissionClient") -> list["JobDetails"]:
    """Submitted jobs, oldest first."""
    with _explained(client.get_address()):
        found = [job for job in client.list_jobs() if job.submission_id]
    return sorted(found, key=lambda job: job.start_time or 0)


def stop_job(client: "JobSubmissionClient", job: str, wait_seconds: float = 30.0) -> "JobDetails":
    """Ask a job to stop and wait until it has ended or `wait_seconds` have passed."""
    with _explained(client.get_address(), job):
        client.stop_job(job)
    give_up = time.monotonic() + wait_seconds
    while not (details := job_details(client, job)).status.is_terminal() and time.monotonic() < give_up:
        time.sleep(POLL_SECONDS)
    return details


def _http_address(address: str) -> str:
    scheme, separator, rest = address.rstrip("/").rpartition("://")
    if separator and scheme not in ("http", "https"):
        raise UserError(
            f"address {address!r}: jobs are sent to the dashboard, as http://HOST:8265 or https://...; "
            "give that, not a Ray client or driver address"
        )
    return f"{scheme or 'http'}://{rest}"


def _use_token_if_present() -> None:
    """Switch Ray's token authentication on when a token is at hand and nothing was said about it."""
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if "RAY_AUTH_MODE" not in os.environ and (named or (Path.home() / ".ray" / "auth_token").is_file()):
        os.environ["RAY_AUTH_MODE"] = "token"
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if path and not os.environ.get("RAY_AUTH_TOKEN") and not Path(path).is_file():
        raise UserError(f"RAY_AUTH_TOKEN_PATH names {path}, which is no file; {TOKEN_REMEDY}")


def _probe(address: str) -> None:
    """Fail early where nobody answers; Ray's own client has no time limit."""
    import requests

    try:
        requests.get(f"{address}/api/version", timeout=ANSWER_SECONDS)
    except requests.exceptions.RequestException as error:
        reason = "no answer in time" if isinstance(error, requests.exceptions.Timeout) else "nothing listens there"
        raise UserError(
            f"no Ray cluster at {address} ({reason}); start one as docs/cluster.md says, or give its --address"
        ) from None


@contextmanager
def _explained(address: str, job: str | None = None) -> Iterator[None]:
    """Turn what Ray's client raises for a wrong token, address or job into one line."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        kind = "needs a token" if "401" in str(error) or "required" in str(error) else "rejects the token"
        raise UserError(f"the Ray cluster at {address} {kind}; {TOKEN_REMEDY}") from None
    except (RuntimeError, OSError, ValueError) as error:
        text = _first_line(error)
        if job is not None and ("404" in text or "does not exist" in text):
            raise UserError(
                f"job {job!r} is not known at {address}; `python -m cluster list` shows the jobs there"
            ) from None
        raise UserError(f"the Ray cluster at {address}: {text}; see docs/cluster.md") from None


def _first_line(error: Any) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
