"""Training programs that tests may hurt: each worker is a process forked from one that has imported everything.

`launch` does what torchrun does: it starts the workers, and when one is lost it ends the others.
"""

import atexit
import json
import multiprocessing
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from configs.errors import UserError
from configs.loading import dump_config, validate
from configs.train import TrainConfig
from pretrain.run_folder import METRICS, read_metrics, run_path

KILLED = -signal.SIGKILL
USER_ERROR = 2
SAVING = ("saver.py", "snapshot.py", "checkpoints.py", "tensor_files.py")
STEPPING = ("loop.py", "engine.py", "align.py", "alignment.py", "contrast.py", "encoder.py", "attention.py")
_WAIT_SECONDS = 240.0


@dataclass(frozen=True)
class Fault:
    """What befalls one worker; every number is counted within the one attempt."""

    rank: int = 0
    kill_at_line: int | None = None
    """SIGKILL when so many lines of `files` have been executed since `begins` was first called, in whatever thread."""
    files: tuple[str, ...] = SAVING
    begins: tuple[str, str] = ("saver.py", "save")
    count_lines: bool = False
    """Only count them, into the file `lines-<rank>` of the run folder."""
    terminate_at: int | None = None
    """SIGTERM in this step."""
    file_limit: tuple[int, int, int] | None = None
    """(bytes, first step, last step): the kernel lets no file grow larger then."""


def launch(config: TrainConfig, size: int = 2, fault: Fault | None = None) -> int:
    """Run the training program once, as torchrun would; returns the exit code, KILLED where a worker was lost."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.preloaded"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    text = json.dumps(asdict(fault)) if fault else None
    settings = dump_config(config)
    processes = [context.Process(target=_work, args=(settings, rank, size, port, text)) for rank in range(size)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + _WAIT_SECONDS
    running = {process.sentinel: process for process in processes}
    while running:
        for sentinel in wait(list(running), timeout=1.0):
            ended = running.pop(sentinel)
            ended.join()
            if ended.exitcode < 0:
                for process in running.values():
                    process.kill()
        assert time.monotonic() < deadline, "the run did not end"
    codes = [process.exitcode for process in processes]
    return min(codes) if min(codes) < 0 else max(codes)


def losses_of(config: TrainConfig) -> dict[int, float]:
    """Step -> loss, of all steps that the run has made."""
    return {row["step"]: row["loss"] for row in read_metrics(run_path(config) / METRICS)}


def log_of(config: TrainConfig) -> str:
    """What the workers wrote on stderr, over all attempts."""
    return "".join(path.read_text() for path in sorted(run_path(config).glob("stderr-*")))


def lines_of(config: TrainConfig, rank: int) -> int:
    """What a fault with `count_lines` counted."""
    return int((run_path(config) / f"lines-{rank}").read_text())


def _work(settings: str, rank: int, size: int, port: int, fault_text: str | None) -> None:
    config = validate(TrainConfig, yaml.safe_load(settings), "test")
    folder = run_path(config)
    folder.mkdir(parents=True, exist_ok=True)
    errors = os.open(folder / f"stderr-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(errors, 2)
    world = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in world.items()} | {"OMP_NUM_THREADS": "1"}
    import logging

    import torch

    from pretrain import tracking
    from pretrain.launch import train

    torch.set_num_threads(1)
    # How long a finished run waits for a server that is down.
    tracking.DRAIN_SECONDS = 2.0
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", force=True)
    if fault_text and (fault := _fault(json.loads(fault_text))).rank == rank:
        _befall(fault, folder / f"lines-{rank}")
    try:
        code = train(config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        code = USER_ERROR
    sys.stderr.flush()
    # A forked process does not do this by itself.
    atexit._run_exitfuncs()
    sys.exit(code)


def _fault(facts: dict[str, Any]) -> Fault:
    return Fault(**{key: tuple(value) if isinstance(value, list) else value for key, value in facts.items()})


def _befall(fault: Fault, count_file: Path) -> None:
    if fault.kill_at_line is not None or fault.count_lines:
        _trace(fault, count_file)
    if fault.terminate_at is not None:
        _after_steps(lambda step: step == fault.terminate_at and os.kill(os.getpid(), signal.SIGTERM))
    if fault.file_limit is not None:
        num_bytes, first, last = fault.file_limit
        ceiling = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        _at_steps(
            lambda step: resource.setrlimit(
                resource.RLIMIT_FSIZE, (num_bytes if first <= step <= last else ceiling, ceiling)
            )
        )


def _at_steps(act: Callable[[int], object]) -> None:
    """Call `act` with the number of each step that begins."""
    from pretrain.stages.align import AlignStage

    loss = AlignStage.loss

    def acting(stage: AlignStage, model: Any, batch: Any, step: int) -> Any:
        act(step)
        return loss(stage, model, batch, step)

    AlignStage.loss = acting


def _after_steps(act: Callable[[int], object]) -> None:
    """Call `act` with the number of each step that was made, before the loop asks what is wished."""
    from pretrain import loop

    count = loop.count_step

    def acting(progress: loop.Progress, *others: Any) -> None:
        count(progress, *others)
        act(progress.step)

    loop.count_step = acting


def _trace(fault: Fault, count_file: Path) -> None:
    """Count the lines that are executed in some files, and end this process at the one that was chosen."""
    count, begun = 0, False

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count, begun
        name = os.path.basename(frame.f_code.co_filename)
        if name not in fault.files:
            return None
        begun = begun or (name, frame.f_code.co_name) == fault.begins
        if begun and event == "line":
            count += 1
            if count == fault.kill_at_line:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    if fault.count_lines:
        atexit.register(lambda: count_file.write_text(str(count)))
    threading.settrace(trace)
    sys.settrace(trace)
