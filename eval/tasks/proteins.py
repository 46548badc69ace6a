"""Tasks with one label for each protein, or for each pair: a head on residue states averaged over the protein."""

from eval.datasets.functions import IDENTITIES
from eval.tasks.probing import Metric, ProbeTask
from eval.tasks.protocol import Task
from eval.tasks.retrieval import RetrievalTask

ACCURACY = Metric("accuracy", "accuracy")
AUROC = Metric("auroc", "auroc")
FMAX = Metric("fmax", "fmax")
AUPR = Metric("aupr", "aupr")
SPEARMAN = Metric("spearman", "spearman")
PEARSON = Metric("pearson", "pearson")

_SHARE = "share of test proteins whose class is predicted"
_LABEL_SETS = (
    "fmax: largest harmonic mean, over thresholds, of precision and recall averaged over proteins (CAFA); aupr: area "
    "under precision and recall over all pairs of protein and label"
)
_RANKS = "rank correlation of predicted and measured values over test proteins"


def _fold(name: str, label: str, held_out: str) -> ProbeTask:
    method = f"{_SHARE}, of 1,195 SCOPe 1.75 folds; {held_out}"
    return ProbeTask(name, name, (ACCURACY,), method, label)


def _labels(name: str, label: str, what: str) -> ProbeTask:
    groups = tuple(f"below_{identity}" for identity in IDENTITIES)
    method = (
        f"{_LABEL_SETS}; labels are {what}; below_30, ...: test chains less than 30 % identical to training (DeepFRI)"
    )
    return ProbeTask(name, name, (FMAX, AUPR), method, label, groups)


def _value(name: str, label: str, what: str) -> ProbeTask:
    return ProbeTask(name, name, (SPEARMAN,), f"{_RANKS}: {what}", label)


TASKS: tuple[Task, ...] = (
    _fold("fold", "fold, 1,195 classes", "no test protein has a training protein in its superfamily (TAPE)"),
    _fold("superfamily", "fold, families held out", "no test protein has a training protein in its family (TAPE)"),
    _fold("family", "fold, proteins held out", "test proteins have training proteins in their family (TAPE)"),
    _labels("ec", "EC numbers", "EC numbers of PDB chains at their third and fourth level (DeepFRI)"),
    _labels("go_mf", "GO molecular function", "experimental GO terms of the branch and all their ancestors"),
    _labels("go_bp", "GO biological process", "experimental GO terms of the branch and all their ancestors"),
    _labels("go_cc", "GO cellular component", "experimental GO terms of the branch and all their ancestors"),
    _value("thermostability", "thermostability", "melting temperature (Meltome, FLIP)"),
    _value("fluorescence", "GFP fluorescence", "log fluorescence of variants of GFP (TAPE)"),
    _value("stability", "stability of designs", "concentration threshold of proteolysis of small designs (TAPE)"),
    _value("gb1", "GB1 fitness", "fitness of variants of GB1 at four sites (FLIP)"),
    ProbeTask(
        "catalytic_efficiency",
        "catalytic_efficiency",
        (PEARSON, SPEARMAN),
        "correlation of predicted and measured log catalytic efficiency over test proteins",
        "catalytic efficiency",
    ),
    ProbeTask(
        "localisation_10",
        "localisation_10",
        (ACCURACY, Metric("macro_f1", "macro_f1")),
        f"{_SHARE}, of ten places in the cell (DeepLoc); macro_f1: F1 averaged over places",
        "localisation, 10 classes",
    ),
    ProbeTask(
        "localisation_2",
        "localisation_2",
        (ACCURACY, AUROC),
        f"{_SHARE}, membrane-bound or soluble (DeepLoc); auroc by the score of the second class",
        "membrane-bound or soluble",
    ),
    ProbeTask(
        "ppi_human",
        "ppi_human",
        (ACCURACY, AUROC),
        "share of test pairs whose class (interaction or none) is predicted; auroc by the score of interaction",
        "human protein-protein interaction",
    ),
    ProbeTask(
        "ppi_yeast",
        "ppi_yeast",
        (ACCURACY, AUROC),
        "share of test pairs whose class (interaction or none) is predicted; auroc by the score of interaction",
        "yeast protein-protein interaction",
    ),
    ProbeTask(
        "metal_ion",
        "metal_ion",
        (ACCURACY, AUROC),
        f"{_SHARE}, whether it binds metal ions; auroc by the score of binding",
        "metal-ion binding",
    ),
    RetrievalTask(),
)
