"""What the service shows of itself: rows of its queue, results and promotions, behind one Protocol.

Pages read a `Board` and nothing else. Times are seconds since 1970; every `reason` is one line.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from eval.results import Results

State = Literal["queued", "running", "done", "failed"]
Kind = Literal["plan", "embed", "task", "finish"]
"""A task of the benchmark, or one of the steps around them that every evaluation has."""


@dataclass(frozen=True)
class EvaluationRow:
    """One checkpoint under one protocol: queued once, whatever asks for it how often."""

    id: int
    weights_sha256: str
    protocol_sha256: str
    checkpoint: str
    """Folder of the checkpoint."""
    run: str
    """Name of the run that wrote it."""
    step: int
    state: State
    priority: int
    """Higher ones come first."""
    reason: str | None
    """Why it failed."""
    created: float
    started: float | None
    finished: float | None
    attempts: int
    """How often a step of it was started."""
    num_tasks: int
    """Tasks of the benchmark; 0 until they are planned."""
    num_ended: int
    """Of these, done or failed."""


@dataclass(frozen=True)
class TaskRow:
    """One step of an evaluation."""

    id: int
    evaluation: int
    run: str
    step: int
    kind: Kind
    task: str
    """Name of the task; of other kinds, the kind."""
    version: str | None
    """Of the task, once it is done."""
    state: State
    attempts: int
    started: float | None
    seconds: float | None
    reason: str | None


@dataclass(frozen=True)
class PromotionRow:
    """One decision about one version of a registered model."""

    id: int
    model: str
    version: int
    evaluation: int
    champion_version: int | None
    """The champion that it was compared with; None: there was none."""
    champion_evaluation: int | None
    decision: Literal["champion", "candidate", "kept"]
    """`champion`: became candidate and champion; `candidate`: became candidate; `kept`: no alias moved to it."""
    reason: str
    numbers: Mapping[str, Mapping[str, float | str]]
    """`task/metric` -> `difference` (this version minus champion), `p_adjusted` (Holm) and `verdict`: better, worse or
    empty."""
    applied: bool
    """Whether the registry has it."""
    created: float


class Board(Protocol):
    """Reading access for pages; every call reads the present state and may come from any thread."""

    def evaluations(self) -> list[EvaluationRow]:
        """All evaluations, newest first."""
        ...

    def queue(self) -> list[TaskRow]:
        """Steps that run or wait, in the order in which they will run."""
        ...

    def tasks(self, evaluation: int) -> list[TaskRow]:
        """Every step of one evaluation, in order."""
        ...

    def results(self) -> list[tuple[EvaluationRow, Results]]:
        """Evaluations that have results, by run and step, with them."""
        ...

    def folder_of(self, evaluation: int) -> Path:
        """Folder of results.json, report and examples of an evaluation.

        Raises:
            KeyError: no such evaluation.
        """
        ...

    def promotions(self) -> list[PromotionRow]:
        """Decisions, newest first."""
        ...
