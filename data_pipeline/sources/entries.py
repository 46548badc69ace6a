"""One structure of a source as a small value that any process can read."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol

from data_pipeline.structure.chain import StructureError
from data_pipeline.structure.facts import STRUCTURE_SUFFIXES


class Reader(Protocol):
    """How entries are read that are not plain bytes of a local file; one small value shared by many entries."""

    @property
    def kind(self) -> str:
        """Part of the entries' fingerprints: changes when the same entry would be read otherwise."""
        ...

    def read(self, entry: "Entry") -> tuple[str, bytes]:
        """Name and bytes of the structure file.

        Raises:
            StructureError: it cannot be had.
        """
        ...


@dataclass(frozen=True, slots=True)
class Entry:
    """One structure file: the whole of `path`, or `length` bytes from `offset` in it."""

    name: str
    """Path relative to the source's root, or the member's name in a tar; `/` separates folders."""
    path: str
    """Local path, or URL, of the file that holds it."""
    offset: int | None = None
    length: int | None = None
    version: str = ""
    """Tells the file's states apart where the listing says something of them; empty: size and time on disk do."""
    reader: Reader | None = None
    """None: bytes of a local file."""


class Source(Protocol):
    """Structure files in a fixed order."""

    def entries(self) -> Iterator[Entry]:
        """Every structure, sorted by name (a Foldcomp database: in its own order), listed as far as it is consumed.

        Raises:
            UserError: there is none, the place cannot be reached, or an archive is damaged.
        """
        ...


@dataclass(frozen=True)
class Refused:
    """Reads nothing: what was asked for and is left out becomes a reject with its reason, like a bad file."""

    reason: str
    detail: str

    @property
    def kind(self) -> str:
        return f"refused: {self.reason}"

    def read(self, entry: Entry) -> tuple[str, bytes]:
        raise StructureError(self.reason, self.detail)


def read_entry(entry: Entry) -> bytes:
    """The entry's bytes as they are stored (gzipped files stay gzipped).

    Raises:
        StructureError: `unreadable`, `not_found`, `superseded`, `crashed` or `timed_out`.
        UserError: the download cache cannot be written.
    """
    return read_named_entry(entry)[1]


def read_named_entry(entry: Entry) -> tuple[str, bytes]:
    """Like `read_entry`, with the name to parse by: `entry.name`, unless only reading tells the model's version."""
    return (entry.name, _read_local(entry)) if entry.reader is None else entry.reader.read(entry)


def is_structure_name(name: str) -> bool:
    """The name ends like that of a PDB, mmCIF or BinaryCIF file, gzipped or not, and is not hidden."""
    lower = PurePosixPath(name.lower()).name
    return lower.removesuffix(".gz").endswith(STRUCTURE_SUFFIXES) and not lower.startswith(".")


def _read_local(entry: Entry) -> bytes:
    try:
        with open(entry.path, "rb") as file:
            if entry.offset is None:
                return file.read()
            file.seek(entry.offset)
            data = file.read(entry.length)
    except OSError as error:
        raise StructureError("unreadable", f"{error.strerror or error}: {entry.path}") from None
    if len(data) != entry.length:
        raise StructureError("unreadable", f"{entry.path} is shorter than when it was listed")
    return data
