"""Duplicates, splits and the plan of the shards."""

import random
from pathlib import Path

from configs.build import BuildConfig, FilterConfig
from data_pipeline.placement import place_chains, plan_shards
from data_pipeline.spool import ChainRecord
from data_pipeline.structure.chain import AMINO_ACIDS

QUALITY = {
    "method": "x-ray diffraction",
    "resolution": 1.5,
    "r_free": 0.2,
    "missing_fraction": 0.0,
    "geometry_outlier_fraction": 0.0,
    "mean_bfactor": 20.0,
}


def record(key: str, sequence: str, source: str = "") -> tuple[str, ChainRecord]:
    return "batch.tar", ChainRecord(key, source or f"{key}.pdb", "A", sequence, 0, 1, 2, 3, QUALITY)


def different_records(count: int) -> list[tuple[str, ChainRecord]]:
    chosen = random.Random(0)
    return [record(f"k{i:02d}_A", "".join(chosen.choices(AMINO_ACIDS, k=60))) for i in range(count)]


def test_the_first_key_of_identical_sequences_stays() -> None:
    config = BuildConfig(output=Path("x"))
    records = [record("b_A", "ACDEFGHIK"), record("a_A", "ACDEFGHIK"), record("c_A", "WWWWWWWWW")]
    placed, rejects = place_chains(records, config)
    assert [p.record.key for p in placed] == ["a_A", "c_A"]
    assert [(r.path, r.reason, r.detail) for r in rejects] == [
        ("b_A.pdb", "duplicate_sequence", "same sequence as a_A")
    ]
    keep_all = BuildConfig(output=Path("x"), filters=FilterConfig(drop_identical=False))
    placed, rejects = place_chains(records, keep_all)
    assert len(placed) == 3
    assert not rejects
    assert placed[0].cluster == placed[1].cluster


def test_the_first_source_of_a_repeated_key_stays() -> None:
    records = [record("a_A", "WWWWWWWWW", "z/a.cif"), record("a_A", "ACDEFGHIK", "b/a.pdb")]
    placed, rejects = place_chains(records, BuildConfig(output=Path("x")))
    assert [p.record.source for p in placed] == ["b/a.pdb"]
    assert [(r.path, r.reason) for r in rejects] == [("z/a.cif", "duplicate_key")]


def test_the_plan_does_not_depend_on_the_order_of_the_records() -> None:
    records, config = different_records(40), BuildConfig(output=Path("x"))
    plans = []
    for seed in range(3):
        shuffled = random.Random(seed).sample(records, len(records))
        placed, _ = place_chains(shuffled, config)
        plans.append(plan_shards(placed, 10, "out", "scratch"))
    assert plans[0] == plans[1] == plans[2]


def test_shards_hold_their_split_in_key_order() -> None:
    placed, _ = place_chains(different_records(40), BuildConfig(output=Path("x")))
    tasks = plan_shards(placed, 10, "out", "scratch")
    sizes = {task.name: len(task.samples) for task in tasks}
    assert sizes == {
        "train-000000.tar": 10,
        "train-000001.tar": 10,
        "train-000002.tar": 10,
        "train-000003.tar": 2,
        "validation-000000.tar": 4,
        "test-000000.tar": 4,
    }
    train = [chain.record.key for task in tasks if task.name.startswith("train") for chain in task.samples]
    assert train == sorted(train)
    assert all(chain.high_quality for task in tasks for chain in task.samples)
