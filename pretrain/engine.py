"""Parallelism in one file, in one order: process group, AdamW, DeepSpeed; the loop sees one `Engine`."""

import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from configs.engine import EngineConfig, OptimizerConfig
from configs.errors import UserError
from configs.train import TrainConfig
from pretrain.checkpoints import Checkpoint
from pretrain.deepspeed_settings import deepspeed_settings, prepare_for_zero
from pretrain.memory import keep_freed_memory
from pretrain.model.parameter_groups import param_groups
from pretrain.snapshot import Snapshot, Writers

log = logging.getLogger("pretrain.engine")


@dataclass(frozen=True)
class World:
    """This process among the workers."""

    rank: int
    size: int
    device: torch.device
    writers: Writers = field(default_factory=Writers)
    """Its place among those who write checkpoints: they speak beside the training."""


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
    updated: bool = True
    """Whether the last update took place: it is skipped where the loss or a gradient is not finite on any rank."""
    _buffers: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    """Buffers that are part of the weights (running means, say), each with its value after the last update."""

    def set_learning_rate(self, factor: float) -> float:
        """Set every group's rate to `factor` times its base rate; returns the first group's."""
        for group, base in zip(self._deepspeed.optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = factor * base
        return factor * self._base_rates[0]

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulate the gradients of one pool, averaged over ranks and over the pools of a step."""
        # A loss that is no number gives gradients that are none, whatever its derivative: then no rank updates.
        self._deepspeed.backward(loss * (1 + 0 * loss.detach()))

    def step(self) -> None:
        """End of a pool: on the last pool of a step, clip and update the weights, or skip the update on every rank."""
        last = self._deepspeed.is_gradient_accumulation_boundary()
        if last and self._clip:
            self.grad_norm = float(nn.utils.clip_grad_norm_(self.module.parameters(), self._clip))
            if not math.isfinite(self.grad_norm):
                # AdamW leaves parameters alone that have no gradient.
                self._deepspeed.zero_grad()
        self._deepspeed.step()
        if not last:
            return
        if not self._clip:
            # DeepSpeed makes no update by itself where the global norm is not finite.
            applied = self._deepspeed.was_step_applied()
            self.grad_norm = float(self._deepspeed.get_global_grad_norm() or 0.0) if applied else math.nan
        self.updated = math.isfinite(self.grad_norm)
        self.optimizer_steps += self.updated
        for buffer, kept in self._buffers:
            kept.copy_(buffer) if self.updated else buffer.copy_(kept)

    def snapshot(self, copy: bool) -> Snapshot:
        """What this rank holds of a checkpoint; no communication.

        Without `copy` it holds the live tensors, so it must be written before training goes on.
        """
        from pretrain.canonical import pieces_of

        pieces = pieces_of(self._deepspeed, self.world.rank, self.world.size)
        return Snapshot(pieces, self.world.writers, copy)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue where a checkpoint's optimizer stood; the module holds its weights already."""
        from pretrain.canonical import restore_optimizer

        restore_optimizer(self._deepspeed, checkpoint)
        self.optimizer_steps = checkpoint.state["optimizer_steps"]

    def max_over_ranks(self, value: float) -> float:
        """The largest of every rank's values, known to all."""
        if self.world.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.world.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor.item()


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
    rank, size = dist.get_rank(), dist.get_world_size()
    fewest = config.min_workers or config.num_workers
    if not fewest <= size <= config.num_workers:
        allowed = config.num_workers if fewest == config.num_workers else f"{fewest} to {config.num_workers}"
        raise UserError(
            f"engine.num_workers is {allowed} but {size} processes were started; make them equal, or set"
            " engine.min_workers for fewer"
        )
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    # Checkpoints are written in a thread, whose exchanges must not meet those of the training.
    group = dist.new_group(backend="gloo") if size > 1 else None
    return World(rank, size, device, Writers(rank, size, group))


def build_engine(model: nn.Module, config: TrainConfig, world: World) -> Engine:
    """Wrap a model, with AdamW in groups of their own rates, for training."""
    import deepspeed

    from pretrain.canonical import create_optimizer_state, persistent_buffers

    settings = deepspeed_settings(config)
    optimizer = make_optimizer(model, config.optimizer, world.device)
    base_rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        # DeepSpeed's stage 0 in bf16 begins with an update by gradients of zero, which would decay the weights.
        group["lr"] = 0.0
    num_parameters = sum(p.numel() for p in model.parameters())
    prepare_for_zero(model, config)
    wrapped, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)
    create_optimizer_state(wrapped, 0)
    if world.device.type == "cpu":
        # Not sooner: what was freed while the model was divided has gone back to the system.
        keep_freed_memory(num_parameters)
    if hasattr(wrapped.optimizer, "check_grad_overflow"):
        # ZeRO-1 and 2 in bf16 would apply gradients that are no numbers; in float32 the norm shows them anyway.
        wrapped.optimizer.check_grad_overflow = config.engine.precision == "bf16"
    buffers = [(buffer, buffer.clone()) for _, buffer in persistent_buffers(wrapped.module)]
    clips_itself = isinstance(wrapped.optimizer, torch.optim.Optimizer)
    # Without ZeRO in float32 DeepSpeed clips but keeps no norm to log: clip here instead.
    clip = (config.optimizer.clip or math.inf) if clips_itself else 0.0
    return Engine(wrapped, world, wrapped, base_rates, clip, _buffers=buffers)


def make_optimizer(model: nn.Module, config: OptimizerConfig, device: torch.device) -> torch.optim.AdamW:
    """Fused AdamW (one pass over memory; 3-4 times faster than the plain loop on CPUs too)."""
    groups = param_groups(model, config)
    fused = device.type in ("cuda", "cpu")
    return torch.optim.AdamW(groups, betas=config.betas, eps=config.eps, weight_decay=0.0, fused=fused)
