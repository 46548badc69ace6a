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
class ReferenceRows:
    """What a derived column knows of the reference model at N residues; one pair of projections per teacher."""

    structure_loss: Tensor | None
    """float32 [N]: 3Di loss averaged over fixed masks, 0 where there is no state; None where that loss is off."""
    sequence: tuple[Tensor, ...]
    """float16 [N, P] each: projected sequence side, averaged over the masks, of length 1."""
    structure: tuple[Tensor, ...]
    """float16 [N, P] each: projected teacher embeddings, of length 1; 0 where there is none."""

    def to(self, device: torch.device | str) -> Self:
        """The same rows on `device`."""
        moved = [tuple(tensor.to(device) for tensor in side) for side in (self.sequence, self.structure)]
        loss = None if self.structure_loss is None else self.structure_loss.to(device)
        return replace(self, structure_loss=loss, sequence=moved[0], structure=moved[1])


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
    """bool [N]: residue has a backbone and a embedding of every teacher, so it may stand in the contrast."""
    teacher: Tensor | None
    """float32 [N, E]: embeddings of the frozen teachers side by side (0 where not valid); None when no contrast is
    trained."""
    protein: Tensor
    """int64 [N]: number of the protein, unique over the whole dataset."""
    cluster: Tensor
    """int64 [N]: sequence cluster of the protein."""
    reference: ReferenceRows | None = None
    """From a derived column of the reference model, where the selection uses one."""
    plddt: Tensor | None = None
    """float32 [N]: of predicted models, NaN elsewhere. This and what follows only where a selection is reported."""
    bfactor: Tensor | None = None
    """float32 [N]: square Angstrom, of experiments; NaN elsewhere and where unknown."""
    secondary: Tensor | None = None
    """int8 [N]: 0 helix, 1 strand, 2 coil, -1 unknown."""

    def to(self, device: torch.device | str) -> Self:
        """The same batch with every tensor on `device`."""
        moved = {f.name: value.to(device) for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        return replace(
            self,
            packed=Packed(self.packed.tokens.to(device), self.packed.lengths),
            reference=None if self.reference is None else self.reference.to(device),
            **moved,
        )
