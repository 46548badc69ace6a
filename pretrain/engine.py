"""Parallelism in one file, in one order: process group, AdamW, DeepSpeed; the loop sees one `Engine`."""

import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from configs.engine import EngineConfig, OptimizerConfig
from configs.errors import UserError
from configs.train import TrainConfig
from pretrain.checkpoints import Checkpoint, Share
from pretrain.deepspeed_settings import deepspeed_settings
from pretrain.model.parameter_groups import param_groups

log = logging.getLogger("pretrain.engine")


@dataclass(frozen=True)
class World:
    """This process among the workers."""

    rank: int
    size: int
    device: torch.device


@dataclass
class Engine:
    """A model under DeepSpeed: forward through `module`, then `backward` and `step` once per pool."""

    module: nn.Module
    """The wrapped model: call it, never the bare one."""
    world: World
    _deepspeed: Any
    _base_rates: list[float]
    _clip: float
    """Largest gradient norm where this class clips (stage 0 in float32); 0 where DeepSpeed does."""
    grad_norm: float = math.nan
    """Global gradient norm of the last update, before clipping."""
    optimizer_steps: int = 0

    def set_learning_rate(self, factor: float) -> float:
        """Set every group's rate to `factor` times its base rate; returns the first group's."""
        for group, base in zip(self._deepspeed.optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = factor * base
        return factor * self._base_rates[0]

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulate the gradients of one pool, averaged over ranks and over the pools of a step."""
        self._deepspeed.backward(loss)

    def step(self) -> None:
        """End of a pool: on the last pool of a step, clip and update the weights."""
        last = self._deepspeed.is_gradient_accumulation_boundary()
        if last and self._clip:
            self.grad_norm = float(nn.utils.clip_grad_norm_(self.module.parameters(), self._clip))
        self._deepspeed.step()
        if last:
            self.optimizer_steps += 1
            if not self._clip:
                self.grad_norm = float(self._deepspeed.get_global_grad_norm() or math.nan)

    def gather(self) -> Share:
        """This rank's share of a checkpoint; a collective."""
        from pretrain.canonical import gather_share

        return gather_share(self._deepspeed, self.world.rank, self.world.size)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue where a checkpoint's optimizer stood; the module holds its weights already."""
        from pretrain.canonical import restore_optimizer

        restore_optimizer(self._deepspeed, checkpoint)
        self.optimizer_steps = checkpoint.state["optimizer_steps"]

    def any_rank(self, flag: bool) -> bool:
        """Whether any rank says yes, known to all."""
        return bool(self.max_over_ranks(float(flag)))

    def max_over_ranks(self, value: float) -> float:
        """The largest of every rank's values, known to all."""
        if self.world.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.world.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor.item()

    def exchange(self, value: object) -> list[Any]:
        """Every rank's small value, in rank order, on all ranks; also a barrier."""
        values: list[Any] = [None] * self.world.size
        dist.all_gather_object(values, value)
        return values


def prepare_process(config: EngineConfig) -> None:
    """Settings that must stand before DeepSpeed is first imported: device kind, no op builds, quiet logs."""
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    with _hidden("mlflow"):
        import deepspeed.ops

    # The shared-memory collectives would be compiled at start; gloo needs no compiler and is as fast here.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # DeepSpeed calls collectives by names that torch has renamed, several times in every step.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed.*")
    if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(config.cpus_per_worker)


@contextmanager
def _hidden(module: str) -> Iterator[None]:
    """Keep an optional module from being imported on the way: DeepSpeed's autotuner costs seconds of MLflow else."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None
    try:
        yield
    finally:
        del sys.modules[module]


def join_world(config: EngineConfig) -> World:
    """Join the process group (Ray Train has made it; torchrun and srun only set variables) and tell DeepSpeed.

    Raises:
        UserError: the number of started processes is not engine.num_workers.
    """
    prepare_process(config)
    import deepspeed

    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if not dist.is_initialized():
        dist.init_process_group(backend, timeout=timedelta(minutes=30))
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    if dist.get_world_size() != config.num_workers:
        raise UserError(
            f"engine.num_workers is {config.num_workers} but {dist.get_world_size()} processes were started;"
            " make them equal"
        )
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    return World(dist.get_rank(), dist.get_world_size(), device)


def build_engine(model: nn.Module, config: TrainConfig, world: World) -> Engine:
    """Wrap a model, with AdamW in groups of their own rates, for training."""
    import deepspeed

    from pretrain.canonical import create_optimizer_state

    settings = deepspeed_settings(config)
    optimizer = make_optimizer(model, config.optimizer, world.device)
    base_rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        # DeepSpeed's stage 0 in bf16 begins with an update by gradients of zero, which would decay the weights.
        group["lr"] = 0.0
    wrapped, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)
    create_optimizer_state(wrapped, 0)
    clips_itself = isinstance(wrapped.optimizer, torch.optim.Optimizer)
    # Without ZeRO in float32 DeepSpeed clips but keeps no norm to log: clip here instead.
    clip = (config.optimizer.clip or math.inf) if clips_itself else 0.0
    return Engine(wrapped, world, wrapped, base_rates, clip)


def make_optimizer(model: nn.Module, config: OptimizerConfig, device: torch.device) -> torch.optim.AdamW:
    """Fused AdamW (one pass over memory; 3-4 times faster than the plain loop on CPUs too)."""
    groups = param_groups(model, config)
    fused = device.type in ("cuda", "cpu")
    return torch.optim.AdamW(groups, betas=config.betas, eps=config.eps, weight_decay=0.0, fused=fused)
