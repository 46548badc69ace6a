"""Foldcomp databases: names from the lookup, bytes from the data file, coordinates from a process of their own.

The library ends with a segmentation fault on some inputs (damaged entries among them), so it never runs in a process
that matters: one helper per process decompresses entry after entry, and is started anew after a crash or a timeout.
"""

import atexit
import importlib.util
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.errors import UserError
from data_pipeline.sources.entries import Entry
from data_pipeline.structure.chain import StructureError

_MAGIC = b"FCMP"
_HEADER = struct.Struct("<4s4HBc2xIcc2xI48x")
"""Magic, counts of residues and atoms and their first indices, anchors, chain, side-chain torsions, first and last
residue, length of the title, discretisation; aligned as the library's C structure is."""
_WORKER = Path(__file__).with_name("foldcomp_worker.py")
_START_SECONDS = 30.0
"""Granted to a helper's first entry, on top of the entry's own time: it must import the library."""
_GRACE_SECONDS = 1.0
"""The helper's own alarm goes first; this parent is the second guard."""


def is_foldcomp_database(path: Path) -> bool:
    """The data file of a database lies there, with its index and lookup."""
    return path.is_file() and all(_beside(path, kind).is_file() for kind in ("index", "lookup"))


@dataclass(frozen=True)
class FoldcompSource:
    """Entries of a database in the order of its index, listed as far as they are consumed."""

    path: Path
    seconds: float
    """Per entry, after which it is rejected as `timed_out`."""

    def entries(self) -> Iterator[Entry]:
        if not is_foldcomp_database(self.path):
            raise UserError(
                f"source {self.path}: not a Foldcomp database; expected its data file with {self.path.name}.index and "
                f"{self.path.name}.lookup beside it"
            )
        if importlib.util.find_spec("foldcomp") is None:
            raise UserError(f"source {self.path}: the foldcomp library is not installed; pip install foldcomp")
        reader, place, size, names = FoldcompReader(self.seconds), str(self.path), self.path.stat().st_size, None
        for number, line in enumerate(open_lines(_beside(self.path, "index")), start=1):
            names = names or _Names(_beside(self.path, "lookup"))
            try:
                key, offset, length = map(int, line.split())
            except ValueError:
                raise _bad_line(_beside(self.path, "index"), number, line, "key, offset and length") from None
            if offset + length > size:
                raise UserError(
                    f"source {self.path}: holds {size} bytes, but {self.path.name}.index goes beyond at line {number}; "
                    "the data file is cut, fetch it again"
                )
            yield Entry(names.of(key), place, offset, length, reader=reader)
        if names is None:
            raise UserError(f"source {self.path}: the database is empty; set source.path to one with entries")


class _Names:
    """Names by key from a lookup file, which is read only as far as keys are asked for: both files have one order."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines = enumerate(open_lines(path), start=1)
        self._waiting: dict[int, str] = {}

    def of(self, key: int) -> str:
        while key not in self._waiting:
            number, line = next(self._lines, (0, ""))
            if not number:
                raise UserError(f"{self._path}: no name for key {key} of the index; fetch the database again")
            try:
                found, name = line.split("\t")[:2]
                self._waiting[int(found)] = name.strip()
            except ValueError:
                raise _bad_line(self._path, number, line, "key and name") from None
        return self._waiting.pop(key)


@dataclass(frozen=True)
class FoldcompReader:
    """Reads an entry as PDB text."""

    seconds: float
    kind: str = "foldcomp"

    def read(self, entry: Entry) -> tuple[str, bytes]:
        try:
            with open(entry.path, "rb") as file:
                file.seek(entry.offset or 0)
                data = file.read(entry.length)
        except OSError as error:
            raise StructureError("unreadable", f"{error.strerror or error}: {entry.path}") from None
        if not data.startswith(_MAGIC):
            raise StructureError("not_a_structure", "the entry does not begin like a Foldcomp entry")
        size = stated_size(data)
        if len(data) < size:
            raise StructureError("truncated", f"{len(data)} bytes, where the entry's header tells of {size}")
        # The database ends every entry with a zero; the library ends every model with TER, which cut text may, too.
        return entry.name, helper(self.seconds).decompress(data[:size]) + b"END\n"


def stated_size(data: bytes) -> int:
    """Bytes of a compressed entry by the counts in its header; the library reads a shorter one beyond its end.

    The layout is that of Foldcomp's file format: header, anchors' indices, title, anchors' coordinates (3 atoms each),
    the terminal oxygen, 8 bytes of backbone per residue, side-chain torsions, range and values of pLDDT.
    """
    if len(data) < _HEADER.size:
        return _HEADER.size
    _, residues, _, _, _, anchors, _, torsions, _, _, title = _HEADER.unpack_from(data)
    return _HEADER.size + 4 * anchors + title + 36 * anchors + 13 + 8 * residues + torsions + 8 + residues


class Helper:
    """A process that decompresses entries one after the other; `command` is started when first needed."""

    def __init__(self, command: Sequence[str], seconds: float) -> None:
        self._command, self._seconds = command, seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def decompress(self, data: bytes) -> bytes:
        """PDB text of a compressed entry.

        Raises:
            StructureError: `crashed` or `timed_out`; `parse_error` where the library says why.
        """
        with self._lock:
            fresh = self._process is None
            process = self._process = self._process or self._started()
            deadline = time.monotonic() + self._seconds + _GRACE_SECONDS + fresh * _START_SECONDS
            try:
                _send(process, struct.pack("<I", len(data)) + data, deadline)
                status, length = struct.unpack("<BI", _receive(process, 5, deadline))
                content = _receive(process, length, deadline)
            except TimeoutError:
                self._end()
                raise StructureError("timed_out", f"Foldcomp took longer than {self._seconds:g} s") from None
            except (EOFError, OSError):
                raise self._crash(process) from None
            except BaseException:
                # Interrupted halfway, e.g. by a time limit: the next answer would be to this request.
                self._end()
                raise
        if status:
            # An entry that the library cannot read may have left its memory in disorder.
            self.close()
            raise StructureError("parse_error", f"Foldcomp: {content.decode(errors='replace')}")
        return content

    def close(self) -> None:
        with self._lock:
            self._end()

    def _started(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )
        assert process.stdin is not None
        assert process.stdout is not None
        os.set_blocking(process.stdin.fileno(), False)
        os.set_blocking(process.stdout.fileno(), False)
        return process

    def _crash(self, process: subprocess.Popen[bytes]) -> StructureError:
        try:
            code = process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            code = 0
        self._end()
        if code == -signal.SIGALRM:
            return StructureError("timed_out", f"Foldcomp took longer than {self._seconds:g} s")
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return StructureError("crashed", f"Foldcomp's process ended with {how}")

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()


_helpers: dict[tuple[int, float], Helper] = {}


def helper(seconds: float) -> Helper:
    """The helper of this process (a forked child gets its own)."""
    key = (os.getpid(), seconds)
    if key not in _helpers:
        # -P: the folder of the script must not come before installed packages.
        _helpers[key] = Helper((sys.executable, "-P", str(_WORKER), repr(seconds)), seconds)
        atexit.register(_helpers[key].close)
    return _helpers[key]


def _send(process: subprocess.Popen[bytes], data: bytes, deadline: float) -> None:
    assert process.stdin is not None
    rest = memoryview(data)
    while rest:
        _wait((), (process.stdin,), deadline)
        rest = rest[os.write(process.stdin.fileno(), rest) :]


def _receive(process: subprocess.Popen[bytes], length: int, deadline: float) -> bytes:
    assert process.stdout is not None
    parts, missing = [], length
    while missing:
        _wait((process.stdout,), (), deadline)
        part = os.read(process.stdout.fileno(), min(missing, 2**20))
        if not part:
            raise EOFError
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def _wait(reads: Sequence, writes: Sequence, deadline: float) -> None:
    poll = select.poll()
    for pipes, event in ((reads, select.POLLIN), (writes, select.POLLOUT)):
        for pipe in pipes:
            poll.register(pipe, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError


def open_lines(path: Path) -> Iterator[str]:
    """The lines of a text file, which stays open only while they are consumed."""
    try:
        with open(path, encoding="utf-8") as file:
            yield from file
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"source {path}: cannot be read as text ({error}); fetch the database again") from None


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f"{path.name}.{kind}")


def _bad_line(path: Path, number: int, line: str, expected: str) -> UserError:
    return UserError(f"{path}:{number}: {line.strip()[:60]!r} does not hold {expected}; fetch the database again")
