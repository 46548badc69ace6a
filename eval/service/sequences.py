"""Rows that clients get for their proteins: by the functions of `eval embed` and `eval tokens`."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from configs.errors import UserError
from eval.models.protocol import ProteinModel
from eval.service.desk import Work

CHUNK_RESIDUES = 8192
"""Proteins are computed in groups of about this size: a client sees the first rows early."""


def embedding_rows(per: Literal["mean", "residues"]) -> Work:
    """Rows `{name, length, embedding}`: [D] of the whole protein or [N, D] of its residues."""

    def rows(model: ProteinModel, sequences: Sequence[tuple[str, str]]) -> Iterator[dict[str, Any]]:
        from eval.embed import embed_sequences

        for names, group in _groups(model, sequences):
            found = embed_sequences(model, group, per_residue=per == "residues")
            for name, sequence, embedding in zip(names, group, found, strict=True):
                yield {"name": name, "length": len(sequence), "embedding": embedding.tolist()}

    return rows


def token_rows(model: ProteinModel, sequences: Sequence[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """Rows `{name, length, threedi, confidence}`: a state per residue and its probability, to 4 digits."""
    from eval.tokens import predict_tokens

    for names, group in _groups(model, sequences):
        for name, found in zip(names, predict_tokens(model, group), strict=True):
            confidence = [round(float(p), 4) for p in found.confidence]
            yield {"name": name, "length": len(found.states), "threedi": found.states, "confidence": confidence}


def _groups(model: ProteinModel, sequences: Sequence[tuple[str, str]]) -> Iterator[tuple[list[str], list[str]]]:
    """Names and sequences of one group after the other.

    Raises:
        UserError: a sequence is longer than the model takes; before anything is computed.
    """
    longest = model.max_residues
    for name, sequence in sequences:
        if longest is not None and len(sequence) > longest:
            raise UserError(f"{name}: {len(sequence)} residues, the model takes at most {longest}")
    names: list[str] = []
    group: list[str] = []
    for name, sequence in sequences:
        if group and sum(map(len, group)) + len(sequence) > CHUNK_RESIDUES:
            yield names, group
            names, group = [], []
        names.append(name)
        group.append(sequence)
    yield names, group
