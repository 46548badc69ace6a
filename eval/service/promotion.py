"""Which version of a registered model becomes candidate and champion.

The rule, for each version of a model once, when its evaluation is done:

* where the model has no champion, the version becomes candidate and champion;
* it is compared with the champion, metric by metric, over the examples that both evaluations hold; p-values are Holm's
  over the metrics that decide, and a difference is significant below `significance`;
  the champion is the registry's, and both evaluations are under the service's present protocol;
* one significant loss, or an evaluation that may not be compared, and no alias moves;
* else it becomes candidate, unless the candidate is a later version;
* with `min_gains` significant gains it becomes champion too.

A decision is written down before the registry is changed, and carried out again after a crash; one that another service
or a person has overtaken (the champion is no longer the one compared with) is made anew.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from configs.errors import UserError
from configs.labels import is_lower_better
from configs.service import PromotionConfig
from eval.intervals import holm
from eval.service.board import PromotionRow
from eval.service.identity import one_line
from eval.service.store import Store

CANDIDATE, CHAMPION = "candidate", "champion"
Decision = Literal["champion", "candidate", "kept"]
Compare = Callable[[Path, Path], Mapping[str, Any]]
log = logging.getLogger("eval.service")


class Aliases(Protocol):
    """What promotion needs of a registry."""

    def alias(self, model: str, name: str) -> int | None:
        """Version that an alias points to."""
        ...

    def set_alias(self, model: str, name: str, version: int) -> None:
        """Move an alias."""
        ...


@dataclass(frozen=True)
class Judgement:
    """What a comparison with the champion says."""

    decision: Decision
    reason: str
    numbers: Mapping[str, Mapping[str, float | str]]


def judge(differences: Mapping[str, Any], config: PromotionConfig) -> Judgement:
    """Apply the rule to paired differences (this version minus champion) by `task/metric`."""
    missing = [name for name in config.metrics if name not in differences]
    if missing:
        return Judgement("kept", f"not measured on both: {', '.join(missing)}", {})
    # Baselines without a model never change and are no tests to correct for.
    names = list(config.metrics) or [name for name, found in differences.items() if found.is_test]
    if not names:
        return Judgement("kept", "no metric in common with the champion", {})
    adjusted = holm([differences[name].p_value for name in names])
    numbers: dict[str, dict[str, float | str]] = {}
    for name, p_adjusted in zip(names, adjusted, strict=True):
        difference = float(differences[name].difference)
        verdict = ""
        if p_adjusted < config.significance and difference != 0:
            is_gain = (difference > 0) != is_lower_better(name.partition("/")[2])
            verdict = "better" if is_gain else "worse"
        numbers[name] = {"difference": difference, "p_adjusted": float(p_adjusted), "verdict": verdict}
    losses = [name for name, found in numbers.items() if found["verdict"] == "worse"]
    gains = [name for name, found in numbers.items() if found["verdict"] == "better"]
    if losses:
        return Judgement("kept", f"significantly worse: {', '.join(losses)}", numbers)
    if len(gains) >= config.min_gains:
        return Judgement("champion", f"significantly better: {', '.join(gains)}; worse: none", numbers)
    return Judgement(
        "candidate", f"no significant loss; {len(gains)} significant gains, {config.min_gains} needed", numbers
    )


def promote(store: Store, registry: Aliases, config: PromotionConfig, compare: Compare, protocol: str) -> int:
    """Decide about every version whose evaluation is done and undecided; returns the number of decisions carried out.

    Errors of the registry pass through: what was not carried out is taken up by the next call.
    """
    decided = {(row.model, row.version, row.evaluation): row for row in store.promotions()}
    versions = store.versions(protocol)
    carried_out = 0
    for (model, version), evaluation in versions.items():
        row = decided.get((model, version, evaluation))
        if (row is not None and row.applied) or store.evaluation(evaluation).state != "done":
            continue
        champion = registry.alias(model, CHAMPION)
        if row is not None and champion not in (row.champion_version, version):
            row = None
        if row is None:
            row = _decide(store, versions, (model, version), champion, config, compare)
            if row is None:
                continue
            store.record_promotion(row)
        if not _carry_out(registry, row):
            # Overtaken between the look and the move: the next call decides anew.
            continue
        store.record_promotion(replace(row, applied=True))
        carried_out += 1
        log.info("%s version %d (evaluation %d): %s; %s", model, version, evaluation, row.decision, row.reason)
        for name, found in row.numbers.items():
            log.info("  %s %+.4g, p %.3g %s", name, found["difference"], found["p_adjusted"], found["verdict"])
    return carried_out


def _decide(
    store: Store,
    versions: Mapping[tuple[str, int], int],
    of: tuple[str, int],
    champion: int | None,
    config: PromotionConfig,
    compare: Compare,
) -> PromotionRow | None:
    """The decision, or None where the champion's own evaluation must end first."""
    model, version = of
    evaluation = versions[of]
    against = versions.get((model, champion)) if champion is not None else None
    if champion is None:
        found = Judgement("champion", "the first evaluated version", {})
    elif champion == version:
        found = Judgement("champion", "it is the champion already", {})
    elif against is None:
        found = Judgement("kept", f"the champion, version {champion}, has no evaluation here", {})
    elif store.evaluation(against).state in ("queued", "running"):
        return None
    elif store.evaluation(against).state == "failed":
        found = Judgement("kept", f"the evaluation of the champion, version {champion}, failed", {})
    elif against == evaluation:
        found = Judgement("candidate", f"the same weights as the champion, version {champion}", {})
    else:
        try:
            found = judge(compare(store.folder_of(against), store.folder_of(evaluation)), config)
        except UserError as error:
            found = Judgement("kept", one_line(error), {})
    return PromotionRow(
        id=0,
        model=model,
        version=version,
        evaluation=evaluation,
        champion_version=champion,
        champion_evaluation=against,
        decision=found.decision,
        reason=found.reason,
        numbers=found.numbers,
        applied=False,
        created=time.time(),
    )


def _carry_out(registry: Aliases, row: PromotionRow) -> bool:
    """Move the aliases; false where the champion is no longer the one that was compared with."""
    if row.decision == "kept":
        return True
    champion = registry.alias(row.model, CHAMPION)
    if champion not in (row.champion_version, row.version):
        return False
    candidate = registry.alias(row.model, CANDIDATE)
    if candidate is None or candidate < row.version:
        registry.set_alias(row.model, CANDIDATE, row.version)
    if row.decision == "champion" and champion != row.version:
        registry.set_alias(row.model, CHAMPION, row.version)
    return True
