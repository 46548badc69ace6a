"""Evaluation sequences found among the chains: reported, or excluded."""

import itertools
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from configs.errors import UserError
from configs.splits import LeakageConfig
from data_pipeline.manifest import SPLITS
from data_pipeline.splits import leakage
from data_pipeline.splits.leakage import LeakageResult, find_leaks
from tests.unit.data_pipeline.homologs import chain_table, mutated, random_sequence

METHODS = [
    "kmers",
    pytest.param("mmseqs", marks=pytest.mark.skipif(shutil.which("mmseqs") is None, reason="MMseqs2 is not installed")),
]
SPLIT = np.array([0] * 24 + [1] * 3 + [2] * 3, dtype=np.int8)


@pytest.fixture
def world(tmp_path: Path) -> tuple[list[str], Path]:
    """Thirty unrelated chains (24 train, 3 validation, 3 test), and a FASTA file planted with kin of some."""
    chosen = random.Random(11)
    chains = [random_sequence(chosen.randint(100, 220), chosen) for _ in range(30)]
    planted = {
        "equal": chains[2],
        "part": chains[5][30:60],
        "whole": random_sequence(25, chosen) + chains[7] + random_sequence(25, chosen),
        "half": mutated(chains[9], 0.5, chosen),
        "validation": chains[25],
        **{f"random{i}": random_sequence(150, chosen) for i in range(30)},
    }
    path = tmp_path / "set.fasta"
    path.write_text("".join(f">{name} planted\n{sequence}\n" for name, sequence in planted.items()))
    return chains, path


def find(
    chains: list[str], path: Path | tuple[Path, ...], labels: list[int] | None = None, **options: object
) -> LeakageResult:
    paths = path if isinstance(path, tuple) else (path,)
    clusters = np.arange(len(chains)) if labels is None else np.array(labels)
    config = LeakageConfig(against=tuple(map(str, paths)), **options)
    return find_leaks(chain_table(chains), clusters, SPLIT[: len(chains)], config, paths[0].parent / "scratch")


@pytest.mark.parametrize("method", METHODS)
def test_planted_kin_is_found_and_random_sequences_are_not(world: tuple[list[str], Path], method: str) -> None:
    chains, path = world
    found = find(chains, path, method=method)
    (facts,) = found.facts
    assert (facts["sequences"], facts["sequences_hit"], facts["chains_hit"]) == (35, 4, 4)
    assert facts["chains_by_relation"] == {
        "is identical to": 1,
        "contains": 1,
        "lies within": 1,
        "is a homolog of": 1,
    }
    examples = [(e["chain"], e["relation"], e["sequence"]) for e in facts["examples"]]
    assert examples == [
        ("0002_A", "is identical to", "equal"),
        ("0005_A", "contains", "part"),
        ("0007_A", "lies within", "whole"),
        ("0009_A", "is a homolog of", "half"),
    ]
    # A local alignment may leave off ends that do not match, which raises identity a little.
    assert facts["examples"][3]["identity"] == pytest.approx(0.5, abs=0.05)
    assert (facts["method"], facts["chains_searched"], facts["splits"]) == (method, 24, ["train"])
    assert (facts["path"], len(facts["sha256"])) == (str(path), 64)
    assert ("version" in facts, "sensitivity" in facts) == (method == "mmseqs",) * 2
    assert (len(found.drop), found.details) == (0, [])


@pytest.mark.parametrize("method", METHODS)
def test_exclusion_drops_exactly_the_chains_found(world: tuple[list[str], Path], method: str) -> None:
    chains, path = world
    found = find(chains, path, method=method, action="exclude")
    assert found.drop.tolist() == [2, 5, 7, 9]
    assert found.details[:3] == [
        "is identical to equal of set.fasta",
        "contains part of set.fasta",
        "lies within whole of set.fasta",
    ]
    assert found.details[3].startswith("is a homolog of half of set.fasta (identity 0.")
    assert found.facts[0]["cluster_mates_excluded"] == 0


def test_cluster_mates_go_too_unless_they_may_stay(world: tuple[list[str], Path]) -> None:
    chains, path = world
    labels = list(range(30))
    labels[12] = labels[20] = labels[2]
    found = find(chains, path, labels, method="kmers", action="exclude")
    assert found.drop.tolist() == [2, 5, 7, 9, 12, 20]
    assert found.details[-1] == "in one cluster with 0002_A, which is identical to equal of set.fasta"
    assert found.facts[0]["cluster_mates_excluded"] == 2
    kept = find(chains, path, labels, method="kmers", action="exclude", exclude_clusters=False)
    assert kept.drop.tolist() == [2, 5, 7, 9]


def test_only_the_splits_named_are_searched(world: tuple[list[str], Path]) -> None:
    chains, path = world
    found = find(chains, path, method="kmers", action="exclude", splits=("train", "validation"))
    assert found.drop.tolist() == [2, 5, 7, 9, 25]
    assert found.facts[0]["chains_searched"] == 27
    only = find(chains, path, method="kmers", splits=("test",))
    assert (only.facts[0]["chains_hit"], only.facts[0]["chains_searched"]) == (0, 3)


def test_every_file_has_its_own_facts(world: tuple[list[str], Path], tmp_path: Path) -> None:
    chains, path = world
    other = tmp_path / "other.fasta"
    other.write_text(f">again\n{chains[2]}\n>twin\n{chains[2]}\n>more\n{chains[11][:90]}\n")
    found = find(chains, (path, other), method="kmers", action="exclude")
    assert [fact["chains_hit"] for fact in found.facts] == [4, 2]
    # Both names of the sequence that stands twice count.
    assert [fact["sequences_hit"] for fact in found.facts] == [4, 3]
    assert found.drop.tolist() == [2, 5, 7, 9, 11]
    assert found.details[0] == "is identical to equal of set.fasta"
    assert found.details[-1] == "contains more of other.fasta"


def test_identity_and_coverage_limits_are_kept(world: tuple[list[str], Path]) -> None:
    chains, path = world
    assert 9 not in find(chains, path, method="kmers", action="exclude", min_identity=0.7).drop
    half = path.parent / "half.fasta"
    half.write_text(f">half\n{chains[3][:50] + random_sequence(60, random.Random(1))}\n")
    assert find(chains, half, method="kmers").facts[0]["chains_hit"] == 0
    assert find(chains, half, method="kmers", coverage=0.4).facts[0]["chains_hit"] == 1


def test_the_size_of_blocks_changes_nothing(world: tuple[list[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    chains, path = world
    whole = find(chains, path, method="kmers", action="exclude")
    monkeypatch.setattr(leakage, "CHAINS_PER_BLOCK", 4)
    monkeypatch.setattr("data_pipeline.splits.homologs.QUERIES_PER_BLOCK", 5)
    parts = find(chains, path, method="kmers", action="exclude")
    assert (parts.facts, parts.drop.tolist(), parts.details) == (whole.facts, whole.drop.tolist(), whole.details)


def test_without_files_nothing_is_searched_and_bad_files_are_errors(tmp_path: Path) -> None:
    table = chain_table(["ACDEF"])
    found = find_leaks(table, np.zeros(1, int), np.zeros(1, np.int8), LeakageConfig(), tmp_path)
    assert (found.facts, found.drop.tolist(), found.details) == ([], [], [])
    with pytest.raises(UserError, match=r"none\.fasta: cannot be read"):
        find(["ACDEF"], tmp_path / "none.fasta")


def test_no_chain_in_the_searched_splits_is_fine(world: tuple[list[str], Path]) -> None:
    chains, path = world
    found = find(chains[:20], path, method="kmers", action="exclude", splits=("test",))
    assert (found.facts[0]["chains_searched"], len(found.drop)) == (0, 0)


def test_real_evaluation_sequences_are_found_among_real_chains(real_data: Path, tmp_path: Path) -> None:
    data = np.load(real_data / "structures" / "chains_backbone.npz")
    letters, offset = str(data["seq"]), data["offset"]
    chains = [letters[a:b] for a, b in itertools.pairwise(offset[:601])]
    path = tmp_path / "real.fasta"
    chosen = random.Random(3)
    wanted = chosen.sample(range(600), 12)
    path.write_text("".join(f">s{i}\n{mutated(chains[i], 0.6, chosen)}\n" for i in wanted))
    splits = np.zeros(600, dtype=np.int8)
    config = LeakageConfig(against=(str(path),), method="kmers", action="exclude", exclude_clusters=False)
    found = find_leaks(chain_table(chains), np.arange(600), splits, config, tmp_path)
    assert set(wanted) <= set(found.drop.tolist())
    assert found.facts[0]["sequences_hit"] == 12
    assert set(found.facts[0]["splits"]) < set(SPLITS)
