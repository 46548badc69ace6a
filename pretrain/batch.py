"""The value that goes from the loader to the model: one rank's share of a pool, packed without padding."""

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """Token sequences of P proteins laid end to end: T tokens, no padding."""

    tokens: Tensor
    """int64 [T], special tokens included."""
    lengths: tuple[int, ...]
    """Tokens of each protein; they sum to T."""

    @property
    def positions(self) -> Tensor:
        """int64 [T]: position of every token in its own protein (0 is `<cls>`)."""
        return torch.cat([torch.arange(n, device=self.tokens.device) for n in self.lengths])


@dataclass(frozen=True)
class Batch:
    """One rank's share of a pool. T tokens, M masked tokens, N residues (special tokens excluded), P proteins."""

    packed: Packed
    """Tokens after masking."""
    masked_index: Tensor
    """int64 [M]: where in T a residue was replaced by `<mask>`."""
    masked_target: Tensor
    """int64 [M]: the token that stood there."""
    residue_index: Tensor
    """int64 [N]: where in T each residue stands."""
    threedi: Tensor
    """int64 [N]: 3Di state, -1 where it is not valid."""
    structure_valid: Tensor
    """bool [N]: residue has a backbone and a teacher embedding, so it may stand in the contrast."""
    teacher: Tensor | None
    """float32 [N, E]: frozen teacher embeddings (0 where not valid); None when no contrast is trained."""
    protein: Tensor
    """int64 [N]: number of the protein, unique over the whole dataset."""
    cluster: Tensor
    """int64 [N]: sequence cluster of the protein."""
    bfactor: Tensor
    """float32 [N]: B-factor or pLDDT, NaN where unknown (for reports on what is selected)."""

    def to(self, device: torch.device | str) -> Self:
        """The same batch with every tensor on `device`."""
        moved = {f.name: value.to(device) for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        return replace(self, packed=Packed(self.packed.tokens.to(device), self.packed.lengths), **moved)
