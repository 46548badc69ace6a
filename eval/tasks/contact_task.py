"""Contact tasks on the shards' held-out chains, and on the chains of a benchmark, with heads fitted on the shards."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from eval.clusters import sequence_clusters
from eval.data import Example
from eval.datasets.contact_sets import ContactChain, contact_set
from eval.leakage import find_leaks
from eval.tasks.contact_truth import METHOD, METRICS
from eval.tasks.protocol import Context, Outcome, TaskFacts, Wants

Chains = Sequence[Example | ContactChain]
Work = Callable[[Context, Sequence[Example], Chains], Outcome]
"""Of the context, the chains to fit on, and the chains to measure on."""
SETS = ("casp", "cameo")


@dataclass(frozen=True)
class ContactTask:
    """A way of predicting contacts, on one set of chains."""

    name: str
    frozen: str
    head: str
    work: Work
    needs: Callable[[Context, Sequence[Example], Chains], Wants] = lambda context, fit, test: Wants()
    dataset: str | None = None
    """Name in `benchmarks.sources`; None: the held-out split of the shards."""
    version: str = "1"
    metrics: tuple[str, ...] = METRICS
    needs_shards: bool = True

    def facts(self, context: Context) -> TaskFacts:
        """As declared; the definition of a contact is the configuration's."""
        if self.dataset is None:
            split = context.shards.split if context.shards else "test"
            return TaskFacts(self.version, self.frozen, self.head, METHOD, split=split)
        found = contact_set(self.dataset, context.config.benchmarks)
        data = ". ".join((f"{found.source}, {len(found.chains)} chains; head fitted on the shards", *found.notes))
        return TaskFacts(self.version, self.frozen, self.head, METHOD, data, found.sha256)

    def wants(self, context: Context) -> Wants:
        """What the head is fitted and measured on."""
        fit, test, _ = self._chains(context)
        return self.needs(context, fit, test)

    def run(self, context: Context) -> Outcome:
        """Fit and measure."""
        fit, test, remarks = self._chains(context)
        if not fit:
            return Outcome(skipped="every chain of the fit split resembles one of the benchmark", remarks=remarks)
        outcome = self.work(context, fit, test)
        assert {m.metric for m in outcome.measurements} <= set(self.metrics), self.name
        artifacts, notes = (outcome.artifacts, outcome.notes) if self.dataset is None else ({}, {})
        return Outcome(outcome.measurements, outcome.skipped, artifacts, notes, (*remarks, *outcome.remarks))

    def _chains(self, context: Context) -> tuple[Sequence[Example], Chains, tuple[str, ...]]:
        """Chains to fit on, none of them in a sequence cluster with a chain to measure on; those; remarks."""
        fit = context.data.fit
        if self.dataset is None:
            return fit, context.data.test, ()
        test, leaks = self._benchmark(context)
        labels = sequence_clusters([chain.sequence for chain in (*fit, *test)])
        taken = set(labels[len(fit) :].tolist())
        kept = [example for example, label in zip(fit, labels, strict=False) if int(label) not in taken]
        left_out = len(fit) - len(kept)
        remark = (
            f"{left_out} chains of the fit split share a sequence cluster with the benchmark and were not fitted on"
        )
        return kept, test, (leaks, remark) if left_out else (leaks,)

    def _benchmark(self, context: Context) -> tuple[Sequence[ContactChain], str]:
        """The benchmark's chains without those that are dropped because training saw them, and what the check found."""
        assert self.dataset is not None
        config = context.config.benchmarks
        chains = contact_set(self.dataset, config).chains
        sequences = [(chain.sequence,) for chain in chains]
        leaks = find_leaks(self.dataset, sequences, config, config.training_shards, context.config.features.cache)
        return leaks.kept(chains), leaks.remark
