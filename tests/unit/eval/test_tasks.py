"""Tasks on a small real model: what they score, what they skip, and what they never look at."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.benchmarks import BenchmarksConfig
from configs.evaluate import EvalConfig, EvalDataConfig
from configs.labels import task_label
from data_pipeline.reader import ShardReader
from eval.data import EvalData, load_data
from eval.datasets.store import DatasetStore
from eval.intervals import estimate
from eval.probes import fit_token_head, selection_mask
from eval.tasks.protocol import Context, Outcome
from eval.tasks.pseudo_perplexity import NUM_PARTS, partition
from eval.tasks.registry import GROUPS, TASKS, tasks_named
from tests.unit.eval.makers import make_example, make_features, train_config, write_test_shards


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> EvalData:
    folder = tmp_path_factory.mktemp("shards")
    write_test_shards(folder, num_train=60)
    with ShardReader(folder) as reader:
        return load_data(reader, EvalDataConfig(shards=folder), 0)


def context(data: EvalData, structure: float = 0.5, **settings: object) -> Context:
    config = EvalConfig(data=EvalDataConfig(shards=Path("shards")), bootstrap_samples=100, **settings)
    return Context(config, data, NO_DATASETS, make_features(train_config(Path("runs"), Path("shards"), structure)))


NO_DATASETS = DatasetStore(BenchmarksConfig(root=Path("/nowhere")), 0, {})


def value(outcome: Outcome) -> float:
    assert outcome.skipped is None
    return estimate(outcome.measurements[:1], 100, 0).value


def test_every_task_exists_once_and_says_what_it_does(data: EvalData) -> None:
    config = EvalConfig(data=EvalDataConfig(shards=Path("shards")))
    assert {task.name for task in tasks_named(config.tasks)} < set(GROUPS["structure"])
    assert [task.name for task in tasks_named(("all", "contact"))] == list(TASKS)
    assert set(TASKS) == {name for group in ("structure", "contact_sets", "benchmarks") for name in GROUPS[group]}
    known = context(data)
    for task in TASKS.values():
        assert task.version.isdigit()
        assert task.metrics
        assert len(set(task.metrics)) == len(task.metrics)
        assert task_label(task.name) == task_label(task.name).strip()
    for name in GROUPS["structure"]:
        facts = TASKS[name].facts(known)
        assert facts.frozen
        assert facts.head
        assert len(facts.method) > 20


def test_all_frozen_tasks_share_one_embedding_pass(data: EvalData) -> None:
    shared = context(data, head_epochs=2)
    for name in ("threedi", "threedi_fitted", "secondary_structure", "threedi_lookup"):
        TASKS[name].run(shared)
    assert shared.features.num_embedded == len({e.sequence for e in (*data.fit, *data.test)})


def test_a_head_fitted_on_residue_dependent_states_beats_the_majority(data: EvalData) -> None:
    shared = context(data)
    fitted, majority = value(TASKS["threedi_fitted"].run(shared)), value(TASKS["threedi_majority"].run(shared))
    lookup = value(TASKS["threedi_lookup"].run(shared))
    # Residue types tell helix from strand in four of five residues of these chains, and states follow.
    assert lookup > majority + 0.1
    assert fitted > majority + 0.1


def test_the_probe_reads_secondary_structure_from_residue_types(data: EvalData) -> None:
    found = value(TASKS["secondary_structure"].run(context(data)))
    labels = np.concatenate([example.secondary for example in data.test])
    assert found > np.bincount(labels[labels >= 0]).max() / (labels >= 0).sum()


def test_a_checkpoint_without_3di_head_skips_with_the_reason(data: EvalData) -> None:
    outcome = TASKS["threedi"].run(context(data, structure=0.0))
    assert outcome.measurements == ()
    assert "no 3Di head" in (outcome.skipped or "")


def test_the_partition_hides_every_standard_residue_once() -> None:
    example = make_example(sequence="ACDEFGHIKLMNPQRSTVWYXACDEFX")
    parts = partition(example, 0)
    assert len(parts) == NUM_PARTS
    positions = np.sort(np.concatenate(parts))
    assert positions.tolist() == [i for i, letter in enumerate(example.sequence) if letter != "X"]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    again, other = partition(example, 0), partition(example, 1)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(parts, other, strict=True))
    assert [len(part) for part in partition(make_example(sequence="ACX"), 0)] == [1, 1]


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(data: EvalData) -> None:
    shared = context(data)
    head = shared.features.model.model.trunk.lm_head
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
    # exp(log 33) in float32.
    assert value(TASKS["pseudo_perplexity"].run(shared)) == pytest.approx(33.0, rel=1e-5)


def test_test_labels_do_not_reach_what_is_fitted(data: EvalData) -> None:
    random = np.random.default_rng(0)
    shuffled = tuple(replace(e, threedi=random.permutation(e.threedi)) for e in data.test)
    first, second = context(data, head_epochs=2), context(EvalData("x", shuffled, data.fit), head_epochs=2)
    right, wrong = (TASKS["threedi_fitted"].run(c).measurements[0] for c in (first, second))
    assert not np.array_equal(right.columns["values"], wrong.columns["values"])
    heads = []
    for labelled in (first, second):
        states = torch.from_numpy(np.concatenate([e.threedi for e in labelled.data.fit]))
        hidden = torch.cat(labelled.features.hidden([e.sequence for e in labelled.data.fit]))
        clusters = np.repeat([e.cluster for e in labelled.data.fit], [len(e) for e in labelled.data.fit])
        heads.append(fit_token_head(hidden[states >= 0], states[states >= 0], clusters[states >= 0], 20, 2, 0))
    assert all(torch.equal(a, b) for a, b in zip(heads[0].parameters(), heads[1].parameters(), strict=True))


def test_epochs_are_chosen_on_whole_clusters() -> None:
    clusters = np.repeat(np.arange(20), 7)
    chosen = selection_mask(clusters, 0)
    assert len(np.unique(clusters[chosen])) == 2
    assert not set(clusters[chosen]) & set(clusters[~chosen])
    assert selection_mask(np.array([1, 1, 2]), 0).sum() in (1, 2)
    assert not selection_mask(np.zeros(50), 0).all()


def test_fitting_leaves_the_callers_random_state_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    fit_token_head(torch.randn(30, 4, generator=torch.Generator()), torch.zeros(30).long(), np.arange(30), 2, 1, 0)
    assert torch.equal(torch.rand(1), expected)


def test_contact_precision_is_measured_on_chains_with_contacts(data: EvalData) -> None:
    random = np.random.default_rng(0)
    # The made chains are straight; random positions in a small ball have contacts at every separation.
    fit, test = (
        tuple(replace(e, coordinates=random.normal(scale=8.0, size=e.coordinates.shape)) for e in split[:6])
        for split in (data.fit, data.test)
    )
    straight = TASKS["contact"].run(context(data))
    assert "no contact" in (straight.skipped or "")
    outcome = TASKS["contact"].run(context(EvalData("x", test, fit)))
    assert outcome.skipped is None
    for measurement in outcome.measurements:
        values = measurement.columns["values"]
        assert ((values >= 0) & (values <= 1)).all()
    regression = outcome.artifacts["contact_regression.safetensors"]
    assert regression["weight"].shape == (8,)
    shown = outcome.artifacts["contact_example.safetensors"]
    assert shown["probability"].shape == shown["contacts"].shape
    assert outcome.notes["contact_example.safetensors"] in {example.key for example in data.test}
