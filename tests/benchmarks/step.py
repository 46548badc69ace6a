"""A training step over real chains against its bare matrix products and against transformers' padded ESM-2.

Chains are sorted by length and cut into batches of equal numbers of residues, as the best padded training would do;
evenly spaced ones of these batches are the peer's steps, and the same chains, packed by our sampler, are ours. Every
step is a forward, the MLM loss, a backward, clipping and fused AdamW, in one thread; figures are ratios of CPU time.

* `over_gemm_floor`: our step over the matrix products it cannot do without, at true lengths, forward and backward:
  those of the linear layers, and QK^T, PV and their four backward products per chain and head. They run bare, each
  the fastest of the ways at hand (oneDNN or what `torch.mm` calls; all heads at once or one by one), measured on the
  spot; `over_torch_gemm_floor` takes `torch.mm` and `torch.bmm` for all;
* `speedup_vs_transformers_sdpa`: real tokens per second against `EsmForMaskedLM` with its sdpa attention;
* `bf16_speedup`: our step in bf16 against float32; `bf16_units` says what the CPU has for it.

Each is the worse of the two sizes; `sizes` has both. Wall times are there too. All run in one process, which keeps
freed memory for the next step, so the peer gains by that too. Takes about 6 GiB, most of it the peer's activations.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.engine import EngineConfig, OptimizerConfig
from configs.losses import LossConfig
from configs.training_data import DataConfig
from configs.trunk import ESM2_SIZES, TrunkConfig
from data_pipeline.schema import Sample
from pretrain.batch import Batch
from pretrain.collate import Item, collate
from pretrain.engine import make_optimizer
from pretrain.model.alignment import AlignmentModel
from pretrain.model.execution import apply_execution
from pretrain.model.shape import TrunkShape, trunk_shape
from pretrain.sampler import SPECIAL_TOKENS, plan_epoch, rank_crops
from pretrain.vocab import alphabet
from tests.benchmarks._chains import real_chains
from tests.benchmarks._floor import gemm_floor
from tests.benchmarks._timing import Timing, interleaved, report

MODELS = {"8M": "esm2_t6_8M_UR50D", "35M": "esm2_t12_35M_UR50D"}
DATA = DataConfig(shards="unused", max_residues=1022)
"""Chains are cropped to what ESM-2 was trained on."""
STEP_TOKENS = int(0.98 * DATA.pack_tokens * DATA.packs_per_pool)
"""Of a padded step, so that as many pools hold the same chains."""
MASK_FRACTION = 0.15
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Task:
    """The same chains as padded batches and as pools of packs."""

    padded: list[tuple[Tensor, Tensor, Tensor]]
    """Tokens, attention mask and labels [P, L] of each of the peer's steps."""
    pools: list[Batch]
    tokens: int
    """Real tokens, of either."""


def make_task(num_steps: int) -> Task:
    """`num_steps` of the evenly spaced batches of all real chains sorted by length, and as many residues in pools."""
    sequences = sorted((s[: DATA.max_residues] for s, _ in real_chains()), key=len)
    lengths = np.array([len(sequence) for sequence in sequences])
    step_of = (lengths + SPECIAL_TOKENS).cumsum() // STEP_TOKENS
    chosen = ((np.arange(num_steps) + 0.5) / num_steps * step_of[-1]).astype(int)
    groups = [[sequences[i] for i in np.flatnonzero(step_of == step)] for step in chosen]
    chains = [sequence for group in groups for sequence in group]
    plan = plan_epoch(np.array([len(chain) for chain in chains]), 0, 0, DATA)
    samples = [make_sample(chain) for chain in chains]
    pools = [
        collate([Item(crop, samples[crop.sample], 0, None) for crop in rank_crops(plan[k], 0, 1)],
                alphabet("esm2"), MASK_FRACTION, 0, 0)
        for k in range(len(plan))
    ]  # fmt: skip
    padded = [pad(group) for group in groups]
    tokens = sum(len(pool.packed.tokens) for pool in pools)
    assert tokens == sum(int(mask.sum()) for _, mask, _ in padded), "both see the same tokens"
    return Task(padded, pools, tokens)


def make_sample(sequence: str) -> Sample:
    """A chain without a structure."""
    nothing = np.zeros(len(sequence), dtype=bool)
    return Sample(
        key="0", sequence=sequence, threedi="D" * len(sequence), coordinates=np.zeros((len(sequence), 5, 3), np.int32),
        bfactor=np.full(len(sequence), np.nan, np.float32), valid=nothing, threedi_valid=nothing, graphs={}, facts={},
        cluster=0, high_quality=True,
    )  # fmt: skip


def pad(chains: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, attention mask and labels [P, L] of one padded batch, masked as `collate` does."""
    vocabulary = alphabet("esm2")
    rng = np.random.default_rng(0)
    longest = max(map(len, chains)) + SPECIAL_TOKENS
    tokens = torch.full((len(chains), longest), vocabulary.pad_id)
    labels = torch.full_like(tokens, -100)
    for row, chain in enumerate(chains):
        residues = torch.from_numpy(vocabulary.encode(chain)).long()
        masked = torch.from_numpy(rng.choice(len(chain), max(1, round(MASK_FRACTION * len(chain))), replace=False))
        labels[row, 1 + masked] = residues[masked]
        residues[masked] = vocabulary.mask_id
        tokens[row, : len(chain) + 2] = torch.tensor([vocabulary.cls_id, *residues, vocabulary.eos_id])
    return tokens, (tokens != vocabulary.pad_id).long(), labels


def train_steps(model: nn.Module, optimizer: torch.optim.Optimizer, losses: list[Callable[[], Tensor]]) -> None:
    """One step for each loss."""
    for loss in losses:
        optimizer.zero_grad()
        loss().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def our_steps(shape: TrunkShape, task: Task, dtype: torch.dtype) -> Callable[[], None]:
    torch.manual_seed(0)
    model = AlignmentModel(shape, LossConfig(structure=0, contrast=0)).to(dtype)
    apply_execution(model, EngineConfig(), CPU)

    def loss(pool: Batch) -> Tensor:
        return F.cross_entropy(model(pool).mlm_logits.float(), pool.masked_target)

    optimizer = make_optimizer(model, OptimizerConfig(), CPU)
    return partial(train_steps, model, optimizer, [partial(loss, pool) for pool in task.pools])


def transformers_steps(name: str, task: Task) -> Callable[[], None]:
    from transformers import EsmConfig, EsmForMaskedLM

    layers, width, heads = ESM2_SIZES[name]
    vocabulary = alphabet("esm2")
    config = EsmConfig(
        vocab_size=len(vocabulary), mask_token_id=vocabulary.mask_id, pad_token_id=vocabulary.pad_id, hidden_size=width,
        num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * width, layer_norm_eps=1e-5,
        position_embedding_type="rotary", token_dropout=True, emb_layer_norm_before=False, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    model = EsmForMaskedLM(config).train()

    def loss(tokens: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        return model(tokens, attention_mask=mask, labels=labels).loss

    used = [parameter for label, parameter in model.named_parameters() if "contact_head" not in label]
    optimizer = torch.optim.AdamW(used, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    return partial(train_steps, model, optimizer, [partial(loss, *batch) for batch in task.padded])


def bf16_units() -> str:
    """What the CPU has to multiply bf16 numbers: matrix units (AMX), vector instructions, or nothing."""
    with open("/proc/cpuinfo") as info:
        flags = next((line for line in info if line.startswith("flags")), "").split()
    return "amx_bf16" if "amx_bf16" in flags else "avx512_bf16" if "avx512_bf16" in flags else "none"


def measure(name: str, num_steps: int, rounds: int) -> dict[str, Any]:
    task, shape = make_task(num_steps), trunk_shape(TrunkConfig(model=name))
    contestants = {
        "ours": our_steps(shape, task, torch.float32),
        "bf16": our_steps(shape, task, torch.bfloat16),
        "transformers": transformers_steps(name, task),
        **gemm_floor(shape, task.pools),
    }
    timings = interleaved(contestants, rounds=rounds)
    return {"real_tokens": task.tokens, **figures(timings, task)}


def figures(timings: dict[str, Timing], task: Task) -> dict[str, Any]:
    cpu = {name: timing.cpu_seconds for name, timing in timings.items()}
    floors = {name: seconds for name, seconds in cpu.items() if name.startswith("floor")}
    padded = sum(tokens.numel() for tokens, _, _ in task.padded)
    return {
        "over_gemm_floor": cpu["ours"] / floors["floor"],
        "over_torch_gemm_floor": cpu["ours"] / floors["floor_torch"],
        "speedup_vs_transformers_sdpa": cpu["transformers"] / cpu["ours"],
        "bf16_speedup": cpu["ours"] / cpu["bf16"],
        "tokens_per_cpu_second": task.tokens / cpu["ours"],
        "transformers_padding_fraction": 1 - task.tokens / padded,
        "wall_seconds": {label: round(timing.wall_seconds, 3) for label, timing in timings.items()},
        "cpu_seconds": {label: round(seconds, 3) for label, seconds in cpu.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2, help="of each contestant in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", nargs="+", choices=MODELS, default=list(MODELS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    sizes = {size: measure(MODELS[size], given.steps, given.rounds) for size in given.sizes}
    worst = {
        "over_gemm_floor": max(found["over_gemm_floor"] for found in sizes.values()),
        "over_torch_gemm_floor": max(found["over_torch_gemm_floor"] for found in sizes.values()),
        "speedup_vs_transformers_sdpa": min(found["speedup_vs_transformers_sdpa"] for found in sizes.values()),
        "bf16_speedup": min(found["bf16_speedup"] for found in sizes.values()),
    }
    report("step", {**worst, "bf16_units": bf16_units(), "threads": torch.get_num_threads(), "sizes": sizes})


if __name__ == "__main__":
    main()
