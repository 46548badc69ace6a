"""3Di tokens predicted from sequence, in the files from which Foldseek builds a database without structures.

A folder holds `aa.fasta` and `3di.fasta` (same names, same order, same lengths), the same as `aa.tsv`, `3di.tsv` and
`header.tsv` (a number from 1, a tab, the value), which `foldseek tsv2db` takes as they are, and `confidence.tsv`: name,
mean, and the predicted state's probability at every residue.
"""

import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from configs.errors import UserError
from data_pipeline.structure.chain import THREEDI_STATES
from eval.embed import tool_model, window_residues
from eval.fasta_stream import FastaRecord, Progress, scan_fasta, windows
from eval.models.protocol import Precision, ProteinModel

AA_FASTA, THREEDI_FASTA, CONFIDENCE = "aa.fasta", "3di.fasta", "confidence.tsv"
AA_TABLE, THREEDI_TABLE, HEADER_TABLE = "aa.tsv", "3di.tsv", "header.tsv"
FILES = (AA_FASTA, THREEDI_FASTA, CONFIDENCE, AA_TABLE, THREEDI_TABLE, HEADER_TABLE)
FOLDSEEK_COMMANDS = (
    f"foldseek tsv2db {AA_TABLE} db --output-dbtype 0",
    f"foldseek tsv2db {THREEDI_TABLE} db_ss --output-dbtype 0",
    f"foldseek tsv2db {HEADER_TABLE} db_h --output-dbtype 12",
)
"""Run in the folder, these make the database `db`."""


@dataclass(frozen=True)
class Threedi:
    """Predicted structure tokens of one sequence."""

    states: str
    """One letter of Foldseek's alphabet for each residue."""
    confidence: np.ndarray
    """float32 [N]: probability of that state."""


@dataclass(frozen=True)
class Written:
    """What was written."""

    folder: Path
    num_sequences: int
    num_residues: int
    mean_confidence: float
    """Over residues."""
    seconds: float


def predict_tokens(model: ProteinModel, sequences: Sequence[str]) -> list[Threedi]:
    """The most probable 3Di state of every residue, by the model's own head.

    Raises:
        UserError: the model has no 3Di head.
    """
    logits = model.threedi_logits(sequences)
    if logits is None:
        raise UserError(
            f"{model.name}: has no 3Di head; name a checkpoint that was trained with losses.structure above 0"
        )
    found = []
    for one in logits:
        confidence, states = one.softmax(dim=-1).max(dim=-1)
        found.append(Threedi("".join(THREEDI_STATES[state] for state in states.tolist()), confidence.numpy()))
    return found


def run_tokens(
    checkpoint: str,
    fasta: Path,
    output: Path,
    batch_tokens: int = 4096,
    precision: Precision = "float32",
    device: str = "auto",
    progress: bool = True,
) -> Written:
    """Predict 3Di of a FASTA file (plain or gzipped) into a folder; it gets its name when it is complete.

    Raises:
        UserError: something is wrong with the model, the FASTA file (all of it is checked first), or the folder.
    """
    begin = time.monotonic()
    if output.exists() and (not output.is_dir() or {file.name for file in output.iterdir()} - set(FILES)):
        raise UserError(f"output {output}: holds something else; name a new folder")
    model = tool_model(checkpoint, batch_tokens, precision, device)
    facts = scan_fasta(fasta, model.max_residues)
    partial = output.with_name(f".{output.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    shown, number, total = Progress("tokens", facts, progress), 0, 0.0
    try:
        with ExitStack() as stack:
            files = {name: stack.enter_context((partial / name).open("w")) for name in FILES}
            for window in windows(fasta, window_residues(model, batch_tokens)):
                predicted = predict_tokens(model, [record.sequence for record in window])
                for record, threedi in zip(window, predicted, strict=True):
                    number += 1
                    total += float(threedi.confidence.sum(dtype=np.float64))
                    _write(files, number, record, threedi)
                shown.advance(len(window), sum(len(record.sequence) for record in window))
        if number != facts.num_sequences:
            raise UserError("the FASTA file changed while it was read; run the command again")
        shutil.rmtree(output, ignore_errors=True)
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    mean = total / facts.num_residues
    return Written(output, facts.num_sequences, facts.num_residues, mean, time.monotonic() - begin)


def _write(files: dict[str, TextIO], number: int, record: FastaRecord, threedi: Threedi) -> None:
    files[AA_FASTA].write(f">{record.name}\n{record.sequence}\n")
    files[THREEDI_FASTA].write(f">{record.name}\n{threedi.states}\n")
    files[AA_TABLE].write(f"{number}\t{record.sequence}\n")
    files[THREEDI_TABLE].write(f"{number}\t{threedi.states}\n")
    files[HEADER_TABLE].write(f"{number}\t{record.name}\n")
    values = " ".join(f"{value:.2f}" for value in threedi.confidence)
    files[CONFIDENCE].write(f"{record.name}\t{threedi.confidence.mean():.4f}\t{values}\n")
