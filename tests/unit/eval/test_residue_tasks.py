"""Tasks on labelled residues, on a small model and files in the publishers' layouts."""

from pathlib import Path

import numpy as np
import pytest

from configs.benchmarks import BenchmarksConfig, ProbeConfig
from configs.evaluate import EvalConfig
from eval.datasets.residues import LAYOUTS
from eval.datasets.store import DatasetStore
from eval.intervals import estimate, scored
from eval.metrics import auroc
from eval.tasks.protocol import Context, Outcome
from eval.tasks.residues import DISORDER, TASKS, disorder_auroc
from tests.unit.eval.makers import make_features, train_config

LETTERS = "ACDEFGHIKLMNPQRSTVWY"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAPLM_CACHE", str(tmp_path / "cache"))


def context_of(folder: Path, runs: Path) -> Context:
    benchmarks = BenchmarksConfig(sources={task.name: str(folder) for task in TASKS})
    config = EvalConfig(benchmarks=benchmarks, probe=ProbeConfig(seeds=(0,)), batch_tokens=512)
    return Context(config, None, DatasetStore(benchmarks, 0, LAYOUTS), make_features(train_config(runs, runs)))


def sequences(num: int) -> list[str]:
    random = np.random.default_rng(0)
    return ["".join(random.choice(list(LETTERS), 30)) for _ in range(num)]


def values(outcome: Outcome) -> dict[str, float]:
    assert outcome.skipped is None, outcome.skipped
    return {m.metric: estimate([m], 100, 0).value for m in outcome.measurements}


def test_every_dataset_of_residues_has_its_task() -> None:
    assert {task.name for task in TASKS} == set(LAYOUTS)
    assert len({task.name for task in TASKS}) == len(TASKS) == 18


def test_disorder_is_measured_by_rank_and_by_telling_disordered_residues(tmp_path: Path) -> None:
    # The score of a residue follows from its type, which the states show.
    score = {letter: 0.7 * i for i, letter in enumerate(LETTERS)}
    rows = []
    for i, sequence in enumerate(sequences(24)):
        numbers = ["999.0"] + [f"{score[letter]:.3f}" for letter in sequence[1:]]
        split = "test" if i < 6 else "val" if i < 10 else "train"
        rows.append(f">{i} SET={split} TARGET={';'.join(numbers)} MASK={'0' + '1' * 29}\n{sequence}\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "disorder.fasta").write_text("".join(rows))
    context = context_of(tmp_path / "data", tmp_path)
    outcome = DISORDER.run(context)
    found = values(outcome)
    assert found["spearman"] > 0.8
    assert found["auroc"] > 0.9
    assert set(found) <= set(DISORDER.metrics)
    (spearman,) = (m for m in outcome.measurements if m.metric == "spearman")
    # The missing first residue of each of 6 proteins is no row.
    assert spearman.rows.tolist() == [29] * 6
    expected = auroc(-spearman.columns["prediction"], spearman.columns["label"] < 8.0)
    assert found["auroc"] == pytest.approx(expected)
    assert "below 8" in DISORDER.facts(context).method


def test_disorder_of_one_kind_has_no_auroc() -> None:
    columns = {"prediction": np.array([1.0, 2.0]), "label": np.array([9.0, 12.0])}
    assert disorder_auroc(scored("spearman", "spearman", ["a", "b"], [0, 1], columns)) is None


def test_binding_residues_of_a_ligand_are_found_where_states_show_them(tmp_path: Path) -> None:
    entries = []
    for i, sequence in enumerate(sequences(30)):
        labels = "".join("1" if letter in "HC" else "0" for letter in sequence)
        entries.append((f">{i}abc_A\n{sequence}\n{labels}\n", "test" if i < 8 else "train"))
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        (tmp_path / "data" / f"ZN_{split}.txt").write_text("".join(text for text, part in entries if part == split))
    task = next(task for task in TASKS if task.name == "binding_zn")
    found = values(task.run(context_of(tmp_path / "data", tmp_path)))
    assert set(found) == {"auprc", "mcc", "auroc"}
    assert found["auroc"] > 0.9
    # One residue in ten binds.
    assert found["auprc"] > 0.5


def test_secondary_structure_is_measured_on_each_test_set_too(tmp_path: Path) -> None:
    state = {letter: ("H" if i < 7 else "E" if i < 14 else "C") for i, letter in enumerate(LETTERS)}

    def table(part: list[str]) -> str:
        lines = [f"{s},{''.join(state[x] for x in s)},{''.join(state[x] for x in s)},," for s in part]
        return "input,dssp3,dssp8,disorder,cb513_mask\n" + "\n".join(lines) + "\n"

    every = sequences(30)
    (tmp_path / "data").mkdir()
    for name, part in (("training_hhblits", every[:22]), ("CB513", every[22:26]), ("CASP12", every[26:])):
        (tmp_path / "data" / f"{name}.csv").write_text(table(part))
    context = context_of(tmp_path / "data", tmp_path)
    for name in ("ss3", "ss8"):
        task = next(task for task in TASKS if task.name == name)
        found = values(task.run(context))
        metrics = {"accuracy", "macro_f1"}
        assert set(found) == {f"{m}{suffix}" for m in metrics for suffix in ("", "_CB513", "_CASP12")}
        assert found["accuracy"] > 0.8
    # Both datasets hold the same sequences.
    assert context.features.num_embedded == 30
