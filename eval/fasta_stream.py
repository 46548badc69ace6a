"""FASTA files of any size, read twice: once to check every line, once to work; memory does not grow with sequences."""

import gzip
import hashlib
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from configs.errors import UserError

_GZIP_MAGIC = b"\x1f\x8b"
_LETTERS = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_FRESH_IDS = 1 << 18


@dataclass(frozen=True)
class FastaRecord:
    """One sequence."""

    name: str
    """First word of the header, unique in its file."""
    sequence: str
    """Upper case, A-Z; a final `*` is taken off."""
    line: int
    """Of the header, from 1."""


@dataclass(frozen=True)
class FastaFacts:
    """What a whole file holds."""

    num_sequences: int
    num_residues: int
    longest: int
    """Residues of the longest sequence."""
    name_bytes: int
    """Of all names together."""
    longest_name: int


def scan_fasta(path: Path, max_residues: int | None = None) -> FastaFacts:
    """Check a file from end to end before anything is computed.

    Besides 8 bytes for each name (of which hashes are kept, to find duplicates) memory does not grow with the file.

    Raises:
        UserError: no such file, a damaged gzip stream, no sequence, a duplicate name, a sequence without residues or of
            more than `max_residues`, or a character that is no residue; the message names file and line.
    """
    seen, facts = _SeenNames(), FastaFacts(0, 0, 0, 0, 0)
    for record in read_fasta_stream(path):
        where = f"{path}:{record.line}"
        if seen.add(record.name):
            raise UserError(f"{where}: the name {record.name!r} stands twice; every header's first word must differ")
        if max_residues is not None and len(record.sequence) > max_residues:
            raise UserError(
                f"{where}: {record.name!r} has {len(record.sequence)} residues, the model takes at most {max_residues};"
                " cut it"
            )
        size = len(record.name.encode())
        facts = FastaFacts(
            facts.num_sequences + 1,
            facts.num_residues + len(record.sequence),
            max(facts.longest, len(record.sequence)),
            facts.name_bytes + size,
            max(facts.longest_name, len(record.name)),
        )
    if not facts.num_sequences:
        raise UserError(f"{path}: holds no sequence; a FASTA file has a line `>name` before each")
    return facts


def read_fasta_stream(path: Path) -> Iterator[FastaRecord]:
    """Sequences of a FASTA file, gzipped or not, one at a time.

    Raises:
        UserError: as `scan_fasta`, but for duplicates and lengths, when it comes to the line.
    """
    name, start, parts = "", 0, []
    number = 0
    for number, line in enumerate(_lines(path), start=1):
        text = line.strip()
        if text.startswith(b">"):
            if start:
                yield _record(path, name, start, parts)
            words = text[1:].split(None, 1)
            if not words:
                raise UserError(f"{path}:{number}: a header without a name; write `>name`")
            name, start, parts = words[0].decode(errors="replace"), number, []
        elif text:
            if not start:
                raise UserError(f"{path}:{number}: {_shown(text)} comes before any header; begin with a line `>name`")
            parts.append(_residues(path, number, text))
    if start:
        yield _record(path, name, start, parts)


def windows(path: Path, max_residues: int) -> Iterator[list[FastaRecord]]:
    """Neighbouring records of together at most `max_residues` residues; a longer one comes alone."""
    window: list[FastaRecord] = []
    total = 0
    for record in read_fasta_stream(path):
        if window and total + len(record.sequence) > max_residues:
            yield window
            window, total = [], 0
        window.append(record)
        total += len(record.sequence)
    if window:
        yield window


class Progress:
    """How far a command is, on stderr: one changing line on a terminal, else a line every ten seconds."""

    def __init__(self, what: str, facts: FastaFacts, shown: bool = True) -> None:
        self.what, self.facts, self.shown = what, facts, shown
        self.sequences = self.residues = 0
        self._begin = self._last = time.monotonic()

    def advance(self, sequences: int, residues: int) -> None:
        """Count what is done."""
        self.sequences += sequences
        self.residues += residues
        now, terminal = time.monotonic(), sys.stderr.isatty()
        done = self.sequences == self.facts.num_sequences
        if self.shown and (done or now - self._last >= (0.5 if terminal else 10.0)):
            self._last = now
            speed = self.residues / max(now - self._begin, 1e-9)
            left = (self.facts.num_residues - self.residues) / max(speed, 1e-9)
            text = (
                f"{self.what}: {self.sequences:,} of {self.facts.num_sequences:,} sequences, "
                f"{speed:,.0f} residues/s, {left:,.0f} s left"
            )
            print(text, end="\n" if done or not terminal else "\r", file=sys.stderr, flush=True)


class _SeenNames:
    """64-bit hashes of names: the newest in a set, the others in sorted arrays whose sizes double."""

    def __init__(self) -> None:
        self._fresh: set[int] = set()
        self._sorted: list[np.ndarray] = []

    def add(self, name: str) -> bool:
        """Whether the name was there before."""
        key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
        if key in self._fresh or any(_holds(array, key) for array in self._sorted):
            return True
        self._fresh.add(key)
        if len(self._fresh) >= _FRESH_IDS:
            merged = np.sort(np.fromiter(self._fresh, dtype=np.uint64, count=len(self._fresh)))
            self._fresh.clear()
            while self._sorted and len(self._sorted[-1]) <= len(merged):
                merged = np.sort(np.concatenate([self._sorted.pop(), merged]))
            self._sorted.append(merged)
        return False


def _holds(array: np.ndarray, key: int) -> bool:
    at = int(np.searchsorted(array, np.uint64(key)))
    return at < len(array) and int(array[at]) == key


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            magic = file.read(2)
            file.seek(0)
            opened: BinaryIO = gzip.GzipFile(fileobj=file) if magic == _GZIP_MAGIC else file
            yield from opened
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: damaged gzip file ({error}); fetch it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a FASTA file (.gz or not)") from None


def _residues(path: Path, number: int, text: bytes) -> bytes:
    letters = text.upper()
    body = letters.removesuffix(b"*")
    if not _LETTERS.issuperset(body):
        wrong = next(chr(byte) for byte in body if byte not in _LETTERS)
        raise UserError(
            f"{path}:{number}: {wrong!r} in {_shown(text)} is no residue; allowed: letters A-Z, and `*` at the end; "
            "take gaps and numbers out"
        )
    return letters


def _record(path: Path, name: str, start: int, parts: list[bytes]) -> FastaRecord:
    sequence = b"".join(parts).removesuffix(b"*")
    if b"*" in sequence:
        raise UserError(f"{path}:{start}: {name!r} has a `*` before its end; cut it there")
    if not sequence:
        raise UserError(f"{path}:{start}: {name!r} has no residues; remove its header")
    return FastaRecord(name, sequence.decode(), start)


def _shown(text: bytes) -> str:
    return repr(text[:40].decode(errors="replace"))
