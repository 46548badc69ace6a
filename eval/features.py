"""The embedding pass that all frozen tasks share: each distinct sequence once, whatever asks for it and when."""

import logging
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from configs.benchmarks import FeaturesConfig
from configs.errors import UserError
from eval.embedding_cache import EmbeddingCache
from eval.models.batches import SPECIAL_TOKENS, batches_of
from eval.models.protocol import ProteinModel

TELL_SECONDS = 20.0
"""Between lines of progress."""
log = logging.getLogger("eval")
GROUP_BYTES = 1 << 27
"""States held in memory between two writes to the cache: what an interruption costs."""


class Wanted(Protocol):
    """Sequences to embed."""

    @property
    def means(self) -> Sequence[str]: ...

    @property
    def residues(self) -> Sequence[str]: ...


class Features:
    """Embeddings of a frozen model, on disk by sequence; what is missing is computed when it is asked for.

    Args:
        model: in evaluation mode.
        config: representation and precision.
        batch_tokens: tokens of one forward pass.
        folder: of the cache, shared by models and processes; None: a temporary one that goes with this object.
    """

    def __init__(
        self,
        model: ProteinModel,
        config: FeaturesConfig | None = None,
        batch_tokens: int = 4096,
        folder: Path | None = None,
    ) -> None:
        self.config = config or FeaturesConfig()
        self.model = model.at(self.config.precision)
        self.batch_tokens = batch_tokens
        self.num_embedded = 0
        """Sequences that this object put through the model."""
        self._temporary = tempfile.TemporaryDirectory(prefix="embeddings-") if folder is None else None
        self.cache = EmbeddingCache(
            Path(self._temporary.name) if self._temporary else Path(folder),
            model.weights_sha256,
            self.config.representation,
            self.config.precision,
        )

    @property
    def width(self) -> int:
        """Features of one residue."""
        return self.model.width * (self.model.layers if self.config.representation == "all_layers" else 1)

    def embed(self, wants: Wanted) -> int:
        """Embed what is not there yet of all that tasks want; returns the number of sequences embedded."""
        before = self.num_embedded
        self._ensure(wants.means, wants.residues)
        return self.num_embedded - before

    def hidden(self, sequences: Sequence[str]) -> list[Tensor]:
        """States of residues, float32 [N, D] each (of float16 precision where they were stored so)."""
        self._ensure((), sequences)
        return [torch.from_numpy(self.cache.residues(sequence).astype(np.float32)) for sequence in sequences]

    def residue_rows(self, sequences: Sequence[str], rows: Sequence[np.ndarray]) -> Tensor:
        """float32 [sum of M, D]: the states of residues rows[i], int64 [M], of each sequence, and of no others."""
        self._ensure((), sequences)
        found = np.empty((sum(map(len, rows)), self.width), dtype=np.float32)
        begin = 0
        for sequence, chosen in zip(sequences, rows, strict=True):
            found[begin : begin + len(chosen)] = self.cache.residues(sequence)[chosen]
            begin += len(chosen)
        return torch.from_numpy(found)

    def means(self, sequences: Sequence[str]) -> Tensor:
        """float32 [n, D]: states averaged over the residues of each sequence."""
        self._ensure(sequences, ())
        found = np.empty((len(sequences), self.width), dtype=np.float32)
        for i, sequence in enumerate(sequences):
            found[i] = self.cache.mean(sequence)
        return torch.from_numpy(found)

    def threedi_logits(self, sequences: Sequence[str]) -> list[Tensor] | None:
        """float32 [N, 20] of the model's own 3Di head, from the cached states; None where it has no head."""
        if self.config.representation != "last":
            return self.model.threedi_logits(sequences)
        return None if self.model.threedi_of([]) is None else self.model.threedi_of(self.hidden(sequences))

    def close(self) -> None:
        """Remove a temporary cache; one in a folder stays."""
        if self._temporary is not None:
            self._temporary.cleanup()

    def _ensure(self, means: Iterable[str], residues: Iterable[str]) -> None:
        """Embed what the cache lacks, states of residues first: they bring the means with them."""
        residues = dict.fromkeys(residues)
        means = [sequence for sequence in dict.fromkeys(means) if sequence not in residues]
        for wanted, with_states in ((list(residues), True), (means, False)):
            missing = self.cache.missing(wanted, with_states)
            total, done, told = sum(map(len, missing)), 0, time.monotonic()
            for group in self._groups(missing):
                # Whoever waits here finds the group done; a process that is killed gives the lock back.
                with self.cache.locked():
                    self._embed(self.cache.missing(group, with_states), with_states)
                done += sum(map(len, group))
                if time.monotonic() - told > TELL_SECONDS:
                    told = time.monotonic()
                    log.info("embedded %s of %s residues", f"{done:,}", f"{total:,}")

    def _embed(self, sequences: list[str], with_states: bool) -> None:
        if not sequences:
            return
        states = self.model.hidden(sequences, all_layers=self.config.representation == "all_layers")
        self.num_embedded += len(sequences)
        means = np.stack([one.mean(dim=0).numpy() for one in states])
        self.cache.write(sequences, means, [one.numpy() for one in states] if with_states else None)

    def _groups(self, sequences: list[str]) -> Iterator[list[str]]:
        """Sequences of similar length whose states are held in memory together."""
        self._check_lengths(sequences)
        lengths = [len(sequence) + SPECIAL_TOKENS for sequence in sequences]
        tokens = max(self.batch_tokens, GROUP_BYTES // (4 * self.width))
        for group in batches_of(lengths, tokens):
            yield [sequences[i] for i in group]

    def _check_lengths(self, sequences: Sequence[str]) -> None:
        longest = max(map(len, sequences), default=1)
        if any(not sequence for sequence in sequences):
            raise UserError("a sequence without residues cannot be embedded; leave it out")
        if self.model.max_residues is not None and longest > self.model.max_residues:
            raise UserError(
                f"{self.model.name}: a sequence of {longest} residues, but the model takes at most "
                f"{self.model.max_residues}; set benchmarks.max_residues and data.max_residues to that or less"
            )
