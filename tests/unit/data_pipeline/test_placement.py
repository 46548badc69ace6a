"""Duplicates, splits, leaks and the plan of the shards."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from configs.build import BuildConfig, FilterConfig
from configs.splits import LeakageConfig, SplitConfig
from data_pipeline.manifest import SPLITS
from data_pipeline.placement import Placement, ShardTask, place_chains, plan_shards
from data_pipeline.spool import Reject, chain_table, map_table, sequence_digest
from data_pipeline.structure.chain import AMINO_ACIDS

KMERS = SplitConfig(method="kmers")


def row(key: str, sequence: str, source: str = "") -> dict[str, Any]:
    return {
        "key": key,
        "entry": key.partition("_")[0],
        "source": source or f"{key}.pdb",
        "chain": "A",
        "digest": sequence_digest(sequence),
        "residues": len(sequence),
        "method": "x-ray diffraction",
        "resolution": 1.5,
        "r_free": 0.2,
        "missing_fraction": 0.0,
        "observed_fraction": 1.0,
        "geometry_outlier_fraction": 0.0,
        "mean_bfactor": 20.0,
        "facts_offset": 0,
        "facts_length": 1,
        "arrays_offset": 2,
        "arrays_length": 3,
        "stem": bytes(16),
        "sequence": sequence,
    }


def different_rows(count: int) -> list[dict[str, Any]]:
    chosen = random.Random(0)
    return [row(f"k{i:02d}_A", "".join(chosen.choices(AMINO_ACIDS, k=60))) for i in range(count)]


def placed(rows: Sequence[dict[str, Any]], scratch: Path, **settings: Any) -> tuple[Placement, list[Reject]]:
    config = BuildConfig(output=Path("x"), **{"split": KMERS, **settings})
    return place_chains(chain_table(rows), config, scratch)


def planned(placement: Placement, folder: Path) -> list[ShardTask]:
    return plan_shards(placement, 10, folder, folder, folder)


def keys_of(placement: Placement) -> list[str]:
    return placement.table["key"].to_pylist()


def test_the_first_key_of_identical_sequences_stays(tmp_path: Path) -> None:
    rows = [row("b_A", "ACDEFGHIK"), row("a_A", "ACDEFGHIK"), row("c_A", "WWWWWWWWW")]
    placement, rejects = placed(rows, tmp_path)
    assert keys_of(placement) == ["a_A", "c_A"]
    assert [(r.path, r.reason, r.detail) for r in rejects] == [
        ("b_A.pdb", "duplicate_sequence", "same sequence as a_A")
    ]
    placement, rejects = placed(rows, tmp_path, filters=FilterConfig(drop_identical=False))
    assert len(placement) == 3
    assert not rejects
    assert placement.cluster[0] == placement.cluster[1]


def test_the_first_source_of_a_repeated_key_stays(tmp_path: Path) -> None:
    rows = [row("a_A", "WWWWWWWWW", "z/a.cif"), row("a_A", "ACDEFGHIK", "b/a.pdb")]
    placement, rejects = placed(rows, tmp_path)
    assert placement.table["source"].to_pylist() == ["b/a.pdb"]
    assert [(r.path, r.reason, r.detail) for r in rejects] == [
        ("z/a.cif", "duplicate_key", "key a_A is taken by b/a.pdb")
    ]


def test_a_sequence_is_a_duplicate_only_of_a_chain_that_stays(tmp_path: Path) -> None:
    # The first holder of the sequence goes because its key is taken.
    rows = [row("a_A", "WWWWWWWWW", "1.pdb"), row("a_A", "ACDEFGHIK", "2.pdb"), row("b_A", "ACDEFGHIK")]
    placement, rejects = placed(rows, tmp_path)
    assert keys_of(placement) == ["a_A", "b_A"]
    assert [r.reason for r in rejects] == ["duplicate_key"]


def test_the_plan_does_not_depend_on_the_order_of_the_rows(tmp_path: Path) -> None:
    rows, plans = different_rows(40), []
    for seed in range(3):
        placement, _ = placed(random.Random(seed).sample(rows, len(rows)), tmp_path)
        keys = np.array(keys_of(placement))
        plans.append([(t.name, keys[t.rows].tolist(), t.cluster.tolist()) for t in planned(placement, tmp_path)])
    assert plans[0] == plans[1] == plans[2]


def test_shards_hold_their_split_in_key_order(tmp_path: Path) -> None:
    placement, _ = placed(different_rows(40), tmp_path)
    tasks = planned(placement, tmp_path)
    assert {task.name: len(task.rows) for task in tasks} == {
        "train-000000.tar": 10,
        "train-000001.tar": 10,
        "train-000002.tar": 10,
        "train-000003.tar": 2,
        "validation-000000.tar": 4,
        "test-000000.tar": 4,
    }
    for task in tasks:
        # What the worker will read of the chains is what the driver placed.
        stored = map_table(Path(task.placed)).take(pa.array(task.rows))["key"].to_pylist()
        assert stored == sorted(stored)
        assert task.high_quality.all()
    in_train = np.concatenate([task.rows for task in tasks if task.name.startswith("train")])
    assert (placement.split[in_train] == SPLITS.index("train")).all()


def test_chains_that_resemble_an_evaluation_set_are_excluded_with_the_reason(tmp_path: Path) -> None:
    rows = different_rows(30)
    (tmp_path / "eval.fasta").write_text(f">held out\n{rows[3]['sequence']}\n")
    leakage = LeakageConfig(against=(str(tmp_path / "eval.fasta"),), action="exclude", method="kmers")
    no_held_out = SplitConfig(method="kmers", validation_fraction=0, test_fraction=0)
    placement, rejects = placed(rows, tmp_path, leakage=leakage, split=no_held_out)
    assert [(r.path, r.reason) for r in rejects] == [("k03_A.pdb", "leakage")]
    assert "held" in rejects[0].detail
    assert keys_of(placement) == [r["key"] for r in rows if r["key"] != "k03_A"]
    assert len(placement.cluster) == len(placement.split) == len(placement.high_quality) == 29
    assert len(placement.leakage) == 1


@pytest.mark.parametrize("action", ["report", "exclude"])
def test_without_a_hit_nothing_is_excluded(tmp_path: Path, action: Any) -> None:
    (tmp_path / "eval.fasta").write_text(f">other\n{'WC' * 40}\n")
    leakage = LeakageConfig(against=(str(tmp_path / "eval.fasta"),), action=action, method="kmers")
    placement, rejects = placed(different_rows(12), tmp_path, leakage=leakage)
    assert len(placement) == 12
    assert not rejects
