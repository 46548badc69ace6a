"""Tasks on residues of published datasets: secondary structure, binding, disorder, conservation, topology."""

from dataclasses import dataclass, replace

import numpy as np

from eval.datasets.binding import KINDS, LIGANDS
from eval.intervals import Measurement, scored
from eval.tasks.probing import Metric, ProbeTask
from eval.tasks.protocol import Context, Outcome, Task, TaskFacts, Wants

DISORDERED_BELOW = 8.0
"""CheZOD score of a residue that is called disordered (Nielsen and Mulder 2019)."""
ACCURACY = (Metric("accuracy", "accuracy"), Metric("macro_f1", "macro_f1"))
BINDING = (Metric("auprc", "auprc"), Metric("mcc", "mcc"), Metric("auroc", "auroc"))
_SECONDARY = (
    "share of residues whose state is predicted, over residues that the publisher's masks leave in; macro_f1 averages "
    "F1 over states; states: "
)
_KIND_WORDS = {"metal": "metal ions", "nuclear": "nucleic acids", "small": "small molecules"}


@dataclass(frozen=True)
class DisorderTask:
    """CheZOD scores by regression, and how well the same scores tell disordered residues from ordered ones."""

    probe: ProbeTask

    @property
    def name(self) -> str:
        """Of the regression."""
        return self.probe.name

    @property
    def version(self) -> str:
        """Of the regression."""
        return self.probe.version

    @property
    def needs_shards(self) -> bool:
        """Datasets need none."""
        return self.probe.needs_shards

    @property
    def metrics(self) -> tuple[str, ...]:
        """The regression's, and AUROC of disordered residues of the same parts of the test split."""
        return (*self.probe.metrics, *(name.replace("spearman", "auroc") for name in self.probe.metrics))

    def facts(self, context: Context) -> TaskFacts:
        """The regression's, with the threshold."""
        facts = self.probe.facts(context)
        more = (
            f"auroc ranks residues with a CheZOD score below {DISORDERED_BELOW:g}, the disordered, by low predictions"
        )
        return replace(facts, method=f"{facts.method}; {more}")

    def wants(self, context: Context) -> Wants:
        """As the regression."""
        return self.probe.wants(context)

    def run(self, context: Context) -> Outcome:
        """The regression's measurements, and the same predictions as scores of disorder."""
        outcome = self.probe.run(context)
        found = [auroc for m in outcome.measurements if (auroc := disorder_auroc(m)) is not None]
        return replace(outcome, measurements=(*outcome.measurements, *found))


def disorder_auroc(measurement: Measurement) -> Measurement | None:
    """Of a measurement with columns `prediction` and `label` (CheZOD scores); None where one class is missing."""
    disordered = measurement.columns["label"] < DISORDERED_BELOW
    if disordered.all() or not disordered.any():
        return None
    columns = {"score": -measurement.columns["prediction"], "label": disordered.astype(np.int64)}
    name = measurement.metric.replace("spearman", "auroc")
    return scored(name, "auroc", measurement.keys, measurement.clusters, columns, measurement.seed, measurement.rows)


def _secondary(states: int, groups: tuple[str, ...]) -> ProbeTask:
    words = "helix (G, H, I), strand (B, E), coil" if states == 3 else "DSSP's eight, loops as C"
    return ProbeTask(
        name=f"ss{states}",
        dataset=f"ss{states}",
        measures=ACCURACY,
        method=_SECONDARY + words,
        label=f"secondary structure, {states} states",
        groups=groups,
    )


def _binding(name: str, what: str) -> ProbeTask:
    return ProbeTask(
        name=name,
        dataset=name,
        measures=BINDING,
        method=f"residues that bind {what} against all others, over the residues of all proteins together; mcc at the "
        "threshold that is best on validation",
        label=f"residues that bind {what}",
        version="2",
    )


SS3 = _secondary(3, ("newPISCES364", "CB513", "TS115", "CASP12", "CASP13", "CASP14"))
SS8 = _secondary(8, ("CB513", "TS115", "CASP12", "CASP13", "CASP14"))
DISORDER = DisorderTask(
    ProbeTask(
        name="disorder",
        dataset="disorder",
        measures=(Metric("spearman", "spearman"),),
        method="Spearman's correlation of predicted and measured CheZOD scores over the residues of all proteins "
        "together, residues without a score left out",
        label="disorder (CheZOD)",
    )
)
CONSERVATION = ProbeTask(
    name="conservation",
    dataset="conservation",
    measures=ACCURACY,
    method="share of residues whose ConSurf class, 1 (variable) to 9 (conserved), is predicted; macro_f1 averages F1 "
    "over classes",
    label="conservation, 9 classes",
)
TOPOLOGY = ProbeTask(
    name="membrane_topology",
    dataset="membrane_topology",
    measures=ACCURACY,
    method="share of residues whose state is predicted: membrane helix or strand (either direction), signal peptide, "
    "inside, outside; residues whose side is unknown left out; macro_f1 averages F1 over states",
    label="membrane topology",
)
TASKS: tuple[Task, ...] = (
    SS3,
    SS8,
    *(_binding(f"binding_{kind}", _KIND_WORDS[kind]) for kind in KINDS),
    *(_binding(f"binding_{ligand.lower()}", ligand) for ligand in LIGANDS),
    DISORDER,
    CONSERVATION,
    TOPOLOGY,
)
