"""Worker processes that stay alive between trainings, so that tests pay the start of torch and DeepSpeed once.

`python -m tests.unit.pretrain.workers` is one worker: it reads a JSON command per line and answers with one.
"""

import json
import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from configs.loading import dump_config, validate
from configs.train import TrainConfig
from tests.unit.pretrain.training import ROOT


class Workers:
    """`size` processes in one world, which train what they are told, together."""

    def __init__(self, size: int, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._logs = [folder / f"worker-{size}-{rank}.log" for rank in range(size)]
        self._processes = [self._start(rank, size, port, log) for rank, log in enumerate(self._logs)]

    def train(
        self, config: TrainConfig, stop_after: int | None = None, poison: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Rank 0's outcome of one training; with `stop_after`, as if SIGTERM came in that step.

        `poison` is {"what": "loss" or "gradient", "rank": r, "first": s, "last": t}: no number on rank r in the steps
        s to t.
        """
        command = json.dumps({"config": dump_config(config), "stop_after": stop_after, "poison": poison})
        for process in self._processes:
            process.stdin.write(command + "\n")
            process.stdin.flush()
        answers = [process.stdout.readline() for process in self._processes]
        assert all(answers), "\n".join(log.read_text()[-3000:] for log in self._logs)
        return json.loads(answers[0])

    def close(self) -> None:
        for process in self._processes:
            with suppress(BrokenPipeError):
                process.stdin.close()
        for process in self._processes:
            process.wait(timeout=60)
            process.stdout.close()

    def _start(self, rank: int, size: int, port: int, log: Path) -> subprocess.Popen:
        environment = {
            **os.environ,
            "RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "tests.unit.pretrain.workers"]
        with log.open("w") as errors:
            return subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )


def main() -> None:
    """Answer commands until stdin ends."""
    from pretrain import loop
    from pretrain.run_folder import RunFolder
    from pretrain.stages.align import AlignStage
    from pretrain.worker import run_worker
    from tests.unit.pretrain.poison import poisoned

    count, loss, stop_after, poison = loop.count_step, AlignStage.loss, None, None

    def count_and_stop(progress: loop.Progress, clock: Any, engine: Any, run: RunFolder, max_skipped: int) -> None:
        count(progress, clock, engine, run, max_skipped)
        run.terminated = progress.step == stop_after

    def loss_or_poison(stage: AlignStage, model: Any, batch: Any, step: int) -> Any:
        terms = loss(stage, model, batch, step)
        if poison and poison["first"] <= step <= poison["last"] and int(os.environ["RANK"]) == poison["rank"]:
            return poisoned(terms, poison["what"])
        return terms

    loop.count_step, AlignStage.loss = count_and_stop, loss_or_poison
    for line in sys.stdin:
        command = json.loads(line)
        stop_after, poison = command["stop_after"], command["poison"]
        config = validate(TrainConfig, yaml.safe_load(command["config"]), "test")
        (config.runs / config.name).mkdir(parents=True, exist_ok=True)
        print(json.dumps(run_worker(config)), flush=True)


if __name__ == "__main__":
    main()
