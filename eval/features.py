"""All that evaluation asks of a model: hidden states (each chain once), masked likelihoods, attention maps."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from eval.data import Example
from pretrain.batch import Packed
from pretrain.model.alignment import AlignmentModel
from pretrain.vocab import Alphabet

SPECIAL_TOKENS = 2
"""`<cls>` before and `<eos>` after every sequence."""


class Features:
    """Forward passes over a frozen model; hidden states stay in memory for the life of the object.

    Args:
        model: in evaluation mode, on `device`.
        batch_tokens: tokens of one forward pass; a longer chain gets a pass of its own.
    """

    has_attention = True

    def __init__(self, model: AlignmentModel, alphabet: Alphabet, batch_tokens: int, device: torch.device) -> None:
        self.model = model
        self.alphabet = alphabet
        self.batch_tokens = batch_tokens
        self.device = device
        self.num_embedded = 0
        """Chains that went through the shared embedding pass."""
        self._hidden: dict[str, Tensor] = {}

    def hidden(self, examples: Sequence[Example]) -> list[Tensor]:
        """Per chain the aligned hidden state of its residues, float32 [N, D] on the CPU; computed once per chain."""
        missing = [example for example in examples if example.key not in self._hidden]
        tokens = [self._tokens(example) for example in missing]
        with torch.no_grad():
            for batch in batches_of([len(t) for t in tokens], self.batch_tokens):
                packed = pack([tokens[i] for i in batch], self.device)
                states = self.model.trunk(packed).float().cpu()
                for i, part in zip(batch, states.split(packed.lengths), strict=True):
                    self._hidden[missing[i].key] = part[1:-1].clone()
                self.num_embedded += len(batch)
        return [self._hidden[example.key] for example in examples]

    def threedi_logits(self, examples: Sequence[Example]) -> list[Tensor] | None:
        """Per chain float32 [N, 20] of the checkpoint's own 3Di head; None when it has none."""
        if not self.model.losses.structure:
            return None
        logits = []
        with torch.no_grad():
            for hidden in self.hidden(examples):
                every = torch.arange(len(hidden), device=self.device)
                logits.append(self.model.threedi_logits(hidden.to(self.device), every).float().cpu())
        return logits

    def masked_nll(self, jobs: Sequence[tuple[Example, np.ndarray]]) -> list[Tensor]:
        """Per job (chain, positions to hide together) float32 [M]: -log p of the hidden residues, whole vocabulary."""
        tokens = [self._tokens(example) for example, _ in jobs]
        losses: list[Tensor] = [torch.empty(0)] * len(jobs)
        with torch.no_grad():
            for batch in batches_of([len(t) for t in tokens], self.batch_tokens):
                hidden_at = [torch.from_numpy(jobs[i][1]) + 1 for i in batch]
                masked = [
                    tokens[i].index_fill(0, at, self.alphabet.mask_id) for i, at in zip(batch, hidden_at, strict=True)
                ]
                packed = pack(masked, self.device)
                starts = np.cumsum([0, *packed.lengths[:-1]])
                rows = torch.cat([at + int(start) for at, start in zip(hidden_at, starts, strict=True)])
                targets = torch.cat([tokens[i][at] for i, at in zip(batch, hidden_at, strict=True)])
                states = self.model.trunk(packed).index_select(0, rows.to(self.device))
                logits = self.model.trunk.lm_logits(states).float().cpu()
                loss = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
                for i, part in zip(batch, loss.split([len(at) for at in hidden_at]), strict=True):
                    losses[i] = part
        return losses

    def attention_maps(self, example: Example) -> Tensor:
        """float32 [layers * heads, N + 2, N + 2]: attention of the unmasked chain, special tokens included."""
        with torch.no_grad():
            return self.model.trunk.attention_maps(pack([self._tokens(example)], self.device))[0]

    def _tokens(self, example: Example) -> Tensor:
        """int64 [N + 2]."""
        residues = self.alphabet.encode(example.sequence)
        return torch.from_numpy(np.concatenate([[self.alphabet.cls_id], residues, [self.alphabet.eos_id]]))


def pack(sequences: Sequence[Tensor], device: torch.device) -> Packed:
    """Token sequences laid end to end on `device`."""
    return Packed(torch.cat(list(sequences)).to(device), tuple(len(tokens) for tokens in sequences))


def batches_of(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Numbers of sequences of similar length whose lengths sum to at most `batch_tokens`, the longest first.

    The longest first: when memory does not suffice, that shows at once.
    """
    batch: list[int] = []
    total = 0
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and total + lengths[i] > batch_tokens:
            yield batch
            batch, total = [], 0
        batch.append(i)
        total += lengths[i]
    if batch:
        yield batch
