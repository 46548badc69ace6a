"""Random pools and head outputs for the tests of losses, and a pool's division among ranks."""

import math
from dataclasses import fields, replace
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from pretrain.batch import Batch, Packed
from pretrain.model.alignment import Projected

NUM_TOKENS = 33
NUM_STATES = 20


def make_batch(lengths: list[int], seed: int, proteins: list[int] | None = None) -> Batch:
    """A pool with invalid residues and masked tokens.

    Args:
        proteins: number of each chain's protein, which may stand in the pool twice; its cluster is the number modulo 3.
            None: 0, 1, 2, 3, ...
    """
    generator = torch.Generator().manual_seed(seed)
    n, tokens = sum(lengths), sum(lengths) + 2 * len(lengths)
    chain = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    protein = chain if proteins is None else torch.tensor(proteins)[chain]
    threedi = torch.randint(0, NUM_STATES, (n,), generator=generator)
    threedi[torch.rand(n, generator=generator) < 0.1] = -1
    num_masked = max(n // 7, 1)
    return Batch(
        packed=Packed(torch.zeros(tokens, dtype=torch.int64), tuple(length + 2 for length in lengths)),
        masked_index=torch.randperm(tokens, generator=generator)[:num_masked],
        masked_target=torch.randint(0, NUM_TOKENS, (num_masked,), generator=generator),
        residue_index=torch.arange(n) + 2 * chain + 1,
        threedi=threedi,
        structure_valid=torch.rand(n, generator=generator) > 0.15,
        teacher=None,
        protein=protein,
        cluster=protein % 3,
        bfactor=torch.full((n,), float("nan")),
    )


def make_leaves(batch: Batch, seed: int, scale: float, width: int = 12, teachers: int = 1) -> dict[str, torch.Tensor]:
    """Random float64 values that stand for what heads put out before normalisation.

    `sequence`, `structure` and `log_scale` belong to the first teacher, `sequence_2` ... to the second.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "mlm_logits": (len(batch.masked_target), NUM_TOKENS),
        "threedi_logits": (len(batch.threedi), NUM_STATES),
    }
    for suffix in _suffixes(teachers):
        shapes |= {f"{side}{suffix}": (len(batch.threedi), width) for side in ("sequence", "structure")}
    leaves = {name: torch.randn(*shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    for number, suffix in enumerate(_suffixes(teachers)):
        leaves[f"log_scale{suffix}"] = torch.tensor(math.log(scale + 2 * number), dtype=torch.float64)
    return leaves


def make_outputs(leaves: dict[str, torch.Tensor], gradient: bool = True) -> SimpleNamespace:
    """Head outputs as the model gives them; gradients end in the leaves, kept as `.leaves`."""
    leaves = {name: leaf.clone().requires_grad_(gradient) for name, leaf in leaves.items()}
    projections = tuple(
        Projected(
            F.normalize(leaves[f"sequence{suffix}"], dim=-1),
            F.normalize(leaves[f"structure{suffix}"], dim=-1),
            leaves[f"log_scale{suffix}"].exp(),
        )
        for suffix in _suffixes(sum(name.startswith("log_scale") for name in leaves))
    )
    return SimpleNamespace(
        leaves=leaves,
        mlm_logits=leaves["mlm_logits"],
        threedi_logits=leaves["threedi_logits"],
        projections=projections,
    )


def _suffixes(teachers: int) -> list[str]:
    return ["", *(f"_{number}" for number in range(2, teachers + 1))]


def share(batch: Batch, leaves: dict[str, torch.Tensor], chains: slice, masked: slice) -> tuple[Batch, dict]:
    """One rank's part of a pool: some of its chains and some of its masked tokens."""
    of_chain = [length - 2 for length in batch.packed.lengths]
    start = sum(of_chain[: chains.start])
    residues = slice(start, start + sum(of_chain[chains]))
    first_token = sum(batch.packed.lengths[: chains.start])
    by_token = {"masked_index", "masked_target"}
    tensors = {f.name for f in fields(Batch) if isinstance(getattr(batch, f.name), torch.Tensor)}
    by_residue = tensors - by_token - {"teacher"}
    part = replace(
        batch,
        packed=Packed(batch.packed.tokens, batch.packed.lengths[chains]),
        **{name: getattr(batch, name)[masked] for name in by_token},
        **{name: getattr(batch, name)[residues] for name in by_residue},
    )
    part = replace(part, residue_index=part.residue_index - first_token)
    cuts = {name: masked if name == "mlm_logits" else residues for name in leaves if not name.startswith("log_scale")}
    return part, {name: leaf[cuts[name]] if name in cuts else leaf for name, leaf in leaves.items()}
