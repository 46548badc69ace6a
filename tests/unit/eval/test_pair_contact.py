"""The supervised pair head: its algebra, its memory, and that it learns contacts it can see."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from configs.benchmarks import BenchmarksConfig
from configs.evaluate import ContactConfig, EvalConfig
from data_pipeline.shards import write_shards
from eval.data import EvalData, Example
from eval.intervals import estimate
from eval.tasks import contact, pair_contact
from eval.tasks.contact_truth import truth_of
from eval.tasks.pair_contact import PairHead, fit_pair_head
from eval.tasks.protocol import Context
from tests.unit.eval.datasets.test_contact_sets import pdb_text
from tests.unit.eval.makers import make_example, make_features, make_sample, train_config

LETTERS = "ACDEFGHIKLMNPQRSTVWY"


def published_logits(head: PairHead, states: torch.Tensor) -> torch.Tensor:
    """[N, N, 2] by the head's definition: concatenation, Linear, ReLU, Linear, mean of both orders."""
    n, width = states.shape
    first = nn.Linear(2 * width, 128)
    first.weight.data, first.bias.data = head.weight.data, head.bias.data
    x = (states - head.mean) / head.scale
    pairs = torch.cat([x[:, None].expand(n, n, width), x[None].expand(n, n, width)], dim=-1)
    logits = head.second(first(pairs).relu())
    return (logits + logits.transpose(0, 1)) / 2


def test_the_split_head_is_the_published_one(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    head = PairHead(torch.randn(16), torch.rand(16) + 0.5)
    states = torch.randn(23, 16)
    with torch.no_grad():
        expected = published_logits(head, states)
        rows, columns = torch.tensor([0, 5, 22]), torch.tensor([7, 19, 3])
        # float32 sums in another order.
        torch.testing.assert_close(head.pairs(states, rows, columns), expected[rows, columns], atol=1e-5, rtol=0)
        for block in (1 << 24, 5 * 23 * 128):
            monkeypatch.setattr(pair_contact, "BLOCK_VALUES", block)
            found = head.map(states)
            torch.testing.assert_close(found, expected[..., 1] - expected[..., 0], atol=1e-5, rtol=0)
            torch.testing.assert_close(found, found.T, atol=0, rtol=0)


def chains_with_visible_contacts(num: int) -> list[Example]:
    """Residues of one type stand together, those of others far apart: states tell which pairs touch."""
    examples = []
    for seed in range(num):
        random = np.random.default_rng(seed)
        sequence = "".join(random.choice(list(LETTERS), 40))
        places = np.array([[30.0 * LETTERS.index(letter), 0.0, 0.0] for letter in sequence])
        coordinates = places[:, None, :] + random.normal(scale=0.5, size=(40, 5, 3))
        examples.append(replace(make_example(f"e{seed}_A", sequence, cluster=seed), coordinates=coordinates))
    return examples


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("model")
    examples = chains_with_visible_contacts(24)
    data = EvalData("x", tuple(examples[18:]), tuple(examples[:18]))
    settings = EvalConfig(contact=ContactConfig(pair_fit_chains=18, pair_epochs=10))
    context = Context(settings, data, None, make_features(train_config(folder, folder)))
    return pair_contact.TASK.run(context), context


def test_the_head_learns_contacts_that_states_show(outcome) -> None:
    found, _ = outcome
    values = {}
    for name in {m.metric for m in found.measurements}:
        values[name] = estimate([m for m in found.measurements if m.metric == name], 100, 0).value
    assert set(values) == set(pair_contact.TASK.metrics[:9])
    # One pair in twenty touches: chance is 0.05.
    assert values["P@L/5_short"] > 0.3


def test_every_seed_is_measured_and_only_what_was_wanted_is_embedded(outcome) -> None:
    found, context = outcome
    assert {m.seed for m in found.measurements} == {0, 1, 2}
    wants = pair_contact.TASK.wants(context)
    assert context.features.num_embedded == len(set(wants.residues)) == 24


def test_a_seed_gives_the_same_head(tmp_path: Path) -> None:
    examples = chains_with_visible_contacts(6)
    config = ContactConfig(pair_epochs=2)
    features = make_features(train_config(tmp_path, tmp_path))
    first, second, other = (fit_pair_head(features, examples, config, seed) for seed in (3, 3, 4))
    torch.testing.assert_close(first.weight, second.weight, atol=0, rtol=0)
    assert not torch.equal(first.weight, other.weight)


def test_the_epoch_is_chosen_on_clusters_that_were_not_fitted_on(tmp_path: Path, monkeypatch) -> None:
    examples = chains_with_visible_contacts(20)
    fitted, selected = [], []
    weights: list[torch.Tensor] = []
    real = pair_contact._loss

    def loss(head, features, sequence, truth, generator):
        if torch.is_grad_enabled():
            fitted.append(sequence)
        return real(head, features, sequence, truth, generator)

    def selection(head, features, chains):
        selected.extend(sequence for sequence, _ in chains)
        weights.append(head.weight.detach().clone())
        # The second epoch is the best one.
        return (2.0, 1.0, 3.0)[len(weights) - 1]

    monkeypatch.setattr(pair_contact, "_loss", loss)
    monkeypatch.setattr(pair_contact, "_selection_loss", selection)
    head = fit_pair_head(make_features(train_config(tmp_path, tmp_path)), examples, ContactConfig(pair_epochs=3), 0)
    assert set(fitted) | set(selected) == {example.sequence for example in examples}
    assert not set(fitted) & set(selected)
    torch.testing.assert_close(head.weight, weights[1], atol=0, rtol=0)


def test_without_contacts_there_is_no_head(tmp_path: Path) -> None:
    far = np.arange(30)[:, None, None] * 50.0 + np.zeros((30, 5, 3))
    example = replace(make_example(sequence="ACDEFGHIKL" * 3), coordinates=far)
    assert fit_pair_head(make_features(train_config(tmp_path, tmp_path)), [example], ContactConfig(), 0) is None


def test_benchmark_chains_are_measured_with_heads_fitted_on_other_clusters(tmp_path: Path) -> None:
    examples = chains_with_visible_contacts(12)
    (tmp_path / "casp").mkdir()
    # Chain 0 is in the fit split too; the last one is new.
    new = chains_with_visible_contacts(13)[-1]
    for example in (examples[0], new):
        (tmp_path / "casp" / f"{example.key}.pdb").write_text(pdb_text(example.sequence, example.coordinates))
    settings = EvalConfig(
        benchmarks=BenchmarksConfig(sources={"casp": str(tmp_path / "casp")}),
        contact=ContactConfig(pair_fit_chains=12, pair_epochs=2, fit_chains=4),
    )
    features = make_features(train_config(tmp_path, tmp_path))
    context = Context(settings, EvalData("x", (), tuple(examples)), None, features)
    for task in (contact.SET_TASKS[0], pair_contact.SET_TASKS[0]):
        assert task.name.endswith("_casp")
        found = task.run(context)
        assert found.measurements
        assert len(found.measurements[0].keys) == 2
        assert any(remark.startswith("1 chains of the fit split") for remark in found.remarks)
        assert not found.artifacts
        assert "CASP, structure files, 2 chains" in task.facts(context).data
    assert examples[0].sequence in pair_contact.SET_TASKS[0].wants(context).residues
    sample = make_sample("t_A", 0, seed=0, num_residues=len(examples[0].sequence))
    write_shards(tmp_path / "shards", {"train": [replace(sample, sequence=examples[0].sequence)]}, samples_per_shard=4)
    strict = settings.benchmarks.model_copy(update={"leakage": "drop", "training_shards": tmp_path / "shards"})
    context = replace(context, config=settings.model_copy(update={"benchmarks": strict}))
    found = contact.SET_TASKS[0].run(context)
    assert len(found.measurements[0].keys) == 1
    assert found.remarks[0].endswith("dropped")


def test_long_chains_do_not_make_pair_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    head = PairHead(torch.zeros(64), torch.ones(64))
    states = torch.randn(1022, 64)
    largest = 0
    original = torch.Tensor.relu_

    def watched(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return original(tensor)

    monkeypatch.setattr(torch.Tensor, "relu_", watched)
    head.map(states)
    # [L, L, 128] would be 134 million values.
    assert 0 < largest <= pair_contact.BLOCK_VALUES


def test_truth_of_examples_is_symmetric() -> None:
    contacts, known = truth_of(chains_with_visible_contacts(1)[0], ContactConfig())
    np.testing.assert_array_equal(contacts, contacts.T)
    assert known.all()
