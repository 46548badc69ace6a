"""Names of tasks, groups and metrics for people, and numbers as text, as the pages show them."""

import time

from configs.labels import is_lower_better, metric_label, task_label

DASH = "\N{EN DASH}"
"""Between the ends of an interval, and where there is nothing."""
GROUPS: dict[str, str] = {
    "language": "Language model",
    "structure": "Structure",
    "function": "Function",
    "sites": "Residues and sites",
    "properties": "Fitness and properties",
    "variants": "Mutation effects",
    "interactions": "Interactions",
    "other": "Other tasks",
}
"""In the order in which pages show them."""
_GROUP_WORDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("language", ("perplexity",)),
    ("structure", ("contact", "secondary", "ss3", "ss8", "threedi", "fold", "family", "homology", "topology")),
    ("interactions", ("ppi", "interaction")),
    ("sites", ("bind", "site", "disorder", "conservation", "metal", "ligand")),
    ("variants", ("mutation", "variant", "ddg")),
    ("function", ("ec", "go", "localisation")),
    ("properties", ("stability", "fluorescence", "gb1", "fitness", "catalytic")),
)
_METRICS = {
    "fmax": "Fmax",
    "aupr": "AUPR",
    "auprc": "AUPRC",
    "auroc": "AUROC",
    "mcc": "MCC",
    "rmse": "RMSE",
    "macro_f1": "macro F1",
    "spearman": "Spearman",
    "pearson": "Pearson",
    "q3": "Q3",
    "top1": "top-1",
    "map": "MAP",
}
MAIN_METRIC = {"contact": "P@L_long"}
"""Where it is not the task's first."""


def group_of(task: str) -> str:
    """Key of GROUPS, by words of the task's name."""
    words = task.split("_")
    for group, known in _GROUP_WORDS:
        if any(k == word or (len(k) > 3 and k in word) for k in known for word in words):
            return group
    return "other"


def task_title(task: str) -> str:
    """A task's name at the head of a line: `Secondary structure, 3 states`."""
    return _capital(task_label(task))


def metric_title(task: str, metric: str) -> str:
    """A metric below its task's name: `P@L_long` as `P@L long`, and one named as its task as `value`."""
    if metric == task:
        return "value"
    for name, title in sorted(_METRICS.items(), key=lambda item: -len(item[0])):
        if metric == name:
            return title
        if metric.startswith(f"{name}_"):
            return f"{title} {metric[len(name) + 1 :].replace('_', ' ')}"
    return metric.replace("_", " ")


def full_title(task: str, metric: str) -> str:
    """Both, for where a metric stands alone."""
    return _capital(metric_label(task, metric))


def sign_of(metric: str) -> float:
    """1 where higher is better, -1 where lower is."""
    return -1.0 if is_lower_better(metric) else 1.0


def digits_of(metric: str) -> int:
    """Decimal places that values of a metric are shown with."""
    return 2 if "perplexity" in metric else 3


def value_text(value: float, metric: str) -> str:
    """`0.312`."""
    return f"{value:.{digits_of(metric)}f}"


def interval_text(low: float | None, high: float | None, metric: str) -> str:
    """`0.290 to 0.335` with an en dash; empty without an interval."""
    if low is None or high is None:
        return ""
    digits = digits_of(metric)
    # Between negative numbers a dash would read as a sign.
    return f"{low:.{digits}f} to {high:.{digits}f}" if low < 0 else f"{low:.{digits}f}{DASH}{high:.{digits}f}"


def p_text(p_value: float) -> str:
    """Three decimals, or that it is below them."""
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def seconds_text(seconds: float | None) -> str:
    """`4.2 s`, `3 min 20 s`, `2 h 05 min`; a dash where it is not known."""
    if seconds is None:
        return DASH
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return (
        f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    )


def time_text(moment: float | None) -> str:
    """UTC to the second; a dash where it has not happened."""
    return DASH if moment is None else time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(moment))


def _capital(text: str) -> str:
    """With a capital first letter, unless its first word has capitals already (`ddG`, `3Di`)."""
    first = text.split(" ", maxsplit=1)[0]
    return text if first != first.lower() else text[:1].upper() + text[1:]
