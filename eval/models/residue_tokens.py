"""How a tokenizer of `transformers` writes residues: found by asking it, held as a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from configs.errors import UserError
from eval.models.protocol import RESIDUES

UNKNOWN_STRUCTURE = "#"
"""SaProt's mark for a residue of unknown structure, or a structure of unknown residue."""
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class ResidueTokens:
    """Token numbers of residues and of what stands around a sequence."""

    table: np.ndarray
    """int64 [256]: token of every byte; the unknown residue's for what is no letter."""
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    mask: int
    padding: int
    columns: tuple[tuple[int, ...], ...]
    """Tokens that stand for each of RESIDUES: one, or SaProt's, one for each structure state."""

    @property
    def before(self) -> int:
        return len(self.prefix)

    @property
    def after(self) -> int:
        return len(self.suffix)

    def encode(self, sequence: str) -> Tensor:
        """int64 [before + N + after]."""
        residues = self.table[np.frombuffer(sequence.encode("ascii", errors="replace"), dtype=np.uint8)]
        return torch.from_numpy(np.concatenate([self.prefix, residues, self.suffix]).astype(np.int64))

    def residues_of(self, rows: Tensor, length: int) -> Tensor:
        """Rows [N, ...] of the residues of a (padded) sequence's rows [L, ...]."""
        return rows[self.before : self.before + length]

    def pad(self, encoded: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
        """Tokens and presence, int64 [B, L]."""
        ids = nn.utils.rnn.pad_sequence(list(encoded), batch_first=True, padding_value=self.padding)
        lengths = torch.tensor([len(one) for one in encoded])
        present = (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()
        return ids.to(device), present.to(device)

    def residue_log_probs(self, log_p: Tensor) -> Tensor:
        """float32 [M, 20] of log-probabilities [M, V] of all tokens; of several tokens of a residue the sum."""
        width = max(map(len, self.columns))
        if width == 1:
            return log_p[:, [tokens[0] for tokens in self.columns]]
        return torch.stack([log_p[:, list(tokens)].logsumexp(dim=-1) for tokens in self.columns], dim=1)


def residue_tokens(tokenizer: Any, where: str) -> ResidueTokens:
    """Ask a tokenizer how it writes residues.

    Raises:
        UserError: it does not make one token of each residue, or has no mask.
    """
    vocabulary = tokenizer.get_vocab()
    pairs = f"A{UNKNOWN_STRUCTURE}" in vocabulary
    if tokenizer.mask_token_id is None or tokenizer.pad_token_id is None:
        raise UserError(f"{where}: its tokenizer has no mask or padding token, so it is no masked language model")

    def written(sequence: str) -> list[int]:
        text = "".join(letter + UNKNOWN_STRUCTURE for letter in sequence) if pairs else sequence
        return list(tokenizer(text)["input_ids"])

    no_model = UserError(f"{where}: its tokenizer does not make one token of each residue; it is no model of residues")
    one, two, first = written("A"), written("AA"), _token(vocabulary, "A", pairs)
    if first not in one or len(two) != len(one) + 1:
        raise no_model
    before = one.index(first)
    prefix, suffix = tuple(one[:before]), tuple(one[before + 1 :])
    unknown = _token(vocabulary, "X", pairs)
    if unknown is None:
        unknown = vocabulary.get(UNKNOWN_STRUCTURE * 2) if pairs else tokenizer.unk_token_id
    table = np.full(256, unknown if unknown is not None else tokenizer.mask_token_id, dtype=np.int64)
    for letter in _LETTERS:
        if (token := _token(vocabulary, letter, pairs)) is not None:
            table[ord(letter)] = token
    expected = [*prefix, *(int(table[ord(letter)]) for letter in RESIDUES), *suffix]
    if written(RESIDUES) != expected:
        raise no_model
    columns = tuple(_columns(vocabulary, letter, pairs) for letter in RESIDUES)
    # SaProt hides a residue of unknown structure by its token for both unknown, not by <mask>.
    mask = vocabulary.get(UNKNOWN_STRUCTURE * 2, tokenizer.mask_token_id) if pairs else tokenizer.mask_token_id
    return ResidueTokens(table, prefix, suffix, mask, tokenizer.pad_token_id, columns)


def _token(vocabulary: dict[str, int], letter: str, pairs: bool) -> int | None:
    return vocabulary.get(letter + UNKNOWN_STRUCTURE if pairs else letter)


def _columns(vocabulary: dict[str, int], letter: str, pairs: bool) -> tuple[int, ...]:
    if not pairs:
        return (vocabulary[letter],)
    states = sorted(token for token in vocabulary if len(token) == 2 and token[0] == letter)
    return tuple(vocabulary[token] for token in states)
