"""A checkpoint of this project as a model to evaluate: packed forward passes, no work on padding."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from configs.errors import UserError
from eval.models.batches import batches_of
from eval.models.protocol import RESIDUES, Precision
from eval.models.side_by_side import batch_tokens_on, side_by_side
from pretrain.batch import Packed
from pretrain.checkpoints import Checkpoint, open_checkpoint
from pretrain.model.alignment import AlignmentModel
from pretrain.model.encoder import Encoder
from pretrain.model.load import load_model
from pretrain.model.shape import TrunkShape, trunk_shape
from pretrain.vocab import Alphabet


@dataclass(frozen=True)
class CheckpointModel:
    """A trained trunk with its heads, in evaluation mode on `device`."""

    model: AlignmentModel
    """Float32 weights; never changed."""
    name: str
    description: str
    weights_sha256: str
    batch_tokens: int = 4096
    """Of one forward pass; a longer sequence gets a pass of its own."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: Precision = "float32"
    max_residues: int | None = None
    encoder: Encoder = field(init=False, repr=False)
    """The trunk in this model's precision."""

    def __post_init__(self) -> None:
        trunk = self.model.trunk
        own = trunk if self.precision == "float32" else copy.deepcopy(trunk).to(torch.bfloat16)
        object.__setattr__(self, "encoder", own)

    @property
    def width(self) -> int:
        return self.model.trunk.shape.width

    @property
    def layers(self) -> int:
        return self.model.trunk.shape.layers

    @property
    def alphabet(self) -> Alphabet:
        return self.model.trunk.shape.alphabet

    def at(self, precision: Precision) -> "CheckpointModel":
        """The same weights computing in `precision`."""
        return self if precision == self.precision else replace(self, precision=precision)

    def hidden(self, sequences: Sequence[str], all_layers: bool = False) -> list[Tensor]:
        """Aligned states of residues, float32 [N, D]; the outputs of all layers side by side [N, layers * D]."""

        def states(packed: Packed) -> Tensor:
            if not all_layers:
                return self.encoder(packed)
            return torch.cat(self.encoder.layer_states(packed)[1:], dim=-1)

        return self._of_residues(sequences, states)

    def log_probs(self, sequences: Sequence[str]) -> list[Tensor]:
        """float32 [N, 20] of the unmasked sequences."""
        return self._of_residues(sequences, lambda packed: self.residue_log_probs(self.encoder(packed)))

    def masked_log_probs(self, jobs: Sequence[tuple[str, np.ndarray]]) -> list[Tensor]:
        """Per job (sequence, int64 [M] positions hidden together) float32 [M, 20]."""
        tokens = [self.tokens_of(sequence) for sequence, _ in jobs]
        found: list[Tensor] = [torch.empty(0, len(RESIDUES))] * len(jobs)

        def fill(batch: list[int]) -> None:
            hidden_at = [torch.from_numpy(jobs[i][1]) + 1 for i in batch]
            masked = [
                tokens[i].index_fill(0, at, self.alphabet.mask_id) for i, at in zip(batch, hidden_at, strict=True)
            ]
            packed = pack(masked, self.device)
            starts = np.cumsum([0, *packed.lengths[:-1]])
            rows = torch.cat([at + int(start) for at, start in zip(hidden_at, starts, strict=True)])
            states = self.encoder(packed).index_select(0, rows.to(self.device))
            parts = self.residue_log_probs(states).cpu().split([len(at) for at in hidden_at])
            for i, part in zip(batch, parts, strict=True):
                found[i] = part

        self._fill(tokens, fill)
        return found

    @torch.no_grad()
    def attention_maps(self, sequence: str) -> Tensor:
        """float32 [layers * heads, N + 2, N + 2], special tokens included."""
        return self.encoder.attention_maps(pack([self.tokens_of(sequence)], self.device))[0].float()

    def threedi_logits(self, sequences: Sequence[str]) -> list[Tensor] | None:
        """float32 [N, 20] of the own 3Di head; None for a checkpoint without one."""
        return self.threedi_of(self.hidden(sequences)) if self.model.losses.structure else None

    @torch.no_grad()
    def threedi_of(self, hidden: Sequence[Tensor]) -> list[Tensor] | None:
        """`threedi_logits` of states that `hidden` gave."""
        if not self.model.losses.structure:
            return None
        rows = [torch.arange(len(states), device=self.device) for states in hidden]
        return [
            self.model.threedi_logits(states.to(self.device), row).cpu()
            for states, row in zip(hidden, rows, strict=True)
        ]

    def trunk(self) -> "TrunkTuning":
        """A copy of the trunk that may be trained."""
        return TrunkTuning(copy.deepcopy(self.model.trunk).requires_grad_(True), self.batch_tokens)

    def tokens_of(self, sequence: str) -> Tensor:
        """int64 [N + 2]: with special tokens."""
        return tokens_of(sequence, self.alphabet)

    def residue_log_probs(self, states: Tensor) -> Tensor:
        """float32 [M, 20] of states [M, D]: normalised over the whole vocabulary, columns in the order of RESIDUES."""
        columns = torch.from_numpy(self.alphabet.encode(RESIDUES)).to(states.device)
        return self.encoder.lm_logits(states).float().log_softmax(dim=-1).index_select(1, columns)

    def _of_residues(self, sequences: Sequence[str], compute: Callable[[Packed], Tensor]) -> list[Tensor]:
        """What `compute` gives [T, K] for packed tokens, cut into the residues of each sequence."""
        tokens = [self.tokens_of(sequence) for sequence in sequences]
        found: list[Tensor] = [torch.empty(0)] * len(sequences)

        def fill(batch: list[int]) -> None:
            packed = pack([tokens[i] for i in batch], self.device)
            for i, part in zip(batch, compute(packed).float().cpu().split(packed.lengths), strict=True):
                found[i] = part[1:-1].clone()

        self._fill(tokens, fill)
        return found

    def _fill(self, tokens: Sequence[Tensor], fill: Callable[[list[int]], None]) -> None:
        """Run `fill` on the numbers of all token sequences, batch by batch."""
        batches = list(batches_of([len(t) for t in tokens], batch_tokens_on(self.device, self.batch_tokens)))
        for _ in side_by_side(fill, batches, self.device):
            pass


@dataclass
class TrunkTuning:
    """A trunk of this project in training."""

    module: Encoder
    batch_tokens: int
    linear_names: tuple[str, ...] = ("attention.qkv", "attention.out", "ffn.up", "ffn.down")

    @property
    def width(self) -> int:
        return self.module.shape.width

    def states(self, sequences: Sequence[str]) -> list[Tensor]:
        """Aligned residue states [N, D] with gradient."""
        device = next(self.module.parameters()).device
        tokens = [tokens_of(sequence, self.module.shape.alphabet) for sequence in sequences]
        found: list[Tensor] = [torch.empty(0)] * len(sequences)
        for batch in batches_of([len(t) for t in tokens], self.batch_tokens):
            packed = pack([tokens[i] for i in batch], device)
            for i, part in zip(batch, self.module(packed).split(packed.lengths), strict=True):
                found[i] = part[1:-1]
        return found


def tokens_of(sequence: str, alphabet: Alphabet) -> Tensor:
    """int64 [N + 2]: a sequence with special tokens."""
    return torch.from_numpy(np.concatenate([[alphabet.cls_id], alphabet.encode(sequence), [alphabet.eos_id]]))


def pack(sequences: Sequence[Tensor], device: torch.device) -> Packed:
    """Token sequences laid end to end on `device`."""
    return Packed(torch.cat(list(sequences)).to(device), tuple(len(tokens) for tokens in sequences))


def checkpoint_model(
    checkpoint: Checkpoint | Path | str,
    batch_tokens: int = 4096,
    device: torch.device | str = "cpu",
    precision: Precision = "float32",
) -> CheckpointModel:
    """A checkpoint, or the last good one of a run folder, as a model.

    Raises:
        UserError: damaged, without a trunk, or gone meanwhile.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = open_checkpoint(checkpoint)
    config, device = checkpoint.config, torch.device(device)
    try:
        model = load_model(checkpoint).to(device).eval()
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"checkpoint {checkpoint.path}: cannot be read ({error}); was it removed meanwhile (checkpoint.keep)?"
        ) from None
    assert config.trunk is not None, "load_model refuses checkpoints without a trunk"
    return CheckpointModel(
        model=model.requires_grad_(False),
        name=f"{config.name} step {checkpoint.step}",
        description=describe(trunk_shape(config.trunk), config.trunk.model),
        weights_sha256=checkpoint.weights_sha256,
        batch_tokens=batch_tokens,
        device=device,
        precision=precision,
    )


def describe(shape: TrunkShape, model: str) -> str:
    """Family, or published name, and size of a trunk, for people."""
    size = f"{shape.layers}x{shape.width}x{shape.heads}"
    return f"{shape.family} {size}" if model == "custom" else f"{model} ({size})"
