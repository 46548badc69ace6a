"""What a frozen protein graph network is to the rest of the program."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from data_pipeline.schema import Sample


class Teacher(Protocol):
    """Residue embeddings of a structure, without gradient and without randomness."""

    kind: str
    """`gearnet`, `gearnet_edge` or `mpnn`."""
    width: int
    """Features per residue."""
    weights_sha256: str
    """Names the weights the embeddings come from."""

    def to(self, device: torch.device | str) -> "Teacher":
        """The same teacher, computing on `device`."""
        ...

    def embed(self, sample: Sample) -> np.ndarray:
        """float32 [N, width]; rows of residues without a backbone are 0."""
        ...

    def embed_many(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """The same for several chains in one forward pass, in their order."""
        ...
