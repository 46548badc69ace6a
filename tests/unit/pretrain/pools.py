"""Random pools and head outputs for the tests of losses, and a pool's division among ranks."""

import math
from dataclasses import fields, replace
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from pretrain.batch import Batch, Packed

NUM_TOKENS = 33
NUM_STATES = 20


def make_batch(lengths: list[int], seed: int) -> Batch:
    """A pool with invalid residues, masked tokens and repeated clusters (0, 1, 2, 0, 1, 2, ...)."""
    generator = torch.Generator().manual_seed(seed)
    n, tokens = sum(lengths), sum(lengths) + 2 * len(lengths)
    protein = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    threedi = torch.randint(0, NUM_STATES, (n,), generator=generator)
    threedi[torch.rand(n, generator=generator) < 0.1] = -1
    num_masked = max(n // 7, 1)
    return Batch(
        packed=Packed(torch.zeros(tokens, dtype=torch.int64), tuple(length + 2 for length in lengths)),
        masked_index=torch.randperm(tokens, generator=generator)[:num_masked],
        masked_target=torch.randint(0, NUM_TOKENS, (num_masked,), generator=generator),
        residue_index=torch.arange(n),
        threedi=threedi,
        structure_valid=torch.rand(n, generator=generator) > 0.15,
        teacher=None,
        protein=protein,
        cluster=protein % 3,
        bfactor=torch.full((n,), float("nan")),
    )


def make_leaves(batch: Batch, seed: int, scale: float, width: int = 12) -> dict[str, torch.Tensor]:
    """Random float64 values that stand for what heads put out before normalisation."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "mlm_logits": (len(batch.masked_target), NUM_TOKENS),
        "threedi_logits": (len(batch.threedi), NUM_STATES),
        "sequence": (len(batch.threedi), width),
        "structure": (len(batch.threedi), width),
    }
    leaves = {name: torch.randn(*shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    return leaves | {"log_scale": torch.tensor(math.log(scale), dtype=torch.float64)}


def make_outputs(leaves: dict[str, torch.Tensor], gradient: bool = True) -> SimpleNamespace:
    """Head outputs as the model gives them; gradients end in the leaves, kept as `.leaves`."""
    leaves = {name: leaf.clone().requires_grad_(gradient) for name, leaf in leaves.items()}
    return SimpleNamespace(
        leaves=leaves,
        mlm_logits=leaves["mlm_logits"],
        threedi_logits=leaves["threedi_logits"],
        sequence_projection=F.normalize(leaves["sequence"], dim=-1),
        structure_projection=F.normalize(leaves["structure"], dim=-1),
        logit_scale=leaves["log_scale"].exp(),
    )


def share(batch: Batch, leaves: dict[str, torch.Tensor], residues: slice, masked: slice) -> tuple[Batch, dict]:
    """One rank's part of a pool: some of its residues and some of its masked tokens."""
    by_token = {"masked_index", "masked_target"}
    by_residue = {f.name for f in fields(Batch)} - by_token - {"packed", "teacher"}
    part = replace(
        batch,
        **{name: getattr(batch, name)[masked] for name in by_token},
        **{name: getattr(batch, name)[residues] for name in by_residue},
    )
    cuts = {"mlm_logits": masked, "threedi_logits": residues, "sequence": residues, "structure": residues}
    return part, {name: leaf[cuts[name]] if name in cuts else leaf for name, leaf in leaves.items()}
