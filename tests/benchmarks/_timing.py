"""Fair timing of peers in one process: interleaved rounds, CPU and wall seconds, medians."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Timing:
    """Medians over the rounds of one contestant."""

    wall_seconds: float
    cpu_seconds: float


def interleaved(contestants: dict[str, Callable[[], Any]], rounds: int = 5, warmup: int = 1) -> dict[str, Timing]:
    """Run the contestants in turn, A B C A B C ..., so that a drift of the machine's speed meets all of them alike."""
    walls: dict[str, list[float]] = {name: [] for name in contestants}
    cpus: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(warmup + rounds):
        for name, run in contestants.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            if number >= warmup:
                walls[name].append(time.perf_counter() - wall)
                cpus[name].append(time.process_time() - cpu)
    return {name: Timing(statistics.median(walls[name]), statistics.median(cpus[name])) for name in contestants}


def report(name: str, figures: dict[str, Any]) -> None:
    """Print the benchmark's closing line: one JSON object with its figures and the conditions they were taken under."""
    conditions = {
        "cpus": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    rounded = {key: _rounded(value) if isinstance(value, float) else value for key, value in figures.items()}
    print(json.dumps({"benchmark": name, **rounded, "conditions": conditions}), flush=True)


def _rounded(value: float) -> float:
    """Four decimals, or three digits of what is smaller."""
    return round(value, 4) if abs(value) >= 0.01 else float(f"{value:.3g}")
