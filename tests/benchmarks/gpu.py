"""Training speed of the trunks on one GPU: real tokens per second, model FLOP utilisation, peak memory.

Every model is trained in bf16 on the same packs (lengths spread like those of protein chains, packed by the sampler),
forward, MLM loss on the masked residues, backward, clipping and fused AdamW on bf16 weights (float32 copies of weights
and moments, as a bf16 run keeps them, would take 12 more bytes per parameter). `base` is packed, with the attention
that `auto` takes, nothing recomputed or compiled; each other variant changes one thing:

* `padded`: the same chains sorted by length, in batches padded to their longest, through the same trunk;
* `sdpa`: attention protein by protein; `checkpointing`: activations recomputed; `compiled`: torch.compile of layers.

Utilisation counts the matrix products at true lengths, three times the forward, over the device's stated dense bf16
rate (where its name is known) and over the rate of a large product measured here. `--device cpu` with a small model
and few tokens runs every line without a GPU and says nothing about speed.
"""

import argparse
import statistics
import sys
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.engine import EngineConfig, OptimizerConfig
from configs.losses import LossConfig
from configs.training_data import DataConfig
from configs.trunk import ESM2_SIZES, TrunkConfig
from pretrain.batch import Packed
from pretrain.engine import make_optimizer
from pretrain.model.alignment import AlignmentModel
from pretrain.model.execution import apply_execution
from pretrain.model.shape import TrunkShape, trunk_shape
from pretrain.sampler import SPECIAL_TOKENS, plan_epoch
from tests.benchmarks._timing import report

MODELS = {name.split("_")[2]: name for name in ESM2_SIZES}
"""Size, such as 650M, to published name."""
DEFAULT_MODELS = ("8M", "35M", "150M", "650M")
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "padded": {},
    "sdpa": {"attention": "sdpa"},
    "checkpointing": {"activation_checkpointing": True},
    "compiled": {"compile": True},
}
STATED_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "A6000": 155e12, "L4": 121e12}
"""Dense bf16 operations per second that vendors state, SXM variants where there are several."""
MASKED_EVERY = 7
WARMUP = 3


def chain_lengths(num_tokens: int, longest: int) -> np.ndarray:
    """Tokens of chains spread like those of proteins, log-normal around 200 residues, `num_tokens` or a few more."""
    residues = np.random.default_rng(0).lognormal(5.3, 0.6, 8 + num_tokens // 50)
    lengths = np.clip(residues, 30, longest - SPECIAL_TOKENS).astype(np.int64)
    return lengths[: int(np.searchsorted((lengths + SPECIAL_TOKENS).cumsum(), num_tokens)) + 1]


def make_packs(num_steps: int, pack_tokens: int, padded: bool) -> list[tuple[Packed, tuple[int, ...]]]:
    """Packs and the true lengths in them; in padded ones all chains are as long as the longest, padding included."""
    residues = chain_lengths(num_steps * pack_tokens, min(pack_tokens, 1024))
    vocabulary, generator = trunk_shape(TrunkConfig(model=MODELS["8M"])).alphabet, torch.Generator().manual_seed(0)

    def pack(lengths: list[int], real: list[int]) -> tuple[Packed, tuple[int, ...]]:
        tokens = torch.randint(4, 24, (sum(lengths),), generator=generator)
        tokens[::MASKED_EVERY] = vocabulary.mask_id
        return Packed(tokens, tuple(lengths)), tuple(real)

    if not padded:
        config = DataConfig(shards="unused", max_residues=pack_tokens - 2, pack_tokens=pack_tokens, packs_per_pool=1)
        plan = plan_epoch(residues, 0, 0, config)
        lengths = [[crop.length + SPECIAL_TOKENS for crop in plan[k][0]] for k in range(len(plan))]
        return [pack(each, each) for each in lengths]
    ordered, packs = sorted((residues + SPECIAL_TOKENS).tolist()), []
    while ordered:
        group = [ordered.pop()]
        while ordered and group[0] * (len(group) + 1) <= pack_tokens:
            group.append(ordered.pop())
        packs.append(pack([group[0]] * len(group), group))
    return packs


def forward_flops(shape: TrunkShape, lengths: tuple[int, ...], masked: int) -> float:
    """Operations of the matrix products of one forward: linear layers, attention, language head on masked rows."""
    tokens, width = sum(lengths), shape.width
    linear = 4 * width**2 + (2 if shape.family == "esm2" else 3) * width * shape.inner_width
    attention = 2 * width * sum(n * n for n in lengths)
    head = masked * width * (width + len(shape.alphabet))
    return 2.0 * (shape.layers * (tokens * linear + attention) + head)


def measured_flops(device: torch.device) -> float:
    """Operations per second of a large bf16 product, the best of some."""
    size = 8192 if device.type == "cuda" else 256
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = min(timed(device, lambda: a @ b) for _ in range(20))
    return 2.0 * size**3 / best


def stated_flops(device: torch.device) -> float | None:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((rate for part, rate in STATED_FLOPS.items() if part in name), None)


def timed(device: torch.device, run: Any) -> float:
    """Seconds until the device has done it."""
    synchronise(device)
    begun = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - begun


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def train_step(model: AlignmentModel, optimizer: torch.optim.Optimizer, packed: Packed, masked: Tensor) -> None:
    optimizer.zero_grad()
    logits = model.trunk.lm_logits(model.trunk(packed).index_select(0, masked))
    F.cross_entropy(logits.float(), packed.tokens[masked] % 20 + 4).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def measure(name: str, variant: str, device: torch.device, num_steps: int, pack_tokens: int) -> dict[str, Any]:
    """Speed and memory of one variant of one model; {"error": ...} where it does not fit or cannot run."""
    shape = trunk_shape(TrunkConfig(model=name))
    torch.manual_seed(0)
    engine = EngineConfig(precision="bf16", zero_stage=1, **VARIANTS[variant])
    try:
        model = AlignmentModel(shape, LossConfig(structure=0, contrast=0)).to(device, torch.bfloat16)
        apply_execution(model, engine, device)
        optimizer = make_optimizer(model, OptimizerConfig(), device)
        steps = []
        for packed, real in make_packs(num_steps, pack_tokens, variant == "padded"):
            masked = torch.arange(0, len(packed.tokens), MASKED_EVERY, device=device)
            steps.append((Packed(packed.tokens.to(device), packed.lengths), masked, real))
        for packed, masked, _ in steps[:WARMUP]:
            train_step(model, optimizer, packed, masked)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds = [timed(device, lambda s=s: train_step(model, optimizer, s[0], s[1])) for s in steps]
    except torch.cuda.OutOfMemoryError:
        return {"error": "out of memory"}
    tokens = sum(sum(real) for *_, real in steps)
    flops = sum(3 * forward_flops(shape, real, sum(real) // MASKED_EVERY) for *_, real in steps)
    return {
        "tokens_per_second": tokens / sum(seconds),
        "step_seconds": statistics.median(seconds),
        "real_token_fraction": tokens / sum(len(packed.tokens) for packed, *_ in steps),
        "flops_per_second": flops / sum(seconds),
        "peak_gib": torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(DEFAULT_MODELS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--tokens", type=int, default=16384, help="of a step")
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("error: no CUDA device; run this on a machine with one, or --device cpu for a dry run", file=sys.stderr)
        return 2
    device = torch.device(given.device)
    peak, stated = measured_flops(device), stated_flops(device)
    found: dict[str, Any] = {}
    for model in given.models:
        for variant in given.variants:
            figures = measure(MODELS[model], variant, device, given.steps, given.tokens)
            if "error" not in figures:
                rate = figures.pop("flops_per_second")
                figures["mfu_of_measured"] = rate / peak
                figures["mfu_of_stated"] = rate / stated if stated else None
            found[f"{model} {variant}"] = figures
            print(f"{model:>5} {variant:<14} {figures}", flush=True)
            if device.type == "cuda":
                torch.cuda.empty_cache()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    report("gpu", {"device": name, "measured_tflops": peak / 1e12, "step_tokens": given.tokens, "figures": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
