"""Reading what programs left on disk, by its documented formats alone; a missing file is an absent value."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NUM_AVERAGED = 5
"""Rows of metrics.jsonl averaged for a first and a last loss."""


@dataclass(frozen=True)
class Estimate:
    """A metric with its 95 % interval, where there is one."""

    value: float
    low: float | None
    high: float | None

    def overlaps(self, other: "Estimate") -> bool:
        """Both have intervals and these share a point."""
        if None in (self.low, self.high, other.low, other.high):
            return False
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class Evaluation:
    """One results.json."""

    step: int
    num_chains: int | None
    estimates: dict[tuple[str, str], Estimate]
    """By (task, metric), in the file's order."""


@dataclass(frozen=True)
class Training:
    """One metrics.jsonl."""

    name: str
    steps: int
    total_steps: int | None
    state: str
    losses: dict[str, tuple[float, float]]
    """Mean over the first and over the last NUM_AVERAGED logged rows, by name."""
    tokens_per_second: float | None


def read_manifest(shards: Path) -> dict[str, Any] | None:
    """manifest.json of a folder of shards."""
    return _read_json(shards / "manifest.json")


def read_training(run: Path) -> Training | None:
    """Losses and state of a run folder; None when it logged nothing."""
    rows = _read_rows(run / "metrics.jsonl")
    if not rows:
        return None
    status = _read_json(run / "status.json") or {}
    names = [name for name in rows[-1] if name == "loss" or name.startswith("loss_")]
    losses = {
        name: (_mean(rows[:NUM_AVERAGED], name), _mean(rows[-NUM_AVERAGED:], name))
        for name in names
        if all(isinstance(row.get(name), int | float) for row in (*rows[:NUM_AVERAGED], *rows[-NUM_AVERAGED:]))
    }
    speeds = sorted(row["tokens_per_second"] for row in rows if isinstance(row.get("tokens_per_second"), int | float))
    return Training(
        name=run.name,
        steps=rows[-1].get("step", len(rows)),
        total_steps=status.get("total_steps"),
        state=status.get("state", "unknown"),
        losses=losses,
        tokens_per_second=speeds[len(speeds) // 2] if speeds else None,
    )


def read_evaluations(folder: Path) -> list[Evaluation]:
    """Every step_*/results.json of an evaluation folder, or of a run folder that holds `eval/`, in step order."""
    found = []
    for path in sorted([*folder.glob("step_*/results.json"), *folder.glob("eval/step_*/results.json")]):
        content = _read_json(path)
        if content is not None:
            estimates = {
                (row["task"], row["metric"]): Estimate(row["value"], row.get("ci_low"), row.get("ci_high"))
                for row in content["results"]
            }
            found.append(Evaluation(content["step"], content.get("num_test_chains"), estimates))
    return sorted(found, key=lambda evaluation: evaluation.step)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file; a last line that was cut off is left out."""
    rows = []
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def _mean(rows: Sequence[dict[str, Any]], name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)
