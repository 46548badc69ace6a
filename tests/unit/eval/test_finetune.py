from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from configs.benchmarks import ProbeConfig
from configs.evaluate import EvalConfig
from configs.loading import validate
from eval.datasets.records import Record
from eval.finetune import prepared, rate_at, tuned_predictions
from eval.heads.inputs import labels_of
from eval.heads.linear import fit_linear
from eval.models.open import open_model
from eval.models.protocol import RESIDUES, NotSupported, ProteinModel
from eval.tasks.probe_scores import judge_of
from pretrain.vocab import ESM2_TOKENS
from tests.unit.eval.makers import make_protein_model, train_config

WIDTH = 8


class Neighbours(nn.Module):
    """Embeddings of a residue and the next, mixed by two linear layers; a stand-in for a trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.mix = nn.Linear(32, 64)
        self.out = nn.Linear(64, WIDTH)
        self.dropout = nn.Dropout(0.1)

    def forward(self, letters: Tensor) -> Tensor:
        x = self.embed(letters)
        return self.out(torch.relu(self.dropout(self.mix(torch.cat([x, x.roll(-1, -2)], dim=-1)))))


@dataclass
class Small:
    """A Tunable."""

    module: nn.Module
    width: int = WIDTH
    linear_names: tuple[str, ...] = ("mix", "out")

    def states(self, sequences: list[str]) -> list[Tensor]:
        letters = [torch.tensor([RESIDUES.index(c) for c in s]) for s in sequences]
        if len({len(x) for x in letters}) == 1:
            return list(self.module(torch.stack(letters)))
        return [self.module(x) for x in letters]


def make_trunk() -> Small:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Small(Neighbours())


def sequences(count: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Half of them hold residues followed by their successors in RESIDUES; composition tells nothing."""
    random = np.random.default_rng(seed)
    found, labels = [], np.arange(count) % 2
    for label in labels:
        letters = random.integers(0, 20, size=30)
        for start in random.permutation(29)[:12]:
            if label:
                letters[start + 1] = (letters[start] + 1) % 20
        found.append("".join(RESIDUES[i] for i in letters))
    return found, labels


def splits_of(label_of) -> dict[str, tuple[Record, ...]]:
    sizes = {"train": (240, 0), "validation": (80, 1), "test": (160, 2)}
    made = {}
    for name, (count, seed) in sizes.items():
        letters, labels = sequences(count, seed)
        pairs = enumerate(zip(letters, labels.tolist(), strict=True))
        made[name] = tuple(Record(f"{name}{i}", (s,), label_of(s, y)) for i, (s, y) in pairs)
    return made


CLASSES = splits_of(lambda s, y: y)
FEW = {name: records[:48] for name, records in CLASSES.items()}
PROBE = ProbeConfig(
    protocol="full", epochs=15, patience=15, seeds=(0,), batch_size=16, learning_rate=1e-2, trunk_learning_rate=1e-2,
    lora_rank=8,
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def labels_in(records: tuple[Record, ...]) -> Tensor:
    return torch.tensor([record.label for record in records])


def tuned(probe: ProbeConfig, splits=CLASSES, target="class", num_classes=2, statistic="accuracy", tokens=400):
    judge = judge_of(statistic, target, labels_of(splits["validation"], target, num_classes))
    return list(tuned_predictions(make_trunk, splits, target, num_classes, probe, judge, tokens))


def test_tuning_learns_what_a_linear_head_on_the_frozen_trunk_cannot() -> None:
    trunk = make_trunk()
    trunk.module.eval()
    with torch.no_grad():
        means = {
            name: torch.stack([h.mean(0) for h in trunk.states([r.sequences[0] for r in records])])
            for name, records in CLASSES.items()
        }
    labels = labels_in(CLASSES["test"])
    judge = judge_of("accuracy", "class", labels_in(CLASSES["validation"]))
    head = fit_linear("softmax", means["train"], labels_in(CLASSES["train"]), 2, judge, means["validation"])
    frozen = float((head.scores(means["test"]).argmax(1) == labels).float().mean())
    accuracy = {}
    for protocol in ("full", "lora"):
        (prediction,) = tuned(PROBE.model_copy(update={"protocol": protocol}))
        accuracy[protocol] = float((prediction.scores.argmax(1) == labels).float().mean())
    assert frozen < 0.75
    assert min(accuracy.values()) > frozen + 0.15, (frozen, accuracy)


def test_a_seed_gives_the_same_predictions_and_leaves_the_callers_random_state() -> None:
    probe = PROBE.model_copy(update={"epochs": 1, "seeds": (5, 5, 6)})
    state = torch.get_rng_state()
    first, again, other = tuned(probe, FEW)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.scores, again.scores)
    assert not torch.equal(first.scores, other.scores)


def test_forward_passes_of_any_size_give_the_same_update() -> None:
    probe = PROBE.model_copy(update={"epochs": 1, "batch_size": 24})

    def scores(tokens: int) -> Tensor:
        trunk = without_dropout(make_trunk())
        return next(tuned_predictions(lambda: trunk, FEW, "class", 2, probe, lambda s: (0.0, 0.0), tokens)).scores

    whole, parts = scores(10_000), scores(100)
    # Float32 sums in another order, through two updates of AdamW, whose first are signs of gradients.
    torch.testing.assert_close(whole, parts, atol=1e-2, rtol=0)


def without_dropout(trunk: Small) -> Small:
    trunk.module.dropout = nn.Identity()
    return trunk


def test_lora_changes_adapters_and_head_alone() -> None:
    trunk = make_trunk()
    before = {name: p.detach().clone() for name, p in trunk.module.named_parameters()}
    probe = PROBE.model_copy(update={"protocol": "lora", "lora_rank": 3})
    tuning = prepared(trunk, CLASSES["train"], "class", 2, probe, 400)
    names = [name for name in tuning.tuned() if name.startswith("trunk.")]
    assert sorted(name.split(".")[1] for name in names) == ["mix", "mix", "out", "out"]
    assert all("lora_" in name for name in names)
    kept = dict(trunk.module.named_parameters())
    for name, value in before.items():
        assert any(torch.equal(value, p) for n, p in kept.items() if n.replace(".base_layer", "") == name)
    with pytest.raises(NotSupported, match="protocol=full"):
        prepared(Small(Neighbours(), linear_names=()), CLASSES["train"], "class", 2, probe, 400)


@pytest.mark.parametrize("target", ["labels", "value", "residue_class", "residue_value", "pair_class"])
def test_every_target_can_be_tuned(target: str) -> None:
    makers = {
        "labels": (lambda s, y: np.flatnonzero([c in s for c in "WYV"]), 3, "fmax"),
        "value": (lambda s, y: 10.0 + y, 0, "pearson"),
        "residue_class": (lambda s, y: np.array([-1, *(RESIDUES.index(c) % 3 for c in s[1:])]), 3, "accuracy"),
        "residue_value": (lambda s, y: np.array([np.nan, *(float(RESIDUES.index(c)) for c in s[1:])]), 0, "spearman"),
        "pair_class": (lambda s, y: y, 2, "auroc"),
    }
    label_of, num_classes, statistic = makers[target]
    splits = {name: records[:60] for name, records in splits_of(label_of).items()}
    if target == "pair_class":
        splits = {n: tuple(Record(r.key, (r.sequences[0], "ACDEF"), r.label) for r in rs) for n, rs in splits.items()}
    probe = PROBE.model_copy(update={"epochs": 4, "head": "mlp", "hidden": 16})
    (prediction,) = tuned(probe, splits, target, num_classes, statistic)
    rows = 60 * 29 if target.startswith("residue") else 60
    assert prediction.scores.shape == ((rows, num_classes) if num_classes else (rows,))
    assert torch.isfinite(prediction.scores).all()
    assert prediction.chosen.endswith("of 4")
    if target.startswith("residue"):
        # What a residue is can be learned in four epochs.
        assert prediction.quality > 0.6, prediction


def test_half_precision_is_of_forward_passes_alone() -> None:
    outputs = []
    for half in (False, True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tuning = prepared(make_trunk(), FEW["train"], "class", 2, PROBE, 400, half)
        assert {p.dtype for p in tuning.tuned().values()} == {torch.float32}
        outputs.append(tuning.scores(FEW["test"]))
    assert outputs[1].dtype == torch.float32
    assert not torch.equal(*outputs)
    # bfloat16 keeps 8 bits; inputs are scaled to unit spread, which is about a tenth of the states' size here.
    torch.testing.assert_close(*outputs, atol=0.2, rtol=0)


def test_adapters_of_real_trunks_learn(tmp_path: Path) -> None:
    models = (
        make_protein_model(train_config(tmp_path, tmp_path)),
        make_protein_model(train_config(tmp_path, tmp_path, family="amplify")),
        small_esm(tmp_path / "esm"),
    )
    for model in models:
        weights = model.weights_sha256
        trunk = model.trunk()
        probe = PROBE.model_copy(update={"protocol": "lora", "epochs": 1, "batch_size": 24})
        next(tuned_predictions(lambda trunk=trunk: trunk, FEW, "class", 2, probe, lambda s: (0.0, 0.0), 400))
        # The second factor of an adapter starts at zero and moves only where the adapted layer was really called.
        moved = {n: bool(p.any()) for n, p in trunk.module.named_parameters() if "lora_B" in n}
        assert moved
        assert all(moved.values()), (model.description, moved)
        assert model.weights_sha256 == weights


def small_esm(folder: Path) -> ProteinModel:
    from transformers import EsmConfig, EsmForMaskedLM, EsmTokenizer

    config = EsmConfig(
        vocab_size=33, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        mask_token_id=32, pad_token_id=1, position_embedding_type="rotary", token_dropout=True,
    )  # fmt: skip
    EsmForMaskedLM(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(ESM2_TOKENS))
    EsmTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return open_model(folder, validate(EvalConfig, {"device": "cpu"}, "test"))


def test_learning_rates_rise_then_fall_to_zero() -> None:
    rates = [rate_at(step, 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) in (9, 10)
    assert rates[100] == 0.0
    assert rate_at(0, 1) == pytest.approx(1.0)
