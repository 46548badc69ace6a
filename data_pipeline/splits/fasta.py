"""FASTA files: evaluation sets as users have them, and the scratch files that MMseqs2 reads."""

import gzip
import hashlib
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from configs.errors import UserError
from data_pipeline.structure.chain import AMINO_ACIDS, UNKNOWN_RESIDUE

_GZIP_MAGIC = b"\x1f\x8b"
_TO_OURS = dict.fromkeys(range(ord("A"), ord("Z") + 1), UNKNOWN_RESIDUE)
_TO_OURS |= {ord(letter): letter for letter in AMINO_ACIDS}
_TO_OURS |= {ord(letter.lower()): ours for letter, ours in [(chr(c), o) for c, o in _TO_OURS.items()]}
_TO_OURS |= {ord(gap): "" for gap in "*-. \t"}


@dataclass(frozen=True)
class FastaSet:
    """The sequences of one FASTA file, in its order."""

    path: str
    sha256: str
    """Of the file's bytes, compressed or not."""
    names: tuple[str, ...]
    """First word of each header."""
    sequences: tuple[str, ...]
    """In our letters: upper case, X for what is no standard residue, without gaps and stops."""


def read_fasta(path: str | Path) -> FastaSet:
    """Read a FASTA file of proteins, gzipped or not.

    Raises:
        UserError: there is no such file, its gzip stream is damaged, it holds no sequence, or a line is none (the
            message names file and line).
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a FASTA file (.gz or not)") from None
    digest = hashlib.sha256(data).hexdigest()
    if data.startswith(_GZIP_MAGIC):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path}: damaged gzip file ({error}); fetch it again") from None
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path}: is no text, so no FASTA file; name a FASTA file (.gz or not)") from None
    names, sequences = _records(path, lines)
    if not names:
        raise UserError(f"{path}: holds no sequence; a FASTA file has a line `>name` before each")
    return FastaSet(str(path), digest, tuple(names), tuple(sequences))


def write_fasta(path: Path, sequences: Iterable[str]) -> int:
    """Write sequences named 0, 1, 2, ...; returns their number."""
    number = 0
    with path.open("w") as file:
        for sequence in sequences:
            file.write(f">{number}\n{sequence}\n")
            number += 1
    return number


def _records(path: str | Path, lines: list[str]) -> tuple[list[str], list[str]]:
    names: list[str] = []
    parts: list[list[str]] = []
    for number, line in enumerate(lines, start=1):
        if line.startswith(">"):
            names.append((line[1:].split() or [f"sequence {len(names) + 1}"])[0])
            parts.append([])
        elif line.strip():
            letters = line.translate(_TO_OURS)
            if not parts or not (letters.isalpha() or letters == "") or not letters.isascii():
                remedy = "begin each sequence with a line `>name`" if not parts else "keep to one-letter residues"
                raise UserError(f"{path}:{number}: {line.strip()[:40]!r} is no sequence in FASTA form; {remedy}")
            parts[-1].append(letters)
    sequences = ["".join(part) for part in parts]
    if "" in sequences:
        raise UserError(f"{path}: {names[sequences.index('')]!r} has no residues; remove its header")
    return names, sequences
