from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from configs.evaluate import EvalConfig
from configs.loading import validate
from eval.datasets.records import Dataset, Record, Target
from eval.features import Features
from eval.heads.inputs import rows_of
from eval.intervals import estimate
from eval.metrics import mcc_threshold
from eval.models.protocol import RESIDUES
from eval.tasks.probing import Metric, ProbeTask
from eval.tasks.protocol import Context
from tests.unit.eval.test_finetune import Small

METRICS = {
    "class": (Metric("accuracy", "accuracy"), Metric("macro_f1", "macro_f1"), Metric("mcc", "mcc")),
    "labels": (Metric("fmax", "fmax"), Metric("aupr", "aupr")),
    "value": (Metric("spearman", "spearman"), Metric("rmse", "rmse")),
    "residue_class": (Metric("accuracy", "accuracy"), Metric("by_protein", "accuracy", "protein")),
    "residue_value": (Metric("pearson", "pearson"),),
    "pair_class": (Metric("auroc", "auroc"), Metric("accuracy", "accuracy")),
}
TARGETS: tuple[Target, ...] = tuple(METRICS)


class Composition(nn.Module):
    """A state says what the residue is."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(20, 20)
        nn.init.eye_(self.mix.weight)

    def forward(self, letters: torch.Tensor) -> torch.Tensor:
        return self.mix(nn.functional.one_hot(letters, 20).float())


class LetterModel:
    """A ProteinModel whose states are one-hot residues."""

    name = description = "letters"
    weights_sha256 = "0" * 64
    width, layers, max_residues = 20, 1, None

    def __init__(self) -> None:
        self.module = Composition()

    def at(self, precision: str) -> "LetterModel":
        return self

    def hidden(self, sequences: list[str], all_layers: bool = False) -> list[torch.Tensor]:
        with torch.no_grad():
            return self.trunk().states(sequences)

    def trunk(self) -> Small:
        module = Composition()
        module.load_state_dict(self.module.state_dict())
        return Small(module, 20, ("mix",))


def label_of(target: Target, sequence: str, other: str) -> int | float | np.ndarray:
    """Labels that residue types tell."""
    numbers = np.array([RESIDUES.index(c) for c in sequence])
    return {
        "class": int(np.bincount(numbers % 3, minlength=3).argmax()),
        "labels": np.flatnonzero([sequence.count(c) >= 2 for c in "WYVA"]),
        "value": 5.0 + float((numbers % 4).mean()),
        "residue_class": np.where(np.arange(len(numbers)) == 1, -1, numbers % 3),
        "residue_value": np.where(np.arange(len(numbers)) == 1, np.nan, numbers / 7.0),
        "pair_class": int(abs(sequence.count("W") - other.count("W")) >= 2),
    }[target]


def make_dataset(target: Target, sizes: tuple[int, int, int] = (120, 40, 60), seed: int = 0) -> Dataset:
    random = np.random.default_rng(seed)
    splits = {}
    for name, size in zip(("train", "validation", "test"), sizes, strict=True):
        records = []
        for i in range(size):
            one, two = ("".join(random.choice(list(RESIDUES[12:] + "A"), size=15)) for _ in range(2))
            sequences = (one, two) if target == "pair_class" else (one,)
            records.append(Record(f"{name}{i}", sequences, label_of(target, one, two), cluster=i // 2))
        splits[name] = tuple(records)
    classes = {"class": "abc", "labels": "WYVA", "residue_class": "abc", "pair_class": "ny"}.get(target, "")
    half = np.arange(sizes[2]) % 2 == 0
    return Dataset("made", "made up", "0" * 64, target, tuple(classes), splits, ("cropped",), {"even": half})


def make_context(dataset: Dataset, **tree: object) -> Context:
    config = validate(EvalConfig, {"device": "cpu", "benchmarks": {"leakage": "off"}, **tree}, "test")
    return Context(config, None, SimpleNamespace(get=lambda name: dataset), Features(LetterModel(), config.features))


def make_task(target: Target, groups: tuple[str, ...] = ("even",)) -> ProbeTask:
    return ProbeTask("made", "made", METRICS[target], "as made", "made up", groups)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_every_target_is_learned_and_measured_with_its_groups(target: Target, head: str) -> None:
    batch = 128 if target.startswith("residue") else 16
    context = make_context(
        make_dataset(target),
        probe={"head": head, "seeds": [0, 1], "epochs": 12, "hidden": 32, "learning_rate": 1e-2, "batch_size": batch},
    )
    task = make_task(target)
    outcome = task.run(context)
    by_metric: dict[str, list] = {}
    for measurement in outcome.measurements:
        by_metric.setdefault(measurement.metric, []).append(measurement)
    names = [metric.name for metric in METRICS[target]]
    assert list(by_metric) == [*names, *(f"{name}_even" for name in names)]
    assert set(by_metric) <= set(task.metrics)
    seeds = (0,) if head == "linear" else (0, 1)
    for name, measured in by_metric.items():
        assert tuple(m.seed for m in measured) == seeds
        assert len(measured[0].keys) == (30 if name.endswith("_even") else 60)
        found = estimate(measured, 100, 0)
        assert found.value is not None
        # Labels follow from residue types, which the states give: far above chance, and errors below their spread.
        assert found.value < 0.4 if name.startswith("rmse") else found.value > 0.55, (name, found)
    assert "validation" in " ".join(outcome.remarks)


@pytest.mark.parametrize("protocol", ["lora", "full"])
def test_a_tuned_task_embeds_nothing_and_leaves_the_model_alone(protocol: str) -> None:
    context = make_context(
        make_dataset("class"),
        probe={"protocol": protocol, "seeds": [0], "epochs": 2, "trunk_learning_rate": 1e-2, "learning_rate": 1e-2},
    )
    task = make_task("class")
    before = context.features.model.module.mix.weight.detach().clone()
    assert task.wants(context).means == task.wants(context).residues == ()
    outcome = task.run(context)
    assert [m.metric for m in outcome.measurements][:3] == ["accuracy", "macro_f1", "mcc"]
    assert context.features.num_embedded == 0
    assert torch.equal(context.features.model.module.mix.weight, before)
    facts = task.facts(context)
    assert facts.frozen == ("nothing" if protocol == "full" else "trunk but for LoRA adapters of rank 8")


def test_what_a_task_wants_is_what_it_uses() -> None:
    for target in TARGETS:
        context = make_context(make_dataset(target), benchmarks={"leakage": "off", "max_train_residues": 150})
        task = make_task(target)
        wants = task.wants(context)
        embedded = context.features.embed(wants)
        task.run(context)
        assert context.features.num_embedded == embedded == len(wants.means) + len(wants.residues)
        if target.startswith("residue"):
            # 150 residues are 11 proteins of 14 labelled residues; from train and from validation.
            assert len(wants.residues) == 11 + 11 + 60


def test_test_labels_and_proteins_change_nothing_that_is_chosen() -> None:
    dataset = make_dataset("class")
    flipped = tuple(replace(record, label=(int(record.label) + 1) % 3) for record in dataset.splits["test"])
    first, second = (make_task("class").run(make_context(d)) for d in (dataset, dataset.with_splits(test=flipped)))
    assert first.remarks == second.remarks
    for a, b in zip(first.measurements, second.measurements, strict=True):
        assert np.array_equal(a.columns["prediction"], b.columns["prediction"])


def with_labels(dataset: Dataset, split: str, label: Callable[[int], object]) -> Dataset:
    records = tuple(replace(record, label=label(i)) for i, record in enumerate(dataset.splits[split]))
    return dataset.with_splits(**{split: records})


def test_labels_that_cannot_be_learned_skip_the_task_with_the_reason() -> None:
    cases = {
        "class": (lambda i: 1, "all training labels are one class"),
        "value": (lambda i: 2.5, "all training numbers are equal"),
        "labels": (lambda i: np.array([], dtype=np.int64), "no label has both positive and negative"),
        "residue_class": (lambda i: np.full(15, -1), "no labelled example in train"),
        "residue_value": (lambda i: np.full(15, np.nan), "no labelled example in train"),
    }
    for target, (label, reason) in cases.items():
        outcome = make_task(target).run(make_context(with_labels(make_dataset(target), "train", label)))
        assert reason in str(outcome.skipped)
        assert not outcome.measurements


def test_classes_without_a_training_example_are_counted() -> None:
    dataset = replace(make_dataset("class"), classes=("a", "b", "c", "d", "e"))
    dataset = with_labels(dataset, "test", lambda i: i % 4)
    outcome = make_task("class").run(make_context(dataset))
    assert "2 of 5 classes have no training example, 1 of them occur in test" in outcome.remarks


def test_an_empty_group_and_an_undeclared_one_are_not_measured() -> None:
    dataset = make_dataset("class")
    dataset = replace(dataset, groups={"even": np.zeros(60, dtype=bool), "odd": np.ones(60, dtype=bool)})
    assert {m.metric for m in make_task("class").run(make_context(dataset)).measurements} == {
        "accuracy",
        "macro_f1",
        "mcc",
    }


@pytest.mark.parametrize("protocol", ["frozen", "full"])
def test_mcc_of_a_rare_class_takes_the_threshold_that_validation_says(protocol: str) -> None:
    dataset = replace(make_dataset("class", (200, 100, 100)), classes=("no", "yes"))
    for split in ("train", "validation", "test"):
        records = dataset.splits[split]
        # About one in ten.
        rare = [r.sequences[0].count("W") + 0.8 * (i % 3) > 3.5 for i, r in enumerate(records)]
        dataset = with_labels(dataset, split, lambda i, rare=rare: int(rare[i]))
    probe = {"protocol": protocol, "seeds": [0], "epochs": 3, "learning_rate": 1e-2}
    dataset = replace(dataset, groups={})
    context, task = make_context(dataset, probe=probe), make_task("class")
    (prediction,) = task._predictions(context, dataset)
    found = {m.metric: m.columns for m in task.run(context).measurements}
    labels = np.array([record.label for record in dataset.splits["validation"]])
    margin = lambda scores: (scores[:, 1] - scores[:, 0]).double().numpy()  # noqa: E731
    threshold = mcc_threshold(margin(prediction.validation), labels)
    assert np.array_equal(found["mcc"]["prediction"], margin(prediction.scores) > threshold)
    assert np.array_equal(found["accuracy"]["prediction"], prediction.scores.argmax(dim=-1).numpy())
    assert not np.array_equal(found["mcc"]["prediction"], found["accuracy"]["prediction"])


def test_the_unseen_part_of_the_test_split_is_among_the_metrics() -> None:
    assert make_task("value").metrics == (
        "spearman", "rmse", "spearman_even", "rmse_even", "spearman_unseen", "rmse_unseen",
    )  # fmt: skip


def test_residues_without_a_label_count_nowhere() -> None:
    outcome = make_task("residue_class").run(make_context(make_dataset("residue_class")))
    measurement = outcome.measurements[0]
    assert measurement.rows.tolist() == [14] * 60
    assert (measurement.columns["label"] >= 0).all()


def test_a_score_of_two_classes_is_undefined_for_three() -> None:
    task = replace(make_task("class"), measures=(Metric("auroc", "auroc"),))
    assert task.run(make_context(make_dataset("class"))).skipped == "no metric is defined on the test split"


def test_facts_say_how_the_number_came_about() -> None:
    context = make_context(make_dataset("pair_class"))
    facts = make_task("pair_class").facts(replace(context, features=None))
    assert facts.frozen == "trunk"
    assert "logistic regression" in facts.head
    assert "|a - b|, a * b, a + b" in facts.head
    assert (facts.data, facts.data_sha256) == ("made up; cropped", "0" * 64)


def test_all_layers_are_centred_by_the_training_split_and_scaled_to_length_1() -> None:
    from eval.heads.inputs import unit_of

    dataset = make_dataset("class")
    context = make_context(dataset, features={"representation": "all_layers"})
    unit = unit_of(context.features, dataset.splits["train"])
    for split in ("train", "test"):
        x = rows_of(context.features, dataset.splits[split], "class", 3, unit).features
        # Float32.
        torch.testing.assert_close(x.norm(dim=1), torch.ones(len(x)), atol=1e-5, rtol=0)
    assert "length 1" in make_task("class").facts(context).head
    assert make_task("class").run(context).measurements
