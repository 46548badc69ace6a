"""Adapters trained under DeepSpeed: equal to plain torch, the frozen trunk left alone, exact resumption, merging."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.train import TrainConfig
from pretrain.canonical import load_weights
from pretrain.checkpoints import open_checkpoint
from pretrain.model.fair_esm import write_fair_esm
from pretrain.model.load import load_model
from pretrain.model.lora import is_adapter
from pretrain.model.shape import TrunkShape
from pretrain.run_folder import METRICS, read_metrics, run_path
from pretrain.stages.align import AlignStage
from tests.parity.test_zero3 import CONTINUED_TOLERANCE, PARTITION_ALL, TOLERANCE, plain_torch
from tests.parity.trunks import masked_proteins, pack, scrambled_encoder
from tests.unit.pretrain.training import make_config, write_task
from tests.unit.pretrain.workers import Workers

NUM_STEPS = 8
LORA = {"rank": 4, "alpha": 8.0}


class Bench:
    """A task, published weights for its trunk, and two workers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_task(folder)
        (folder / "partition_all.json").write_text(PARTITION_ALL)
        self.published = scrambled_encoder(TrunkShape("esm2", 2, 32, 4), seed=11)
        write_fair_esm(self.published, folder / "esm2_small.pt")
        self.workers = Workers(2, folder)

    def config(self, name: str, size: int = 2, **overrides: Any) -> TrainConfig:
        settings = {
            "trunk__weights": str(self.folder / "esm2_small.pt"),
            "trunk__lora": LORA,
            "optimizer__steps": NUM_STEPS,
            "checkpoint__every": 100,
            "engine__num_workers": size,
            "engine__deepspeed": str(self.folder / "partition_all.json"),
        }
        return make_config(self.folder, name=name, **(settings | overrides))

    def train(self, name: str, stop_after: int | None = None, **overrides: Any) -> list[float]:
        """Losses of all steps that the run has made so far."""
        config = self.config(name, **overrides)
        outcome = self.workers.train(config, stop_after)
        assert outcome["state"] == ("finished" if stop_after is None else "stopped")
        return [row["loss"] for row in read_metrics(run_path(config) / METRICS)]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("lora"))
    yield bench
    bench.workers.close()


@pytest.fixture(scope="module")
def undisturbed(bench: Bench) -> list[float]:
    found = bench.train("undisturbed")
    assert max(found) - min(found) > 0.1, "training must move the loss, or equality says nothing"
    return found


def test_partitioned_over_two_workers_equals_plain_torch(bench: Bench, undisturbed: list[float]) -> None:
    assert undisturbed == pytest.approx(plain_torch(bench.config("plain", size=1)), abs=TOLERANCE)


@pytest.mark.parametrize("stage", [1, 3])
def test_a_stopped_run_continues_exactly(bench: Bench, undisturbed: list[float], stage: int) -> None:
    settings = {} if stage == 3 else {"engine__zero_stage": stage, "engine__deepspeed": None}
    bench.train(f"stopped-{stage}", stop_after=3, **settings)
    continued = bench.train(f"stopped-{stage}", **settings)
    assert continued == pytest.approx(undisturbed, abs=CONTINUED_TOLERANCE if stage == 3 else TOLERANCE)


@pytest.mark.usefixtures("undisturbed")
def test_the_checkpoint_holds_the_published_weights_untouched_and_no_moments_of_them(bench: Bench) -> None:
    checkpoint = open_checkpoint(run_path(bench.config("undisturbed")))
    weights, published = checkpoint.weights(), bench.published.state_dict()
    base = {name.removeprefix("trunk.").replace(".base_layer.", "."): t for name, t in weights.items()}
    frozen = {name: tensor for name, tensor in published.items() if name != "lm_head.weight"}
    assert all(torch.equal(base[name], tensor) for name, tensor in frozen.items())
    assert all(bool(tensor.any()) for name, tensor in weights.items() if ".lora_B." in name), "every adapter learnt"
    moved = {name.rpartition(":")[0] for name, _ in checkpoint.tensors("optimizer")}
    assert all(is_adapter(name) for name in moved if name.startswith("trunk."))


@pytest.mark.usefixtures("undisturbed")
@torch.no_grad()
def test_the_loaded_model_has_merged_adapters_and_the_trained_ones_answers(bench: Bench) -> None:
    config = bench.config("undisturbed")
    merged = load_model(run_path(config))
    assert not any("lora" in name for name, _ in merged.named_parameters())
    model = AlignStage(config).model
    load_weights(model, open_checkpoint(run_path(config)))
    trained = model.trunk
    assert any(is_adapter(name) for name, _ in trained.named_parameters())
    packed = pack(masked_proteins("esm2"))
    expected, start = trained.lm_logits(trained(packed)), bench.published.lm_logits(bench.published(packed))
    assert (expected - start).abs().max() > 0.1, "adapters that learnt nothing prove nothing"
    # Logits of order 1 from float32 sums in another order.
    assert (merged.trunk.lm_logits(merged.trunk(packed)) - expected).abs().max() <= 1e-5


def test_bf16_continues_from_its_float32_adapters(bench: Bench) -> None:
    settings = {"engine__precision": "bf16", "optimizer__steps": 5}
    undisturbed = bench.train("bf16", **settings)
    bench.train("bf16-stopped", stop_after=2, **settings)
    # The same arithmetic in the same order; losing the float32 copies would show at 1e-2.
    assert bench.train("bf16-stopped", **settings) == pytest.approx(undisturbed, abs=1e-4)
