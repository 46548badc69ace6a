"""Embeddings from sequences: of a list in memory, or of a FASTA file of any size into a file."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.evaluate import EvalConfig
from eval.embedding_files import embedding_file, format_of
from eval.fasta_stream import Progress, scan_fasta, windows
from eval.models.open import open_model
from eval.models.protocol import Precision, ProteinModel

WINDOW_BYTES = 1 << 28
"""States held in memory at a time; within them sequences are sorted by length."""


@dataclass(frozen=True)
class Embedded:
    """What was written."""

    path: Path
    num_sequences: int
    num_residues: int
    seconds: float


def embed_sequences(model: ProteinModel, sequences: Sequence[str], per_residue: bool = False) -> list[np.ndarray]:
    """Final states of each sequence in the order given: float32 [D] averaged over residues, or [N, D]."""
    states = model.hidden(sequences)
    return [one.numpy() if per_residue else one.mean(dim=0).numpy() for one in states]


def run_embed(
    checkpoint: str,
    fasta: Path,
    output: Path,
    per_residue: bool = False,
    file_format: str | None = None,
    batch_tokens: int = 4096,
    precision: Precision = "float32",
    device: str = "auto",
    progress: bool = True,
) -> Embedded:
    """Embed a FASTA file (plain or gzipped) into one file, in its order; memory does not grow with the file.

    Raises:
        UserError: something is wrong with the model, the FASTA file (all of it is checked first), or the output's name.
    """
    begin = time.monotonic()
    kind = format_of(output, file_format)
    model = tool_model(checkpoint, batch_tokens, precision, device)
    facts = scan_fasta(fasta, model.max_residues)
    about = {
        "model": model.name,
        "weights_sha256": model.weights_sha256,
        "representation": "residues" if per_residue else "mean",
        "precision": precision,
    }
    shown = Progress("embed", facts, progress)
    with embedding_file(output, kind, facts, model.width, per_residue, about) as file:
        for window in windows(fasta, window_residues(model, batch_tokens)):
            sequences = [record.sequence for record in window]
            found = embed_sequences(model, sequences, per_residue)
            file.write([record.name for record in window], [rows.reshape(-1, model.width) for rows in found])
            shown.advance(len(window), sum(map(len, sequences)))
    return Embedded(output, facts.num_sequences, facts.num_residues, time.monotonic() - begin)


def tool_model(checkpoint: str, batch_tokens: int, precision: Precision, device: str) -> ProteinModel:
    """The model that a command names."""
    settings = {"batch_tokens": batch_tokens, "device": device, "features": {"precision": precision}}
    return open_model(checkpoint, EvalConfig.model_validate(settings))


def window_residues(model: ProteinModel, batch_tokens: int) -> int:
    """Residues that are read, sorted by length and computed together."""
    return max(batch_tokens, WINDOW_BYTES // (4 * model.width))
