"""Masked protein language models of `transformers` as models to evaluate: ESM-2, ESM-C, AMPLIFY, SaProt and others."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eval.models.batches import batches_of
from eval.models.protocol import RESIDUES, NotSupported, Precision
from eval.models.residue_tokens import ResidueTokens


@dataclass(frozen=True)
class TransformersModel:
    """A loaded model with its tokenizer's residue tokens, in evaluation mode on `device`."""

    model: Any
    """A `...ForMaskedLM` with float32 weights; never changed."""
    tokens: ResidueTokens
    name: str
    description: str
    weights_sha256: str
    max_residues: int | None
    batch_tokens: int = 4096
    """Of one forward pass, padding included; a longer sequence gets a pass of its own."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    precision: Precision = "float32"

    @property
    def width(self) -> int:
        return self.model.config.hidden_size

    @property
    def layers(self) -> int:
        return self.model.config.num_hidden_layers

    def at(self, precision: Precision) -> "TransformersModel":
        """The same weights computing in `precision` (by autocast: weights, norms and residual sums stay float32)."""
        return self if precision == self.precision else replace(self, precision=precision)

    def hidden(self, sequences: Sequence[str], all_layers: bool = False) -> list[Tensor]:
        """Final residue states, float32 [N, D]; the outputs of all layers side by side [N, layers * D].

        Of EuroBERT, in which AMPLIFY is released, the last layer's output before the norm that belongs to its head.
        """
        found: list[Tensor] = [torch.empty(0)] * len(sequences)
        for batch, states, _ in self._batches([self.tokens.encode(s) for s in sequences], all_layers):
            for row, i in enumerate(batch):
                found[i] = self.tokens.residues_of(states[row], len(sequences[i])).float().cpu().clone()
        return found

    def log_probs(self, sequences: Sequence[str]) -> list[Tensor]:
        """float32 [N, 20] of the unmasked sequences."""
        found: list[Tensor] = [torch.empty(0)] * len(sequences)
        for batch, _, last in self._batches([self.tokens.encode(s) for s in sequences]):
            for row, i in enumerate(batch):
                found[i] = self._log_probs(self.tokens.residues_of(last[row], len(sequences[i]))).cpu()
        return found

    def masked_log_probs(self, jobs: Sequence[tuple[str, np.ndarray]]) -> list[Tensor]:
        """Per job (sequence, int64 [M] positions hidden together) float32 [M, 20]."""
        at = [torch.from_numpy(positions) + self.tokens.before for _, positions in jobs]
        encoded = [self.tokens.encode(s).index_fill(0, p, self.tokens.mask) for (s, _), p in zip(jobs, at, strict=True)]
        found: list[Tensor] = [torch.empty(0, len(RESIDUES))] * len(jobs)
        for batch, _, last in self._batches(encoded):
            rows = torch.cat([last[row, at[i].to(self.device)] for row, i in enumerate(batch)])
            parts = self._log_probs(rows).cpu().split([len(at[i]) for i in batch])
            for i, part in zip(batch, parts, strict=True):
                found[i] = part
        return found

    @torch.no_grad()
    def attention_maps(self, sequence: str) -> Tensor:
        """float32 [layers * heads, N + 2, N + 2], special tokens included.

        Raises:
            NotSupported: the model gives no attention, or does not put one token before and one after a sequence.
        """
        if (self.tokens.before, self.tokens.after) != (1, 1):
            raise NotSupported(f"{self.name} does not put one special token before and one after a sequence")
        ids = self.tokens.encode(sequence)[None].to(self.device)
        with _explicit_attention(self.model), self._precisely():
            maps = self._base(input_ids=ids, attention_mask=torch.ones_like(ids), output_attentions=True).attentions
        if not maps or maps[0] is None:
            raise NotSupported(f"{self.name} gives no attention maps")
        return torch.cat([layer[0] for layer in maps]).float()

    def threedi_logits(self, sequences: Sequence[str]) -> list[Tensor] | None:
        """None: such models have no 3Di head."""
        return None

    def threedi_of(self, hidden: Sequence[Tensor]) -> list[Tensor] | None:
        """None: such models have no 3Di head."""
        return None

    def trunk(self) -> "TransformersTuning":
        """A copy of the trunk that may be trained."""
        base = copy.deepcopy(self._base).requires_grad_(True)
        return TransformersTuning(base, self.tokens, self.width, linear_names(base), _head_norm(base))

    @cached_property
    def _base(self) -> nn.Module:
        return self.model.base_model

    @cached_property
    def _head(self) -> Callable[[Tensor], Tensor] | None:
        """The language head as a function of final states, where the model is built so; found by trying it."""
        ids = self.tokens.encode(RESIDUES)[None].to(self.device)
        with torch.no_grad():
            logits = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            last = self._base(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
            for name, module in self.model.named_children():
                if module is self._base:
                    continue
                try:
                    found = module(last)
                except Exception:
                    continue
                if isinstance(found, Tensor) and found.shape == logits.shape and torch.allclose(found, logits):
                    return getattr(self.model, name)
        raise NotSupported(f"{self.name}: no part of it turns final states into its logits")

    def _log_probs(self, rows: Tensor) -> Tensor:
        """float32 [M, 20] of final states [M, D]; of tokens that stand for one residue type in sums."""
        with torch.no_grad(), self._precisely():
            logits = self._head(rows)
        return self.tokens.residue_log_probs(logits.float().log_softmax(dim=-1))

    def _precisely(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    @torch.no_grad()
    def _batches(
        self, encoded: Sequence[Tensor], all_layers: bool = False
    ) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Numbers of sequences that were padded together, their states [B, L, D] and what the head takes [B, L, D]."""
        norm = _head_norm(self._base)
        for batch in batches_of([len(ids) for ids in encoded], self.batch_tokens, padded=True):
            ids, present = self.tokens.pad([encoded[i] for i in batch], self.device)
            with self._precisely(), _input_of(norm) as captured:
                out = self._base(input_ids=ids, attention_mask=present, output_hidden_states=all_layers)
            final = captured[0] if captured else out.last_hidden_state
            states = torch.cat([*out.hidden_states[1:-1], final], dim=-1) if all_layers else final
            yield batch, states, out.last_hidden_state


@dataclass
class TransformersTuning:
    """A trunk of `transformers` in training."""

    module: nn.Module
    tokens: ResidueTokens
    width: int
    linear_names: tuple[str, ...]
    norm: nn.Module | None

    def states(self, sequences: Sequence[str]) -> list[Tensor]:
        """Residue states [N, D] with gradient."""
        device = next(self.module.parameters()).device
        ids, present = self.tokens.pad([self.tokens.encode(s) for s in sequences], device)
        with _input_of(self.norm) as captured:
            out = self.module(input_ids=ids, attention_mask=present)
        final = captured[0] if captured else out.last_hidden_state
        return [self.tokens.residues_of(final[row], len(s)) for row, s in enumerate(sequences)]


def linear_names(base: nn.Module) -> tuple[str, ...]:
    """Ends of the names of Linear modules that stand in every layer: what follows the layer's number."""
    found: dict[str, None] = {}
    for name, module in base.named_modules():
        words = name.split(".")
        numbers = [i for i, word in enumerate(words) if word.isdigit()]
        if isinstance(module, nn.Linear) and numbers:
            found[".".join(words[numbers[0] + 1 :])] = None
    return tuple(found)


def _head_norm(base: nn.Module) -> nn.Module | None:
    """The norm whose input is AMPLIFY's aligned state; None for families whose final norm is part of the trunk."""
    return base.norm if base.config.model_type == "eurobert" else None


@contextmanager
def _input_of(module: nn.Module | None) -> Iterator[list[Tensor]]:
    """Collects what a module is given."""
    captured: list[Tensor] = []
    if module is None:
        yield captured
        return
    handle = module.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
    try:
        yield captured
    finally:
        handle.remove()


@contextmanager
def _explicit_attention(model: Any) -> Iterator[None]:
    """Fused attention gives no probabilities; for a while the model writes them out."""
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation("eager")
        yield
    except ValueError as error:
        raise NotSupported(f"attention maps cannot be had: {' '.join(str(error).split())[:200]}") from None
    finally:
        model.set_attn_implementation(before)
