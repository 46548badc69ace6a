"""Every task by the name that configurations use."""

from collections.abc import Sequence

from eval.tasks import contact, pseudo_perplexity, secondary_structure, threedi
from eval.tasks.protocol import Task

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        pseudo_perplexity.TASK,
        threedi.OWN_HEAD,
        threedi.FITTED_HEAD,
        threedi.LOOKUP,
        threedi.MAJORITY,
        secondary_structure.TASK,
        contact.TASK,
    )
}


def tasks_named(names: Sequence[str]) -> list[Task]:
    """Tasks in the order of `names`; the configuration allows only names that exist."""
    return [TASKS[name] for name in dict.fromkeys(names)]
