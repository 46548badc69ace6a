"""The trunk, its losses and selection in bf16 on a CUDA device against float64 and against themselves.

The same checks run on the CPU with small trunks, so that nothing here waits for a GPU to be executed for the first
time. Tolerances are in units of bf16's rounding, 2 ** -8: each of the 4 layers rounds its stream and its products some
ten times, which adds up to a few units; gradients pass through twice as many roundings.
"""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from configs.engine import EngineConfig
from configs.losses import LossConfig, SelectionConfig
from pretrain.batch import Batch, Packed
from pretrain.losses.alignment import alignment_terms
from pretrain.losses.contrast import contrast_losses
from pretrain.losses.selection import keep_mask
from pretrain.model.alignment import AlignmentModel
from pretrain.model.execution import apply_execution
from pretrain.model.shape import TrunkShape
from tests.parity.trunks import masked_proteins, pack, scramble, scrambled_encoder
from tests.unit.pretrain.pools import make_batch

BF16 = 2.0**-8
STATE, GRADIENT = 6 * BF16, 12 * BF16
"""Largest difference relative to the largest value; norm of the difference relative to the norm."""
TEACHER_WIDTH = 12
DEVICES = pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu), "cpu"])
SHAPES = pytest.mark.parametrize(
    "shape", [TrunkShape("esm2", 4, 96, 4), TrunkShape("amplify", 4, 128, 2)], ids=["esm2", "amplify"]
)


def distance(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    wanted = wanted.detach().double().cpu()
    return float((found.detach().double().cpu() - wanted).abs().max() / wanted.abs().max())


def gradients(model: torch.nn.Module) -> Tensor:
    return torch.cat([p.grad.double().flatten().cpu() for p in model.parameters() if p.grad is not None])


def make_pool(shape: TrunkShape) -> Batch:
    generator = torch.Generator().manual_seed(0)
    batch = make_batch([64, 37, 37, 21], seed=0)
    tokens = torch.randint(4, 24, batch.packed.tokens.shape, generator=generator)
    tokens[batch.masked_index] = shape.alphabet.mask_id
    return replace(
        batch,
        packed=Packed(tokens, batch.packed.lengths),
        masked_target=torch.randint(4, 24, batch.masked_target.shape, generator=generator),
        teacher=torch.randn(len(batch.threedi), TEACHER_WIDTH, generator=generator),
    )


@DEVICES
@SHAPES
def test_losses_and_gradients_in_bf16_are_those_of_float64(shape: TrunkShape, device: str) -> None:
    losses = LossConfig(projection_width=16)
    model = AlignmentModel(shape, losses, TEACHER_WIDTH)
    scramble(model.trunk, seed=0)
    model.bfloat16()
    # The same rounded weights, so that only the arithmetic differs.
    exact = copy.deepcopy(model).double()
    apply_execution(model.to(device), EngineConfig(precision="bf16", zero_stage=1), torch.device(device))
    found = []
    for each, place in ((model, device), (exact, "cpu")):
        batch = make_pool(shape).to(place)
        terms = alignment_terms(each(batch), batch, losses, SelectionConfig())
        terms.total().backward()
        found.append(terms.logged())
    for name in ("loss_mlm", "loss_structure", "loss_contrast"):
        # Means over many residues, whose roundings cancel.
        assert found[0][name] == pytest.approx(found[1][name], rel=2 * BF16), name
    ours, theirs = gradients(model), gradients(exact)
    assert float((ours - theirs).norm() / theirs.norm()) <= GRADIENT


@DEVICES
@SHAPES
@torch.no_grad()
def test_packed_equals_one_by_one_in_bf16(shape: TrunkShape, device: str) -> None:
    encoder = scrambled_encoder(shape).bfloat16().to(device)
    proteins = [tokens.to(device) for tokens in masked_proteins(shape.family, (120, 31, 31, 1, 75))]
    together = encoder(pack(proteins))
    alone = torch.cat([encoder(pack([tokens])) for tokens in proteins])
    # The same roundings but for the order of sums in products and attention.
    assert distance(together, alone) <= STATE
    reversed_ = encoder(pack(proteins[::-1])).split([len(tokens) for tokens in proteins[::-1]])
    assert distance(torch.cat(reversed_[::-1]), alone) <= STATE


@DEVICES
@SHAPES
def test_varlen_attention_equals_sdpa(shape: TrunkShape, device: str) -> None:
    # `auto` is varlen on a CUDA device and sdpa on a CPU, where this compares one backend with itself.
    states, found = [], []
    for asked in ("auto", "sdpa"):
        encoder = scrambled_encoder(shape).bfloat16().to(device)
        apply_execution(encoder, EngineConfig(precision="bf16", attention=asked), torch.device(device))
        proteins = [tokens.to(device) for tokens in masked_proteins(shape.family, (120, 31, 31, 1, 75))]
        state = encoder(pack(proteins))
        encoder.lm_logits(state).float().square().mean().backward()
        states.append(state)
        found.append(gradients(encoder))
    assert distance(*states) <= STATE
    assert float((found[0] - found[1]).norm() / found[1].norm()) <= GRADIENT


@DEVICES
def test_the_tiled_contrast_equals_the_dense_one(device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    # Rounded to bf16, as a bf16 trunk's projections are, before the loss computes in float32.
    rows = [torch.randn(700, 32, generator=generator).bfloat16().float() for _ in range(2)]
    sequence, structure = (F.normalize(x, dim=-1).to(device).requires_grad_() for x in rows)
    scale = torch.tensor(14.0, device=device)
    losses = contrast_losses(sequence, structure, scale, tile=128)
    (losses.sequence_to_structure + losses.structure_to_sequence).sum().backward()
    dense = [x.detach().double().cpu().requires_grad_() for x in (sequence, structure)]
    logits = 14.0 * dense[0] @ dense[1].T
    target = torch.arange(len(logits))
    expected = [F.cross_entropy(matrix, target, reduction="none") for matrix in (logits, logits.T)]
    sum(expected).sum().backward()
    # Float32 against float64: losses near 7, sums of 700 exponentials.
    for ours, theirs in zip((losses.sequence_to_structure, losses.structure_to_sequence), expected, strict=True):
        assert (ours.detach().double().cpu() - theirs.detach()).abs().max() <= 1e-5 * 7
    for ours, theirs in zip((sequence, structure), dense, strict=True):
        assert distance(ours.grad, theirs.grad) <= 1e-5


@DEVICES
@pytest.mark.parametrize("mode", ["large", "small"])
def test_selection_keeps_the_same_residues_ties_included(mode: str, device: str) -> None:
    excess = torch.randn(5000, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    assert len(excess.unique()) < 0.9 * len(excess), "without ties the order of equals would not show"
    expected = keep_mask(excess, 0.3, mode)
    assert int(expected.sum()) == 1500
    assert torch.equal(keep_mask(excess.to(device), 0.3, mode).cpu(), expected)
