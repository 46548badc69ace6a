"""How well a step uses the machine: figures that stand beside the losses in every row of metrics.jsonl."""

import time
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from configs.engine import EngineConfig
from configs.train import TrainConfig
from data_pipeline.reader import ShardReader
from pretrain.feed import chosen_chains
from pretrain.memory import peak_resident_bytes
from pretrain.model.linear import linear
from pretrain.model.shape import TrunkShape, trunk_shape
from pretrain.sampler import SPECIAL_TOKENS

PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "GH200": 989.0, "B200": 2250.0, "A100": 312.0, "L40S": 362.0, "A10": 125.0}
"""Dense bf16 matrix products by the makers' data sheets, in 10^12 operations per second."""
_TIMED_SECONDS = 0.3


@dataclass(frozen=True)
class Meter:
    """Figures of one run's steps; equal on every rank but for `memory_gib`."""

    budget_tokens: int
    """That the packs of one step could hold, all workers."""
    token_flops: float
    """Of the matrix products that a token needs, forward and backward; 0 where there is no trunk."""
    peak_flops: float
    """Operations per second of all workers."""
    peak_name: str
    """`mfu`: over the maker's figure for the device; `gemm_fraction`: over a product that was timed here."""
    on_gpu: bool

    def figures(self, num_tokens: int, seconds: float) -> dict[str, float]:
        """Token utilisation, use of the device's arithmetic and peak memory, of a step with so many tokens in all."""
        memory = torch.cuda.max_memory_allocated() if self.on_gpu else peak_resident_bytes()
        found = {"memory_gib": round(memory / 2**30, 3)}
        if self.token_flops:
            found["token_utilisation"] = round(num_tokens / self.budget_tokens, 4)
            found[self.peak_name] = round(num_tokens * self.token_flops / seconds / self.peak_flops, 4)
        return found


def open_meter(config: TrainConfig, model: nn.Module) -> Meter:
    """The meter of a run; times a matrix product where the device's peak is not known, in a third of a second.

    Args:
        model: the stage's, wrapped or not; without a `trunk` only memory is measured.
    """
    data, workers, on_gpu = config.data, config.engine.num_workers, torch.cuda.is_available()
    budget = data.packs_per_pool * data.pack_tokens * data.pools_per_step
    if config.trunk is None:
        return Meter(budget, 0.0, 1.0, "", on_gpu)
    with ShardReader(data.shards, False, data.cache) as reader:
        length = neighbours_of_a_token(reader, config)
    shape = trunk_shape(config.trunk)
    peak, name = device_peak(config.engine, shape.width, data.pack_tokens)
    return Meter(budget, token_flops(shape, matrix_elements(model.trunk), length), workers * peak, name, on_gpu)


class MatrixElements(NamedTuple):
    """Elements of the matrices that every token is multiplied with: those of the layers."""

    every: int
    trainable: int


def matrix_elements(trunk: nn.Module) -> MatrixElements:
    """Of a trunk, also one whose parameters ZeRO-3 has divided."""
    matrices = [p for p in trunk.layers.parameters() if len(getattr(p, "ds_shape", p.shape)) == 2]
    sizes = [getattr(p, "ds_numel", p.numel()) for p in matrices]
    return MatrixElements(sum(sizes), sum(n for n, p in zip(sizes, matrices, strict=True) if p.requires_grad))


def token_flops(shape: TrunkShape, matrices: MatrixElements, length: float) -> float:
    """Floating-point operations of one token, forward and backward.

    Two per matrix element forward, two for the gradient of its input and, where it is trained, two for its own; of
    attention 12 L D n.

    Args:
        length: n, the tokens of a token's own protein, on average over tokens.
    """
    return 4.0 * matrices.every + 2.0 * matrices.trainable + 12.0 * shape.layers * shape.width * length


def neighbours_of_a_token(reader: ShardReader, config: TrainConfig) -> float:
    """Tokens of the protein that a token belongs to, on average over tokens: sum n^2 / sum n."""
    _, residues = chosen_chains(reader, config.data)
    lengths = residues.clip(max=config.data.max_residues) + SPECIAL_TOKENS
    return float((lengths**2).sum() / lengths.sum())


def device_peak(engine: EngineConfig, width: int, rows: int) -> tuple[float, str]:
    """Operations per second of one worker, and what they are called in the figures (`mfu` or `gemm_fraction`)."""
    if torch.cuda.is_available() and engine.precision == "bf16":
        device = torch.cuda.get_device_name()
        for name, tflops in PEAK_TFLOPS.items():
            if name in device:
                return tflops * 1e12, "mfu"
    return matrix_flops(width, rows, engine.precision), "gemm_fraction"


def matrix_flops(width: int, rows: int, precision: str, seconds: float = _TIMED_SECONDS) -> float:
    """Operations per second of [rows, width] @ [width, 4 width] on this process's threads or GPU, timed now."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    left = torch.ones(rows, width, device=device, dtype=dtype)
    right = torch.ones(4 * width, width, device=device, dtype=dtype)
    linear(left, right)
    best, begun = float("inf"), time.perf_counter()
    # The fastest of several: other work on the machine only ever makes one slower.
    while time.perf_counter() - begun < seconds:
        if on_gpu:
            torch.cuda.synchronize()
        started = time.perf_counter()
        linear(left, right)
        if on_gpu:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2.0 * rows * width * 4 * width / best
