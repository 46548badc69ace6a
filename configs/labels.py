"""How tasks and metrics of results.json are called for people."""

_TASKS: dict[str, str] = {
    "pseudo_perplexity": "pseudo-perplexity",
    "threedi": "3Di, own head",
    "threedi_fitted": "3Di, head fitted afterwards",
    "threedi_lookup": "3Di, residue-type lookup",
    "threedi_majority": "3Di, majority state",
    "secondary_structure": "secondary structure, linear probe",
    "contact": "contact",
    "contact_supervised": "contact, pair head",
    "fold": "fold",
    "superfamily": "superfamily",
    "family": "family",
    "ec": "EC number",
    "go_mf": "GO molecular function",
    "go_bp": "GO biological process",
    "go_cc": "GO cellular component",
    "localisation_10": "localisation, 10 classes",
    "localisation_2": "localisation, 2 classes",
    "gb1": "GB1 fitness",
    "ppi_human": "human PPI",
    "ppi_yeast": "yeast PPI",
    "metal_ion": "metal-ion binding",
    "catalytic_efficiency": "catalytic efficiency",
    "remote_homology": "remote-homology retrieval",
    "ss3": "secondary structure, 3 states",
    "ss8": "secondary structure, 8 states",
    "binding_metal": "metal-binding residues",
    "binding_nuclear": "nucleic-acid-binding residues",
    "binding_small": "small-molecule-binding residues",
    "membrane_topology": "membrane topology",
    "mutation_effect": "mutation effect, zero-shot",
    "clinical_variants": "clinical variants, zero-shot",
    "sav_effect": "single amino-acid variants, zero-shot",
    "stability_ddg": "ddG, zero-shot",
    "contact_casp": "contact, CASP",
    "contact_cameo": "contact, CAMEO",
    "contact_supervised_casp": "contact, pair head, CASP",
    "contact_supervised_cameo": "contact, pair head, CAMEO",
}
_METRICS: dict[str, str] = {
    "q3": "Q3",
    "fmax": "Fmax",
    "aupr": "AUPR",
    "auprc": "AUPRC",
    "auroc": "AUROC",
    "mcc": "MCC",
    "rmse": "RMSE",
    "spearman": "Spearman",
    "pearson": "Pearson",
    "macro_f1": "macro F1",
    "top1": "top-1",
    "map": "mean average precision",
}
_LIGANDS: dict[str, str] = {
    "atp": "ATP",
    "ca": "calcium",
    "dna": "DNA",
    "hem": "heme",
    "mg": "magnesium",
    "mn": "manganese",
    "pep": "peptide",
    "pro": "protein",
    "rna": "RNA",
    "zn": "zinc",
}
LOWER_IS_BETTER = frozenset({"pseudo_perplexity", "perplexity", "rmse"})
"""Metrics; a part of the test set is named after a metric as `rmse_unseen`."""


def task_label(task: str) -> str:
    """A task, named for people."""
    if task.startswith("binding_") and task not in _TASKS:
        ligand = task.removeprefix("binding_")
        return f"{_LIGANDS.get(ligand, ligand)}-binding residues"
    return _TASKS.get(task, task.replace("_", " "))


def metric_label(task: str, metric: str) -> str:
    """A metric of a task, named for people."""
    if metric == task:
        return task_label(task)
    if task.startswith("contact") and "_" in metric:
        name, _, span = metric.rpartition("_")
        return f"{task_label(task)} {name}, {span} range"
    if metric in _METRICS or "_" not in metric:
        separator = " " if task.startswith("threedi") or task == "secondary_structure" else ": "
        return _joined(task_label(task), _METRICS.get(metric, metric), separator)
    name = next((known for known in _METRICS if metric.startswith(f"{known}_")), metric.split("_", maxsplit=1)[0])
    part = metric[len(name) + 1 :].replace("_", " ")
    return _joined(task_label(task), f"{_METRICS.get(name, name)}, {part}", ": ")


def is_lower_better(metric: str) -> bool:
    """Whether a smaller value of the metric is the better one."""
    return metric in LOWER_IS_BETTER or any(metric.startswith(f"{name}_") for name in LOWER_IS_BETTER)


def _joined(task: str, metric: str, separator: str) -> str:
    """`3Di accuracy, own head` and `EC number: Fmax`."""
    first, comma, rest = task.partition(", ")
    if separator == " ":
        return f"{first} {metric}{comma}{rest}"
    return f"{task}{separator}{metric}"
