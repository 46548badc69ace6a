"""The rule that moves candidate and champion, and that it is carried out once whatever comes between."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from configs.errors import UserError
from configs.service import PromotionConfig
from eval.service.identity import Identity
from eval.service.promotion import CANDIDATE, CHAMPION, Compare, judge, promote
from eval.service.store import Store
from tests.unit.eval.service.makers import PROTOCOL

GAIN, LOSS, NOTHING = (0.1, 0.001), (-0.1, 0.001), (0.05, 0.4)


@dataclass(frozen=True)
class Difference:
    difference: float
    p_value: float
    is_test: bool = True


def found(**metrics: tuple[float, float]) -> dict[str, Difference]:
    return {name.replace("__", "/"): Difference(*numbers) for name, numbers in metrics.items()}


class Aliases:
    """A registry in memory that can refuse, and can be changed by others."""

    def __init__(self) -> None:
        self.aliases: dict[tuple[str, str], int] = {}
        self.moves: list[tuple[str, int]] = []
        self.before_move: Callable[[str], None] = lambda name: None

    def alias(self, model: str, name: str) -> int | None:
        return self.aliases.get((model, name))

    def set_alias(self, model: str, name: str, version: int) -> None:
        self.before_move(name)
        self.aliases[model, name] = version
        self.moves.append((name, version))


def evaluated(folder: Path, number: int) -> Store:
    """A store with versions 1 to `number` of the model m, all evaluated."""
    store = Store(folder)
    for version in range(1, number + 1):
        add(store, version)
    return store


def add(store: Store, version: int, protocol: str = PROTOCOL) -> None:
    who = Identity(Path(f"/runs/step_{version:08d}"), f"{version:x}".ljust(64, "0"), "small", version)
    evaluation, _ = store.enqueue(who, protocol)
    store.link_version("m", version, evaluation)
    store.planned(store.claim(), (), 0.1)
    store.done(store.claim(), 0.1)
    store.done(store.claim(), 0.1)


def comparing(store: Store, pairs: dict[tuple[int, int], dict[str, Difference]]) -> Compare:
    """Differences by (champion's, other's) evaluation."""
    folders = {store.folder_of(row.id): row.id for row in store.evaluations()}
    return lambda first, second: pairs[folders[first], folders[second]]


@pytest.mark.parametrize(
    ("differences", "decision"),
    [
        (found(a__x=GAIN, b__x=NOTHING), "champion"),
        (found(a__x=GAIN, b__x=LOSS), "kept"),
        (found(a__x=NOTHING, b__x=NOTHING), "candidate"),
        (found(a__pseudo_perplexity=LOSS), "champion"),
        (found(a__rmse=GAIN), "kept"),
        ({}, "kept"),
        (found(a__x=(0.1, 0.03), b__x=NOTHING, c__x=NOTHING), "candidate"),
    ],
    ids=["gain", "gain and loss", "neither", "lower is better", "a larger error", "nothing shared", "only uncorrected"],
)
def test_the_rule(differences: dict[str, Difference], decision: str) -> None:
    assert judge(differences, PromotionConfig()).decision == decision


def test_only_the_named_metrics_decide_and_are_corrected_for() -> None:
    differences = found(a__x=(0.1, 0.03), b__x=LOSS, c__x=NOTHING)
    alone = judge(differences, PromotionConfig(metrics=("a/x",)))
    assert (alone.decision, alone.numbers["a/x"]["p_adjusted"]) == ("champion", 0.03)
    assert judge(differences, PromotionConfig(metrics=("a/x", "d/x"))).reason == "not measured on both: d/x"
    assert judge(found(a__x=GAIN), PromotionConfig(min_gains=2)).decision == "candidate"
    with_baseline = {**found(a__x=(0.1, 0.04)), "b/x": Difference(0.0, 1.0, is_test=False)}
    assert judge(with_baseline, PromotionConfig()).decision == "champion", "a baseline is no test to correct for"


def test_versions_are_promoted_in_turn_and_every_decision_is_kept_with_numbers(tmp_path: Path) -> None:
    store, registry = evaluated(tmp_path, 4), Aliases()
    pairs = {(1, 2): found(a__x=NOTHING), (1, 3): found(a__x=GAIN), (3, 4): found(a__x=LOSS)}
    assert promote(store, registry, PromotionConfig(), comparing(store, pairs), PROTOCOL) == 4
    assert registry.aliases == {("m", CANDIDATE): 3, ("m", CHAMPION): 3}
    rows = {row.version: row for row in store.promotions()}
    assert [rows[v].decision for v in (1, 2, 3, 4)] == ["champion", "candidate", "champion", "kept"]
    assert rows[4].champion_version == 3
    assert rows[4].numbers == {"a/x": {"difference": -0.1, "p_adjusted": 0.001, "verdict": "worse"}}
    assert all(row.applied for row in rows.values())
    moves = list(registry.moves)
    assert promote(store, registry, PromotionConfig(), comparing(store, {}), PROTOCOL) == 0
    assert registry.moves == moves, "a second look changes nothing"


def test_a_crash_between_decision_and_registry_is_made_good(tmp_path: Path) -> None:
    store, registry = evaluated(tmp_path, 1), Aliases()

    def refuse(name: str) -> None:
        if name == CHAMPION:
            raise ConnectionError

    registry.before_move = refuse
    with pytest.raises(ConnectionError):
        promote(store, registry, PromotionConfig(), comparing(store, {}), PROTOCOL)
    assert [row.applied for row in store.promotions()] == [False]
    store.close()
    registry.before_move = lambda name: None
    assert promote(Store(tmp_path), registry, PromotionConfig(), comparing(Store(tmp_path), {}), PROTOCOL) == 1
    assert registry.moves == [(CANDIDATE, 1), (CHAMPION, 1)]


def test_a_decision_that_was_overtaken_is_made_anew(tmp_path: Path) -> None:
    store, registry = evaluated(tmp_path, 2), Aliases()
    pairs = {(1, 2): found(a__x=GAIN)}
    promote(store, registry, PromotionConfig(), comparing(store, pairs), PROTOCOL)
    add(store, 3)
    pairs = {(2, 3): found(a__x=GAIN), (1, 3): found(a__x=LOSS)}
    compare = comparing(store, pairs)

    def compare_while_a_person_moves_the_alias(first: Path, second: Path) -> dict[str, Difference]:
        registry.aliases["m", CHAMPION] = 1
        return compare(first, second)

    assert promote(store, registry, PromotionConfig(), compare_while_a_person_moves_the_alias, PROTOCOL) == 0
    assert registry.aliases["m", CHAMPION] == 1
    promote(store, registry, PromotionConfig(), compare, PROTOCOL)
    assert registry.aliases["m", CHAMPION] == 1
    assert store.promotions()[0].decision == "kept"
    assert store.promotions()[0].champion_version == 1


def test_the_candidate_never_goes_back_to_an_earlier_version(tmp_path: Path) -> None:
    store, registry = evaluated(tmp_path, 2), Aliases()
    registry.aliases = {("m", CANDIDATE): 5, ("m", CHAMPION): 1}
    promote(store, registry, PromotionConfig(), comparing(store, {(1, 2): found(a__x=NOTHING)}), PROTOCOL)
    assert registry.aliases["m", CANDIDATE] == 5


def test_unfinished_and_failed_evaluations_are_not_promoted(tmp_path: Path) -> None:
    store, registry = Store(tmp_path), Aliases()
    who = Identity(Path("/runs/step_00000001"), "1" * 64, "small", 1)
    evaluation, _ = store.enqueue(who, PROTOCOL)
    store.link_version("m", 1, evaluation)
    assert promote(store, registry, PromotionConfig(), comparing(store, {}), PROTOCOL) == 0
    store.failed(store.claim(), 0.1, "damaged")
    assert promote(store, registry, PromotionConfig(), comparing(store, {}), PROTOCOL) == 0
    assert registry.moves == []


def test_what_may_not_be_compared_moves_nothing_and_says_why(tmp_path: Path) -> None:
    store, registry = evaluated(tmp_path, 2), Aliases()

    def refuse(first: Path, second: Path) -> dict[str, Difference]:
        raise UserError("comparison: task 'ec' has versions 1 and 2")

    promote(store, registry, PromotionConfig(), refuse, PROTOCOL)
    assert registry.aliases == {("m", CANDIDATE): 1, ("m", CHAMPION): 1}
    assert store.promotions()[0].reason == "comparison: task 'ec' has versions 1 and 2"


def test_a_champion_from_elsewhere_is_left_alone(tmp_path: Path) -> None:
    store, registry = evaluated(tmp_path, 1), Aliases()
    registry.aliases["m", CHAMPION] = 9
    promote(store, registry, PromotionConfig(), comparing(store, {}), PROTOCOL)
    assert registry.aliases == {("m", CHAMPION): 9}
    assert "version 9, has no evaluation here" in store.promotions()[0].reason
    assert replace(store.promotions()[0], id=0).decision == "kept"


def test_under_a_new_protocol_versions_are_judged_anew_and_the_champion_is_waited_for(tmp_path: Path) -> None:
    store, registry = evaluated(tmp_path, 2), Aliases()
    promote(store, registry, PromotionConfig(), comparing(store, {(1, 2): found(a__x=GAIN)}), PROTOCOL)
    assert registry.aliases["m", CHAMPION] == 2
    newer = "e" * 64
    assert store.versions(newer) == {}
    add(store, 1, newer)
    assert promote(store, registry, PromotionConfig(), comparing(store, {}), newer) == 1
    assert "has no evaluation here" in store.promotions()[0].reason
    add(store, 2, newer)
    assert promote(store, registry, PromotionConfig(), comparing(store, {}), newer) == 1
    assert len(store.promotions()) == 4, "former decisions stay on record"
    assert registry.aliases["m", CHAMPION] == 2
