"""What clients send, read strictly: no unknown field, no NaN, no endless nesting."""

import json
from typing import Any, TypeVar

from fastapi import HTTPException
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

MAX_ID = 2**63 - 1
MAX_NAME = 200
FASTA_TYPES = ("text/x-fasta", "application/x-fasta", "text/plain")


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


_B = TypeVar("_B", bound=_Body)


class NewEvaluation(_Body):
    """A checkpoint to evaluate."""

    checkpoint: str = Field(min_length=1, max_length=4096)
    """Folder of the checkpoint on the service's machine, below one of the watched places."""
    priority: int = Field(default=0, ge=-1000, le=1000)
    """Higher ones come first."""
    again: bool = False
    """Queue it again where it has failed."""


class Sequence(_Body):
    name: str = Field(min_length=1, max_length=MAX_NAME)
    sequence: str = Field(min_length=1)


class Sequences(_Body):
    """Proteins to embed, or to predict 3Di states of."""

    sequences: list[Sequence] = Field(min_length=1)


def read_body(model: type[_B], body: bytes) -> _B:
    """A JSON body as its model.

    Raises:
        RequestValidationError: it is no JSON (400 by our handler's `json_invalid`), or not what the model allows.
    """
    try:
        tree = json.loads(body.decode(), parse_constant=_no_constant)
        return model.model_validate(tree)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the body is not JSON ({type(error).__name__})") from None


def read_sequences(content_type: str, body: bytes, max_residues: int) -> list[tuple[str, str]]:
    """Names and sequences in upper case, of a JSON or a FASTA body.

    Raises:
        HTTPException: neither of the two, too many residues, or letters that are none.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind in FASTA_TYPES:
        found = _fasta(body)
    elif kind == "application/json":
        found = [(one.name, one.sequence) for one in read_body(Sequences, body).sequences]
    else:
        raise HTTPException(415, f"allowed content types: application/json, {', '.join(FASTA_TYPES)}")
    total = sum(len(sequence) for _, sequence in found)
    if total > max_residues:
        raise HTTPException(413, f"{total} residues in one request, allowed are {max_residues}; send several requests")
    for number, (_, sequence) in enumerate(found, 1):
        if not (sequence.isascii() and sequence.isalpha()):
            raise HTTPException(422, f"sequence {number} holds something other than letters A to Z")
    return [(name, sequence.upper()) for name, sequence in found]


def explain(errors: Any) -> list[dict[str, Any]]:
    """Validation errors without what the client sent: it may be endless, or not even text."""
    return [
        {"where": [_plain(part) for part in error.get("loc", ())][:8], "what": _plain(error.get("msg", ""))}
        for error in list(errors)[:20]
    ]


def _fasta(body: bytes) -> list[tuple[str, str]]:
    try:
        lines = body.decode().splitlines()
    except UnicodeDecodeError:
        raise HTTPException(400, "the body is no text") from None
    found: list[tuple[str, list[str]]] = []
    for number, line in enumerate(map(str.strip, lines), 1):
        if line.startswith(">"):
            found.append(((line[1:].split() or [""])[0][:MAX_NAME] or f"sequence{len(found) + 1}", []))
        elif line and not found:
            raise HTTPException(400, f"line {number}: no `>name` before it; the body is no FASTA")
        elif line:
            found[-1][1].append(line.rstrip("*"))
    if not found or any(not parts for _, parts in found):
        raise HTTPException(422, "the body has no sequence, or a name without one")
    return [(name, "".join(parts)) for name, parts in found]


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _plain(value: object) -> str:
    return str(value)[:200].encode("utf-8", "replace").decode()
