"""`--dry-run`: what a config will need, before it is started: parameters, memory per worker, steps per epoch, time."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from configs.engine import EngineConfig
from configs.errors import UserError
from configs.train import TrainConfig
from data_pipeline.derived import DerivedReader
from data_pipeline.reader import ShardReader
from pretrain.checkpoints import open_checkpoint
from pretrain.feed import epoch_planner

ADAM_BYTES = 8
"""Two float32 moments per parameter."""
ACTIVATION_ELEMENTS = 19
"""Kept for backward per token, layer and unit of width: norms 2 + 2, q k v 3, rotated q k 2, attention 1, residuals 1,
feed-forward 4 + 4; attention itself is recomputed by the fused kernels."""
STEP_OVER_GEMM = 1.8
"""A training step's time over its bare matrix products, as measured on CPUs."""
_BENCH_SECONDS = 0.5


@dataclass(frozen=True)
class Estimate:
    """Predictions for one config; bytes and seconds are those of one worker."""

    trunk_parameters: int
    head_parameters: int
    state_bytes: int
    """Weights, gradients and optimizer state as the ZeRO stage spreads them."""
    gathered_bytes: int
    """ZeRO stage 3: the layers that are whole at one moment."""
    activation_bytes: int
    reference_bytes: int
    tokens_per_step: int
    pools_per_epoch: int | None
    """None where the shards are not there yet."""
    step_flops: float
    """Of one worker."""

    @property
    def total_bytes(self) -> int:
        return self.state_bytes + self.gathered_bytes + self.activation_bytes + self.reference_bytes


def estimate(config: TrainConfig) -> Estimate:
    """Predict from shapes alone; nothing is trained and no weights are made.

    Raises:
        UserError: the config's stage has no trunk to estimate.
    """
    if config.trunk is None:
        raise UserError("--dry-run: stage 'teacher' trains a small GearNet; there is nothing to estimate")
    from pretrain.model.alignment import AlignmentModel
    from pretrain.model.shape import trunk_shape

    shape = trunk_shape(config.trunk)
    with torch.device("meta"):
        model = AlignmentModel(shape, config.losses, _teacher_width(config))
    trunk = sum(p.numel() for p in model.trunk.parameters())
    whole = sum(p.numel() for p in model.parameters())
    largest_layer = max(sum(p.numel() for p in layer.parameters()) for layer in model.trunk.layers)
    packs = config.data.packs_per_pool // config.engine.num_workers
    tokens = packs * config.data.pack_tokens
    value = 4 if config.engine.precision == "fp32" else 2
    matrices = sum(p.numel() for n, p in model.trunk.named_parameters() if p.ndim == 2 and "embedding" not in n)
    attention = 12 * shape.layers * shape.width * min(config.data.max_residues, config.data.pack_tokens) / 2
    return Estimate(
        trunk_parameters=trunk,
        head_parameters=whole - trunk,
        state_bytes=state_bytes(whole, config.engine),
        gathered_bytes=2 * largest_layer * value if config.engine.zero_stage == 3 else 0,
        activation_bytes=tokens * shape.width * shape.layers * ACTIVATION_ELEMENTS * value,
        reference_bytes=_reference_bytes(config),
        tokens_per_step=config.data.packs_per_pool * config.data.pack_tokens * config.data.pools_per_step,
        pools_per_epoch=_pools_per_epoch(config),
        step_flops=tokens * config.data.pools_per_step * (6 * matrices + attention),
    )


def state_bytes(num_parameters: int, engine: EngineConfig) -> int:
    """Bytes of weights, gradients, float32 copies and moments on one worker.

    Stage 1 divides copies and moments by the number of workers, stage 2 also gradients, stage 3 also weights. DeepSpeed
    keeps a float32 copy beside the weights in every case but stage 0 in float32.
    """
    value = 4 if engine.precision == "fp32" else 2
    copies = 0 if engine.zero_stage == 0 and engine.precision == "fp32" else 4
    share = engine.num_workers
    parts = {
        "weights": value / (share if engine.zero_stage >= 3 else 1),
        "gradients": value / (share if engine.zero_stage >= 2 else 1),
        "optimizer": (copies + ADAM_BYTES) / (share if engine.zero_stage >= 1 else 1),
    }
    return int(num_parameters * sum(parts.values()))


def print_estimate(config: TrainConfig) -> None:
    """Print the table of `--dry-run` to stdout."""
    found = estimate(config)
    step_time, whole_run, note = _time_words(config, found)
    table = Table("what", "figure", title=f"{config.name}: {config.stage}", title_justify="left")
    rows: list[tuple[str, Any]] = [
        ("trunk parameters", f"{found.trunk_parameters:,}"),
        ("head parameters", f"{found.head_parameters:,}"),
        ("workers, ZeRO stage, precision", _engine_words(config.engine)),
        ("memory per worker", f"{_gib(found.total_bytes)} beside the process itself"),
        ("  weights, gradients, optimizer", _gib(found.state_bytes)),
        ("  layers gathered at a time", _gib(found.gathered_bytes)),
        ("  activations", _gib(found.activation_bytes)),
        ("  reference model", _gib(found.reference_bytes)),
        ("tokens per step, all workers", f"{found.tokens_per_step:,}"),
        ("steps per epoch", _steps_words(config, found)),
        ("step time", step_time),
        (f"whole run, {config.optimizer.steps:,} steps", whole_run),
    ]
    for what, figure in rows:
        table.add_row(what, str(figure))
    console = Console()
    console.print(table)
    console.print(note, highlight=False)


def _time_words(config: TrainConfig, found: Estimate) -> tuple[str, str, str]:
    """Step time, run time, and how they were found."""
    if config.engine.gpus_per_worker and not torch.cuda.is_available():
        unknown = "unknown here"
        return unknown, unknown, "Time: the config asks for GPUs and this machine has none to measure."
    flops = matrix_flops(config)
    seconds = found.step_flops * STEP_OVER_GEMM / flops
    note = (
        f"Time: the step's matrix products at the {flops / 1e9:,.0f} GFLOP/s timed on this machine just now"
        f" ({config.engine.precision}, one worker's threads or one GPU), times {STEP_OVER_GEMM}; no communication."
    )
    return f"{seconds:.3g} s", f"{seconds * config.optimizer.steps / 3600:.3g} h", note


def matrix_flops(config: TrainConfig) -> float:
    """Floating-point operations per second of a matrix product of the trunk's shape, timed here and now."""
    from pretrain.model.shape import trunk_shape

    assert config.trunk is not None
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    dtype = torch.float32 if config.engine.precision == "fp32" else torch.bfloat16
    width, rows = trunk_shape(config.trunk).width, config.data.pack_tokens
    before = torch.get_num_threads()
    torch.set_num_threads(config.engine.cpus_per_worker)
    try:
        left = torch.ones(rows, width, device=device, dtype=dtype)
        right = torch.ones(width, 4 * width, device=device, dtype=dtype)
        left @ right
        begun, count = time.perf_counter(), 0
        while time.perf_counter() - begun < _BENCH_SECONDS:
            left @ right
            count += 1
            if on_gpu:
                torch.cuda.synchronize()
        return 2.0 * rows * width * 4 * width * count / (time.perf_counter() - begun)
    finally:
        torch.set_num_threads(before)


def _teacher_width(config: TrainConfig) -> int:
    """Of the derived column where it exists, else as the config's teacher would give it."""
    try:
        with ShardReader(config.data.shards, False, config.data.cache) as reader:
            if config.teacher.column is not None:
                width = DerivedReader(reader, config.teacher.column, verify=False).facts.get("width")
                return int(width) if width else _configured_width(config)
    except UserError:
        return _configured_width(config)
    return _configured_width(config)


def _configured_width(config: TrainConfig) -> int:
    return 64 if config.teacher.kind == "mpnn" else config.teacher.gearnet.width


def _pools_per_epoch(config: TrainConfig) -> int | None:
    try:
        with ShardReader(config.data.shards, False, config.data.cache) as reader:
            return len(epoch_planner(reader, config.data, config.seed)(0))
    except UserError:
        return None


def _reference_bytes(config: TrainConfig) -> int:
    if config.selection.mode == "off" or config.selection.reference is None:
        return 0
    try:
        files = open_checkpoint(config.selection.reference, verify=False).manifest["files"]
    except UserError:
        return 0
    return sum(file["bytes"] for name, file in files.items() if name.startswith("weights-"))


def _steps_words(config: TrainConfig, found: Estimate) -> str:
    if found.pools_per_epoch is None:
        return "unknown: the shards are not there"
    steps = found.pools_per_epoch / config.data.pools_per_step
    return f"{steps:,.1f} ({config.optimizer.steps / steps:,.1f} epochs in all)"


def _engine_words(engine: EngineConfig) -> str:
    return f"{engine.num_workers}, {engine.zero_stage}, {engine.precision}"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.3f} GiB"
