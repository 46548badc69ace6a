"""`--dry-run`: what a config will need, before it is started: parameters, memory per worker, steps per epoch, time."""

from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from configs.engine import EngineConfig
from configs.errors import UserError
from configs.teacher import TeacherConfig
from configs.train import TrainConfig
from data_pipeline.derived import DerivedReader
from data_pipeline.reader import ShardReader
from pretrain.checkpoints import open_checkpoint
from pretrain.feed import epoch_planner
from pretrain.memory_estimate import Memory, Sizes, predict_memory
from pretrain.model.shape import trunk_shape
from pretrain.throughput import matrix_elements, matrix_flops, neighbours_of_a_token, token_flops

MPNN_WIDTH = 64
"""Features of the MPNN encoder."""
STEP_OVER_GEMM = 1.8
"""A training step's time over its bare matrix products, as measured on CPUs."""


@dataclass(frozen=True)
class Estimate:
    """Predictions for one config; bytes, operations and seconds are those of one worker."""

    trunk_parameters: int
    head_parameters: int
    trained_parameters: int
    memory: Memory
    tokens_per_step: int
    """All workers."""
    pools_per_epoch: int | None
    """None where the shards are not there yet."""
    step_flops: float
    """Of the matrix products really made: what is computed again with activation checkpointing counts too."""


def estimate(config: TrainConfig) -> Estimate:
    """Predict from shapes alone; nothing is trained and no weights are made.

    Raises:
        UserError: the config's stage has no trunk to estimate.
    """
    if config.trunk is None:
        raise UserError("--dry-run: stage 'teacher' trains a small GearNet; there is nothing to estimate")
    from pretrain.model.alignment import AlignmentModel
    from pretrain.model.lora import apply_lora

    shape = trunk_shape(config.trunk)
    with torch.device("meta"):
        model = AlignmentModel(shape, config.losses, _teacher_widths(config))
        if config.trunk.lora is not None:
            apply_lora(model.trunk, config.trunk.lora)
    trunk = sum(p.numel() for p in model.trunk.parameters())
    sizes = Sizes(
        every=sum(p.numel() for p in model.parameters()),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        largest_layer=max(sum(p.numel() for p in layer.parameters()) for layer in model.trunk.layers),
    )
    data = config.data
    tokens = data.packs_per_pool // config.engine.num_workers * data.pack_tokens
    matrices, length = matrix_elements(model.trunk), _mean_length(config)
    flops = token_flops(shape, matrices, length)
    if config.engine.activation_checkpointing:
        flops += 2 * matrices.every + 4 * shape.layers * shape.width * length
    return Estimate(
        trunk_parameters=trunk,
        head_parameters=sizes.every - trunk,
        trained_parameters=sizes.trained,
        memory=predict_memory(config, shape, sizes, tokens, _reference_bytes(config)),
        tokens_per_step=data.packs_per_pool * data.pack_tokens * data.pools_per_step,
        pools_per_epoch=_pools_per_epoch(config),
        step_flops=tokens * data.pools_per_step * flops,
    )


def print_estimate(config: TrainConfig) -> None:
    """Print the table of `--dry-run` to stdout."""
    found = estimate(config)
    step_time, whole_run, note = _time_words(config, found)
    table = Table("what", "figure", title=f"{config.name}: {config.stage}", title_justify="left")
    rows: list[tuple[str, Any]] = [
        ("trunk parameters", f"{found.trunk_parameters:,}"),
        ("head parameters", f"{found.head_parameters:,}"),
        ("  of both, trained", f"{found.trained_parameters:,}"),
        ("workers, ZeRO stage, precision", _engine_words(config.engine)),
        *_memory_rows(config, found.memory),
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
    flops = _machine_flops(config)
    seconds = found.step_flops * STEP_OVER_GEMM / flops
    note = (
        f"Time: the step's matrix products at the {flops / 1e9:,.0f} GFLOP/s timed on this machine just now"
        f" ({config.engine.precision}, one worker's threads or one GPU), times {STEP_OVER_GEMM}; no communication."
    )
    return f"{seconds:.3g} s", f"{seconds * config.optimizer.steps / 3600:.3g} h", note


def step_seconds(config: TrainConfig, found: Estimate) -> float:
    """Of one optimizer update, on a device like this machine's, with a matrix product timed now."""
    return found.step_flops * STEP_OVER_GEMM / _machine_flops(config)


def _machine_flops(config: TrainConfig) -> float:
    """Of one worker's threads or GPU."""
    assert config.trunk is not None
    before = torch.get_num_threads()
    torch.set_num_threads(config.engine.cpus_per_worker)
    try:
        return matrix_flops(trunk_shape(config.trunk).width, config.data.pack_tokens, config.engine.precision)
    finally:
        torch.set_num_threads(before)


def _memory_rows(config: TrainConfig, memory: Memory) -> list[tuple[str, Any]]:
    """Of a GPU and its process apart, or of the process alone."""
    on_gpu = config.engine.gpus_per_worker > 0
    host = [("  process", memory.process), ("  start", memory.start), ("  checkpoint being written", memory.snapshot)]
    parts = [
        ("  weights, gradients, optimizer", memory.state),
        ("  layers gathered at a time", memory.gathered),
        ("  activations", memory.activations),
        ("  gradients in communication", memory.bucket + memory.copies),
        ("  reference model", memory.reference),
    ]
    if on_gpu:
        on_host = memory.process + max(memory.start, memory.snapshot)
        parts = [("memory per GPU", memory.training), *parts, ("memory of the host per GPU", on_host), *host]
    else:
        parts = [("memory per worker", memory.peak), *parts, *host]
    return [(what, _gib(num_bytes)) for what, num_bytes in parts]


def _mean_length(config: TrainConfig) -> float:
    """Tokens of a token's own protein: of the shards, or where they are not there half of the longest."""
    try:
        with ShardReader(config.data.shards, False, config.data.cache) as reader:
            return neighbours_of_a_token(reader, config)
    except UserError:
        return min(config.data.max_residues, config.data.pack_tokens) / 2


def _teacher_widths(config: TrainConfig) -> tuple[int, ...]:
    """Features of every teacher: of its derived column where that exists, else as the config would give them."""
    teachers = (config.teacher, *config.more_teachers)
    try:
        with ShardReader(config.data.shards, False, config.data.cache) as reader:
            return tuple(_column_width(reader, teacher) or _configured_width(config, teacher) for teacher in teachers)
    except UserError:
        return tuple(_configured_width(config, teacher) for teacher in teachers)


def _column_width(reader: ShardReader, teacher: TeacherConfig) -> int | None:
    if teacher.column is None:
        return None
    try:
        with closing(DerivedReader(reader, teacher.column, verify=False)) as column:
            return column.facts.get("width")
    except UserError:
        return None


def _configured_width(config: TrainConfig, teacher: TeacherConfig) -> int:
    """Features that a teacher gives, or that its column of principal components would have."""
    if teacher.column is not None and config.derive.form == "pca" and config.derive.pca_width is not None:
        return config.derive.pca_width
    return MPNN_WIDTH if teacher.kind == "mpnn" else teacher.gearnet.features


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
