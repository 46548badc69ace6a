"""Zero-shot effects of mutations, by log-odds of masked or wild-type marginals (Meier et al. 2021)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from configs.evaluate import EvalConfig
from eval.datasets.assay_store import assays_of
from eval.datasets.variants import Assay, Assays
from eval.intervals import Measurement, scored
from eval.leakage import find_leaks
from eval.marginals import WildType, marginal_tables
from eval.metrics import Undefined, auroc, spearman
from eval.models.protocol import ProteinModel
from eval.tasks.protocol import Context, Outcome, TaskFacts, Wants

CATEGORIES = ("Activity", "Binding", "Expression", "OrganismalFitness", "Stability")
"""ProteinGym's coarse selection types."""
MIN_VARIANTS = 10
"""Of a protein in the mean over proteins of `stability_ddg`."""
_SCORES = {
    "masked": "log p(mutant) - log p(wild type) with the mutated position masked, one position at a time",
    "wildtype": "log p(mutant) - log p(wild type) with nothing masked",
}


def score_variants(model: ProteinModel, assays: Sequence[Assay], config: EvalConfig) -> list[np.ndarray]:
    """float64 [V] of each assay: the sum of the log-odds of a variant's substitutions; higher is fitter.

    Assays of one wild type share its table, which covers the positions that any of them changes.
    """
    positions: dict[str, np.ndarray] = {}
    for assay in assays:
        known = positions.get(assay.sequence, np.empty(0, dtype=np.int64))
        positions[assay.sequence] = np.union1d(known, assay.positions)
    variants = config.variants
    found = marginal_tables(
        model,
        [WildType(sequence, at) for sequence, at in positions.items()],
        variants.scoring,
        variants.window,
        config.batch_tokens,
        variants.precision,
    )
    tables = dict(zip(positions, found, strict=True))
    scores = []
    for assay in assays:
        table = np.asarray(tables[assay.sequence], dtype=np.float64)
        odds = table[assay.position, assay.mutant] - table[assay.position, assay.wild]
        scores.append(np.bincount(assay.owner, weights=odds, minlength=len(assay.scores)))
    return scores


def chosen_assays(assays: Sequence[Assay], limit: int | None, seed: int) -> list[Assay]:
    """At most `limit` assays, drawn once from `seed`, in their order."""
    if limit is None or limit >= len(assays):
        return list(assays)
    drawn = np.sort(np.random.default_rng(seed).permutation(len(assays))[:limit])
    return [assays[i] for i in drawn]


def _without_leaks(name: str, assays: Sequence[Assay], config: EvalConfig) -> tuple[Sequence[Assay], str]:
    """Assays without those that are dropped because training saw their protein, and what the check found."""
    chosen = config.benchmarks
    wild_types = [(assay.sequence,) for assay in assays]
    leaks = find_leaks(name, wild_types, chosen, chosen.training_shards, config.features.cache)
    return leaks.kept(assays), leaks.remark


def _numbered(names: Sequence[str]) -> np.ndarray:
    """int64: the place of each name among the distinct names, in order of appearance."""
    order = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([order[name] for name in names], dtype=np.int64)


def _of_each(
    assays: Sequence[Assay], scores: Sequence[np.ndarray], metric: Callable[[np.ndarray, np.ndarray], float]
) -> tuple[list[Assay], np.ndarray, tuple[str, ...]]:
    """Assays whose metric is defined, its values, and a remark on the others."""
    kept, values, dropped = [], [], []
    for assay, score in zip(assays, scores, strict=True):
        try:
            values.append(metric(score, assay.scores))
            kept.append(assay)
        except Undefined as reason:
            dropped.append(f"{assay.key} ({reason})")
    shown = ", ".join(dropped[:3]) + (", ..." if len(dropped) > 3 else "")
    remarks = (f"{len(dropped)} assays left out, where the metric is not defined: {shown}",) if dropped else ()
    return kept, np.array(values), remarks


def mutation_measurements(assays: Sequence[Assay], values: np.ndarray) -> list[Measurement]:
    """Plain mean of assays, the official mean of means, and the official mean of each category.

    Official: assays of one protein and category are averaged first, then the proteins of a category, then categories.
    """
    keys, proteins = [assay.key for assay in assays], _numbered([assay.uniprot for assay in assays])
    categories = np.array([assay.category for assay in assays])
    groups = {"group_1": _numbered(categories.tolist()), "group_2": proteins}
    found = [
        scored("spearman", "mean", keys, proteins, {"values": values, "weights": np.ones(len(values))}),
        scored("spearman_official", "grouped_mean", keys, proteins, {"values": values, **groups}),
    ]
    for category in CATEGORIES:
        rows = np.flatnonzero(categories == category)
        if len(rows):
            columns = {
                "values": values[rows],
                "group_1": np.zeros(len(rows), dtype=np.int64),
                "group_2": proteins[rows],
            }
            named = [keys[i] for i in rows]
            found.append(scored(f"spearman_{category}", "grouped_mean", named, proteins[rows], columns))
    return found


def pooled(metric: str, statistic: str, assays: Sequence[Assay], columns: Mapping[str, np.ndarray]) -> Measurement:
    """A metric over the variants of all assays together; proteins are resampled."""
    clusters = _numbered([assay.uniprot for assay in assays])
    rows = [len(assay.scores) for assay in assays]
    return scored(metric, statistic, [assay.key for assay in assays], clusters, columns, rows=rows)


def _mutation_effect(assays: Sequence[Assay], scores: Sequence[np.ndarray]) -> Outcome:
    kept, values, remarks = _of_each(assays, scores, spearman)
    if not kept:
        return Outcome(skipped="no assay has varying scores", remarks=remarks)
    return Outcome(tuple(mutation_measurements(kept, values)), remarks=remarks)


def _two_kinds(assays: Sequence[Assay], scores: Sequence[np.ndarray]) -> Outcome:
    labels = np.concatenate([assay.scores > 0.5 for assay in assays])
    if labels.all() or not labels.any():
        return Outcome(skipped="the variants are all of one kind")
    # The score is that of fitness, so the harmless are ranked first; AUROC is the same for either class.
    columns = {"score": np.concatenate(scores), "label": labels.astype(np.int64)}
    found = [pooled("auroc", "auroc", assays, columns)]
    kept, values, remarks = _of_each(assays, scores, lambda score, label: auroc(score, label > 0.5))
    if kept:
        columns = {"values": values, "weights": np.ones(len(values))}
        clusters = _numbered([assay.uniprot for assay in kept])
        found.append(scored("auroc_by_protein", "mean", [assay.key for assay in kept], clusters, columns))
    return Outcome(tuple(found), remarks=remarks)


def _stability(assays: Sequence[Assay], scores: Sequence[np.ndarray]) -> Outcome:
    measured, predicted = np.concatenate([assay.scores for assay in assays]), np.concatenate(scores)
    if len(np.unique(measured)) < 2:
        return Outcome(skipped="the measured changes are all the same")
    found = [pooled("spearman", "spearman", assays, {"prediction": predicted, "label": measured})]
    many = [i for i, assay in enumerate(assays) if len(assay.scores) >= MIN_VARIANTS]
    kept, values, remarks = _of_each([assays[i] for i in many], [scores[i] for i in many], spearman)
    if kept:
        columns = {"values": values, "weights": np.ones(len(values))}
        clusters = _numbered([assay.uniprot for assay in kept])
        found.append(scored("spearman_by_protein", "mean", [assay.key for assay in kept], clusters, columns))
    few = len(assays) - len(many)
    note = f"{few} proteins with fewer than {MIN_VARIANTS} mutations count in `spearman` alone"
    return Outcome(tuple(found), remarks=(*remarks, *((note,) if few else ())))


@dataclass(frozen=True)
class VariantTask:
    """A benchmark of mutations, scored without fitting anything."""

    name: str
    dataset: str
    """In eval.datasets.assay_store.ASSAY_LAYOUTS."""
    metrics: tuple[str, ...]
    method: str
    work: Callable[[Sequence[Assay], Sequence[np.ndarray]], Outcome]
    version: str = "1"
    needs_shards: bool = False

    def facts(self, context: Context) -> TaskFacts:
        """As declared, with the scoring of the configuration."""
        found = self._assays(context)
        scoring = context.config.variants.scoring
        method = (
            f"{self.method}; a variant's score is the sum over its substitutions of {_SCORES[scoring]}; of longer "
            f"proteins the model sees {context.config.variants.window} residues around a position"
        )
        data = ". ".join((f"{found.source}, {len(found.assays)} assays", *found.notes))
        frozen = "trunk and language-model head"
        return TaskFacts(self.version, frozen, "none", method, data, found.sha256, "test")

    def wants(self, context: Context) -> Wants:
        """Nothing: it looks at likelihoods."""
        return Wants()

    def run(self, context: Context) -> Outcome:
        """Score every variant and compare with what was measured."""
        config = context.config
        found = self._assays(context)
        unseen, leaks = _without_leaks(self.dataset, found.assays, config)
        assays = chosen_assays(unseen, config.variants.max_assays, config.seed)
        scores = score_variants(context.features.model, assays, config)
        outcome = self.work(assays, scores)
        assert {m.metric for m in outcome.measurements} <= set(self.metrics), self.name
        remarks = [leaks, *outcome.remarks]
        if len(assays) < len(unseen):
            remarks.append(f"{len(assays)} of {len(unseen)} assays, drawn from seed {config.seed}")
        sequences = len({assay.sequence for assay in assays})
        remarks.append(f"{len(assays)} assays of {sequences} wild types, each scored once")
        return Outcome(outcome.measurements, outcome.skipped, remarks=tuple(remarks))

    def _assays(self, context: Context) -> Assays:
        return assays_of(self.dataset, context.config.benchmarks)


MUTATION_EFFECT = VariantTask(
    name="mutation_effect",
    dataset="proteingym",
    metrics=("spearman", "spearman_official", *(f"spearman_{category}" for category in CATEGORIES)),
    method="Spearman's correlation of score and measurement in each assay: `spearman` is their plain mean; "
    "`spearman_official` averages assays of one protein and selection type, then proteins of a selection type, then "
    "selection types; `spearman_<type>` is the mean of that type's proteins",
    work=_mutation_effect,
)
CLINICAL_VARIANTS = VariantTask(
    name="clinical_variants",
    dataset="clinical",
    metrics=("auroc", "auroc_by_protein"),
    method="`auroc` of telling benign from pathogenic over the variants of all proteins; `auroc_by_protein` is the "
    "mean over proteins with variants of both kinds",
    work=_two_kinds,
)
SAV_EFFECT = VariantTask(
    name="sav_effect",
    dataset="sav",
    metrics=("auroc", "auroc_by_protein"),
    method="`auroc` of telling neutral single substitutions from those with an effect on function, over the test "
    "variants of all proteins; `auroc_by_protein` is the mean over proteins with variants of both kinds",
    work=_two_kinds,
)
STABILITY_DDG = VariantTask(
    name="stability_ddg",
    dataset="ddg",
    metrics=("spearman", "spearman_by_protein"),
    method="Spearman's correlation of score and -ddG (ddG in kcal/mol is positive where the mutation destabilises, so "
    f"higher is better) over all mutations, and its mean over proteins with at least {MIN_VARIANTS} mutations",
    work=_stability,
)
TASKS = (MUTATION_EFFECT, CLINICAL_VARIANTS, SAV_EFFECT, STABILITY_DDG)
