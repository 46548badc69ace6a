"""What evaluation asks of a protein language model, be it a checkpoint of ours, a transformers model or a function."""

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
"""Order of the columns of log-probabilities."""
Precision = Literal["float32", "bfloat16"]


@runtime_checkable
class ProteinModel(Protocol):
    """A frozen model in evaluation mode. Sequences are letters; lists come back in the order asked, on the CPU.

    A method that the model cannot serve (a function has no masked likelihoods) raises `NotSupported`.
    """

    @property
    def name(self) -> str:
        """For tables, e.g. `align step 500` or `facebook/esm2_t6_8M_UR50D`."""

    @property
    def description(self) -> str:
        """Family and size, e.g. `esm2 6x320x20`."""

    @property
    def weights_sha256(self) -> str:
        """Names the weights: equal weights have equal names."""

    @property
    def width(self) -> int:
        """D of one layer's states."""

    @property
    def layers(self) -> int: ...

    @property
    def max_residues(self) -> int | None:
        """The longest sequence it takes; None: any."""

    @property
    def precision(self) -> Precision:
        """Of its matrix products; what comes out is float32 always."""

    def at(self, precision: Precision) -> "ProteinModel":
        """The same weights computing in `precision`; itself where nothing changes."""

    def hidden(self, sequences: Sequence[str], all_layers: bool = False) -> list[Tensor]:
        """Final residue states, float32 [N, D] each, or of all layers side by side, [N, layers * D]."""

    def log_probs(self, sequences: Sequence[str]) -> list[Tensor]:
        """log p of the 20 residue types at every position of the unmasked sequence, float32 [N, 20], normalised over
        the model's whole vocabulary."""

    def masked_log_probs(self, jobs: Sequence[tuple[str, np.ndarray]]) -> list[Tensor]:
        """Per job (sequence, int64 [M] positions hidden together) float32 [M, 20], as in `log_probs`."""

    def attention_maps(self, sequence: str) -> Tensor:
        """float32 [layers * heads, N + 2, N + 2], special tokens included."""

    def threedi_logits(self, sequences: Sequence[str]) -> list[Tensor] | None:
        """float32 [N, 20] of the model's own 3Di head, None where it has none."""

    def threedi_of(self, hidden: Sequence[Tensor]) -> list[Tensor] | None:
        """`threedi_logits` of what `hidden` gave, so that nothing is embedded twice; None where it has no head."""

    def trunk(self) -> "Tunable":
        """A copy of the trunk that may be trained, for fine-tuning."""


@runtime_checkable
class Tunable(Protocol):
    """A trunk in training: an nn.Module and how to feed it."""

    module: nn.Module
    width: int
    linear_names: tuple[str, ...]
    """Ends of the names of the modules that LoRA adapts (query, key, value, output, feed-forward)."""

    def states(self, sequences: Sequence[str]) -> list[Tensor]:
        """Residue states [N, D] with gradient, on the module's device."""


class NotSupported(Exception):
    """The model has no such output; the message says what it lacks, for people."""
