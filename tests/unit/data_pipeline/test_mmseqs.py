"""MMseqs2 beside us: its clusters, its search, its failures."""

import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from configs.errors import UserError
from configs.splits import SplitConfig
from data_pipeline.splits import mmseqs
from data_pipeline.splits.clusters import assign_clusters
from data_pipeline.splits.components import number_by_appearance
from data_pipeline.splits.mmseqs import cluster_by_mmseqs, mmseqs_version, search_by_mmseqs
from tests.unit.data_pipeline.homologs import chain_table, families, mutated, random_sequence

needs_mmseqs = pytest.mark.skipif(shutil.which("mmseqs") is None, reason="MMseqs2 is not installed (no `mmseqs`)")
CONFIG = SplitConfig(method="mmseqs")


def clusters_of(sequences: list[str], config: SplitConfig, scratch: Path) -> list[int]:
    return number_by_appearance(cluster_by_mmseqs(iter(sequences), len(sequences), config, scratch)).tolist()


@needs_mmseqs
def test_families_are_found_and_facts_name_version_and_parameters(tmp_path: Path) -> None:
    sequences, labels = families(10, 5, 0.7, random.Random(1))
    found = assign_clusters(chain_table(sequences), CONFIG, tmp_path / "scratch")
    np.testing.assert_array_equal(found.labels, number_by_appearance(np.array(labels)))
    assert found.facts == {
        "method": "mmseqs",
        "version": mmseqs_version(),
        "mmseqs_mode": "search",
        "min_identity": 0.3,
        "sensitivity": 5.7,
        "coverage": 0.8,
        "coverage_of": "both",
        "chains": 50,
        "identical_sequences": 0,
        "clusters": 10,
        "largest_cluster": 5,
    }
    assert found.facts["version"]
    assert list((tmp_path / "scratch").iterdir()) == []


@needs_mmseqs
def test_the_cascade_finds_the_same_families(tmp_path: Path) -> None:
    sequences, labels = families(5, 4, 0.8, random.Random(2))
    cascade = SplitConfig(mmseqs_mode="cluster", sensitivity=1.0)
    assert clusters_of(sequences, cascade, tmp_path) == number_by_appearance(np.array(labels)).tolist()
    assert list(tmp_path.iterdir()) == []


@needs_mmseqs
def test_the_number_of_threads_and_the_order_of_rows_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences, _ = families(12, 6, 0.55, random.Random(3))
    found = []
    for threads, order in ((1, sequences), (2, sequences[::-1])):
        monkeypatch.setattr(mmseqs, "_threads", lambda threads=threads: ["--threads", threads])
        labels = assign_clusters(chain_table(order), CONFIG, tmp_path).labels
        found.append(number_by_appearance(labels if order is sequences else labels[::-1]).tolist())
    assert found[0] == found[1]


@needs_mmseqs
def test_a_domain_joins_the_whole_protein_only_when_the_shorter_chain_counts(tmp_path: Path) -> None:
    chosen = random.Random(4)
    # Of the letters of nucleotides, which are residues here all the same.
    domain = "".join(chosen.choice("ACGT") for _ in range(120))
    pair = [mutated(domain, 0.8, chosen), random_sequence(150, chosen) + domain + random_sequence(150, chosen)]
    joined = {
        coverage_of: len(set(clusters_of(pair, SplitConfig(coverage_of=coverage_of), tmp_path)))
        for coverage_of in ("both", "shorter")
    }
    assert joined == {"both": 2, "shorter": 1}


@needs_mmseqs
def test_search_tells_identity_and_coverage_of_the_shorter(tmp_path: Path) -> None:
    chosen = random.Random(6)
    target = random_sequence(200, chosen)
    queries = [random_sequence(200, chosen), mutated(target, 0.6, chosen), target[50:150]]
    hits = search_by_mmseqs(queries, [random_sequence(180, chosen), target], 0.3, 0.8, 5.7, tmp_path)
    assert (hits.query.tolist(), hits.target.tolist()) == ([1, 2], [1, 1])
    # A local alignment may leave off ends that do not match, which raises identity a little.
    assert hits.identity[0] == pytest.approx(0.6, abs=0.03)
    assert hits.coverage[0] >= 0.9
    assert (hits.identity[1], hits.coverage[1]) == (1.0, 1.0)
    assert len(search_by_mmseqs([], [target], 0.3, 0.8, 7.5, tmp_path).query) == 0


@needs_mmseqs
def test_no_sequences_and_sequences_that_no_seed_fits_stand_alone(tmp_path: Path) -> None:
    assert clusters_of([], CONFIG, tmp_path) == []
    assert clusters_of(["A", "ACD", "X" * 60], CONFIG, tmp_path) == [0, 1, 2]


def stand_in(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program named `mmseqs` that runs a shell script."""
    program = folder / "mmseqs"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_a_failure_is_told_in_its_first_lines_and_the_scratch_is_left_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, "echo 'Cannot allocate memory' >&2; echo second >&2; exit 7", monkeypatch)
    with pytest.raises(UserError, match=r"`mmseqs createdb` ended with exit code 7: Cannot allocate memory / second; "):
        cluster_by_mmseqs(["ACDEF"], 1, CONFIG, tmp_path / "scratch")
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_program_that_cannot_be_started_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, "", monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "mmseqs").write_bytes(b"\x7fELF broken")
    with pytest.raises(UserError, match=r"mmseqs cannot be started .*; install MMseqs2"):
        mmseqs_version()
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert mmseqs_version() is None
