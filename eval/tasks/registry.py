"""Every task by the name that configurations use, and groups of them."""

import difflib
from collections.abc import Sequence

from configs.errors import UserError
from eval.tasks import (
    contact,
    pair_contact,
    proteins,
    pseudo_perplexity,
    residues,
    secondary_structure,
    threedi,
    variants,
)
from eval.tasks.protocol import Task

_STRUCTURE: tuple[Task, ...] = (
    pseudo_perplexity.TASK,
    *threedi.TASKS,
    secondary_structure.TASK,
    contact.TASK,
    pair_contact.TASK,
)
_BENCHMARKS: tuple[Task, ...] = (*proteins.TASKS, *residues.TASKS, *variants.TASKS)
_CONTACT_SETS: tuple[Task, ...] = (*contact.SET_TASKS, *pair_contact.SET_TASKS)
TASKS: dict[str, Task] = {task.name: task for task in (*_STRUCTURE, *_CONTACT_SETS, *_BENCHMARKS)}
GROUPS: dict[str, tuple[str, ...]] = {
    "structure": tuple(task.name for task in _STRUCTURE),
    "contact_sets": tuple(task.name for task in _CONTACT_SETS),
    "benchmarks": tuple(task.name for task in _BENCHMARKS),
    "all": tuple(TASKS),
}


def tasks_named(names: Sequence[str]) -> list[Task]:
    """Tasks in the order of `names`, groups spelled out, each once.

    Raises:
        UserError: a name that is neither task nor group, with the nearest one that is.
    """
    chosen: dict[str, Task] = {}
    for name in names:
        if name not in TASKS and name not in GROUPS:
            known = [*GROUPS, *TASKS]
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(known)}"
            raise UserError(f"tasks: got {name!r}, which is no task and no group of tasks; {hint}")
        chosen |= {each: TASKS[each] for each in GROUPS.get(name, (name,))}
    return list(chosen.values())
