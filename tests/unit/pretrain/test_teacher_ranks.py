"""Stage `teacher` on two gloo ranks, with uneven numbers of residues, gives what one rank gives."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from configs.train import TrainConfig
from pretrain.sampler import Position
from pretrain.stages.teacher import TeacherStage
from pretrain.teachers.batch_norm import PooledBatchNorm
from tests.unit.pretrain.training import make_config, write_task

KINDS = ("gearnet", "gearnet_edge")
TEACHER = {
    "stage": "teacher",
    "trunk": None,
    "data__packs_per_pool": 2,
    "engine__num_workers": 2,
    "teacher__gearnet": {"layers": 2, "width": 16},
    "teacher__multiview": {"proteins_per_batch": 8, "crop_residues": 15},
}


def stage_config(folder: Path, kind: str) -> TrainConfig:
    return make_config(folder, **TEACHER, teacher__kind=kind)


def stage_results(config: TrainConfig, rank: int, world_size: int) -> dict[str, torch.Tensor]:
    """Gradients (as DeepSpeed averages them), figures and running statistics after one pool, in float64."""
    stage = TeacherStage(config)
    model = stage.model.double()
    batch = next(stage.batches(Position(), rank, world_size)).batch
    terms = stage.loss(model, batch, 1)
    terms.total(world_size).backward()
    results = {f"logged.{name}": torch.tensor(value) for name, value in terms.logged().items()}
    results |= {f"gradient.{name}": each.grad / world_size for name, each in model.named_parameters()}
    results |= {f"buffer.{name}": each.clone() for name, each in model.named_buffers()}
    return results | {"nodes": torch.tensor(len(batch.graphs.types))}


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    results = {}
    for kind in KINDS:
        each = stage_results(stage_config(Path(folder), kind), rank, 2)
        for name, value in each.items():
            results[f"{kind}/{name}"] = value.contiguous()
            if name.startswith("gradient."):
                dist.all_reduce(results[f"{kind}/{name}"])
    safetensors.torch.save_file(results, f"{folder}/{rank}.safetensors")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    write_task(folder)
    return folder


@pytest.fixture(scope="module")
def two_ranks(folder: Path) -> list[dict[str, torch.Tensor]]:
    mp.start_processes(run_rank, (str(folder),), nprocs=2, start_method="spawn")
    return [safetensors.torch.load_file(folder / f"{rank}.safetensors") for rank in (0, 1)]


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_equal_one_in_losses_gradients_and_running_statistics(
    two_ranks: list[dict[str, torch.Tensor]], folder: Path, kind: str
) -> None:
    alone = stage_results(stage_config(folder, kind), 0, 1)
    nodes = [each[f"{kind}/nodes"].item() for each in two_ranks]
    assert nodes[0] != nodes[1]
    assert sum(nodes) == alone.pop("nodes").item()
    assert any(name.startswith("buffer.gearnet.batch_norms") for name in alone)
    for name, wanted in alone.items():
        for got in two_ranks:
            # float64; embeddings pass through float32 before the contrast
            torch.testing.assert_close(got[f"{kind}/{name}"], wanted, atol=1e-5, rtol=1e-5, msg=name)


def test_on_one_rank_it_is_torchs_batch_norm() -> None:
    torch.manual_seed(0)
    ours, torchs = PooledBatchNorm(5), torch.nn.BatchNorm1d(5)
    values = torch.randn(7, 5)
    assert torch.equal(ours(values), torchs(values))
    assert torch.equal(ours.running_var, torchs.running_var)
