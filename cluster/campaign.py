"""A campaign: dependent stages, each a program call, skipped when done before and unchanged."""

import fcntl
import hashlib
import json
import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from cluster.local import local_cluster
from cluster.progress import Progress
from cluster.stages import Running, end_stages, start_stage
from configs.campaign import CampaignConfig, StageConfig
from configs.errors import UserError
from configs.program import EXIT_USER_ERROR

log = logging.getLogger("cluster")

STATE_NAME = "campaign.json"
LOCK_NAME = ".lock"
POLL_SECONDS = 0.2
EXIT_FAILED = 1


@dataclass(frozen=True)
class Outcome:
    """How a campaign ended."""

    exit_code: int
    seconds: float


def run_campaign(config: CampaignConfig, again: bool = False) -> Outcome:
    """Run every stage that is not done, each as soon as the stages it waits for have ended well.

    A stage is done when `<root>/campaign.json` holds the hash of its command, of the configuration files it names and
    of the stages it depends on; so a change reruns it and all that follows from it. `again` reruns everything. The
    first stage that fails ends the others.

    Raises:
        UserError: `structures` does not exist, or another campaign works in the same folder.
    """
    if config.structures is not None and not config.structures.exists():
        raise UserError(f"structures={config.structures}: no such file or folder; name a folder, a tar or a file")
    began = time.monotonic()
    config.root.mkdir(parents=True, exist_ok=True)
    hashes = stage_hashes(config)
    with _locked(config.root) as lock, _terminable():
        done = {} if again else _read_done(config.root, hashes)
        progress = Progress([stage.name for stage in config.stages])
        for name in done:
            progress.skipped(name)
        waiting = [stage for stage in config.stages if stage.name not in done]
        if not waiting:
            return Outcome(0, time.monotonic() - began)
        with local_cluster():
            exit_code = _run(config, waiting, done, hashes, lock, progress)
    return Outcome(exit_code, time.monotonic() - began)


def expand(stage: StageConfig, config: CampaignConfig) -> list[str]:
    """The stage's arguments with its placeholders filled in.

    `{root}` is the campaign's folder and `{structures}` the given path. An argument that is exactly `{source}` becomes
    the two overrides of a build that reads `structures`, or nothing when none were given.
    """
    source = [] if config.structures is None else ["source.kind=files", f"source.path={config.structures}"]
    arguments: list[str] = []
    for argument in stage.command:
        if argument == "{source}":
            arguments += source
        else:
            filled = argument.replace("{root}", str(config.root))
            arguments.append(filled.replace("{structures}", str(config.structures)))
    return arguments


def stage_hashes(config: CampaignConfig) -> dict[str, str]:
    """For every stage the sha256 of what it is a function of: arguments, configuration files, earlier stages."""
    hashes: dict[str, str] = {}
    for stage in config.stages:
        arguments = expand(stage, config)
        digest = hashlib.sha256("\0".join(arguments).encode())
        for argument in arguments:
            if argument.endswith((".yaml", ".yml")):
                for path in _config_chain(Path(argument)):
                    digest.update(path.read_bytes())
        for earlier in (*stage.after, *([stage.alongside] if stage.alongside else [])):
            digest.update(hashes[earlier].encode())
        hashes[stage.name] = digest.hexdigest()
    return hashes


def _run(
    config: CampaignConfig,
    waiting: list[StageConfig],
    done: dict[str, float],
    hashes: dict[str, str],
    lock: int,
    progress: Progress,
) -> int:
    running: list[Running] = []
    started = set(done)
    try:
        with progress:
            while waiting or running:
                for stage in [stage for stage in waiting if _may_start(stage, done, started)]:
                    waiting.remove(stage)
                    started.add(stage.name)
                    log_file = config.root / "logs" / f"{stage.name}.log"
                    running.append(start_stage(stage.name, expand(stage, config), log_file, lock))
                    progress.started(running[-1])
                time.sleep(POLL_SECONDS)
                progress.update(running)
                for stage in [stage for stage in running if stage.process.poll() is not None]:
                    if stage.process.returncode:
                        progress.failed(stage)
                        return EXIT_USER_ERROR if stage.process.returncode == EXIT_USER_ERROR else EXIT_FAILED
                    running.remove(stage)
                    done[stage.name] = stage.seconds
                    _write_done(config.root, done, hashes)
                    progress.ended(stage)
        return 0
    finally:
        end_stages(running)


def _may_start(stage: StageConfig, done: dict[str, float], started: set[str]) -> bool:
    return set(stage.after) <= set(done) and (stage.alongside is None or stage.alongside in started)


def _config_chain(path: Path) -> Iterator[Path]:
    """A configuration file and the files it extends, as far as they can be read; the stage itself reports faults."""
    seen: set[Path] = set()
    while path.is_file() and path.resolve() not in seen:
        seen.add(path.resolve())
        yield path
        try:
            base = (yaml.safe_load(path.read_text()) or {}).get("extends")
        except (yaml.YAMLError, AttributeError, UnicodeDecodeError):
            return
        if base is None:
            return
        path = path.parent / str(base)


def _read_done(root: Path, hashes: dict[str, str]) -> dict[str, float]:
    """Stages that ended well with the same hash, and the seconds they took."""
    try:
        stages = json.loads((root / STATE_NAME).read_text())["stages"]
        return {name: stages[name]["seconds"] for name in hashes if stages.get(name, {}).get("sha256") == hashes[name]}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError):
        log.warning("%s cannot be read; every stage is run again", root / STATE_NAME)
        return {}


def _write_done(root: Path, done: dict[str, float], hashes: dict[str, str]) -> None:
    stages = {name: {"sha256": hashes[name], "seconds": round(seconds, 1)} for name, seconds in done.items()}
    temporary = root / f".{STATE_NAME}.tmp"
    temporary.write_text(json.dumps({"stages": stages}, indent=1))
    os.replace(temporary, root / STATE_NAME)


@contextmanager
def _locked(root: Path) -> Iterator[int]:
    """File descriptor of a lock on the folder; stages inherit it, so it holds as long as one of them lives."""
    descriptor = os.open(root / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(
            f"{root} is in use by another campaign, or by a stage that outlived one; "
            "wait for it, end it, or give another root="
        ) from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM acts like Ctrl-C inside, so that stages and cluster are ended in order."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
