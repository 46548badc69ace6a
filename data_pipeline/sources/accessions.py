"""AlphaFold models of listed UniProt accessions: from files that are at hand, or from the AlphaFold database's API."""

import json
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from configs.errors import UserError
from configs.source import RemoteConfig
from data_pipeline.sources.downloads import Downloads
from data_pipeline.sources.entries import Entry, Reader, Refused, Source
from data_pipeline.sources.listing import read_lines
from data_pipeline.sources.remote import NOT_FOUND, UNREADABLE, basename, download
from data_pipeline.sources.versions import accession_of, model_of
from data_pipeline.structure.chain import StructureError

log = logging.getLogger("data_pipeline")

_UNIPROT = re.compile(r"(?:[OPQ]\d[A-Z0-9]{3}\d|[A-NR-Z]\d(?:[A-Z][A-Z0-9]{2}\d){1,2})(?:-\d+)?")
"""UniProt's own definition of an accession, and the number of an isoform."""
_ALPHAFOLD = re.compile(r"AF-(?P<accession>.+?)-F\d+(?:-model_v\d+)?")


def read_accessions(place: str, remote: RemoteConfig) -> list[str]:
    """Distinct accessions of a list or table, sorted.

    The first column counts; `AF-P12345-F1` and `AF-P12345-F1-model_v6` stand for P12345; a table's header is skipped.

    Raises:
        UserError: a line that is no accession, by file and line, or none at all.
    """
    found, lines, is_table = set(), 0, re.search(r"\.(csv|tsv)(\.gz)?$", place.lower()) is not None
    for number, text in read_lines(place, remote):
        model = _ALPHAFOLD.fullmatch(text)
        accession = model["accession"] if model else text
        if _UNIPROT.fullmatch(accession):
            found.add(accession)
            lines += 1
        elif not (is_table and number == 1):
            raise UserError(
                f"{place}:{number}: {text[:80]!r} is no UniProt accession; expected one per line such as P12345 or "
                "AF-P12345-F1 (in a table: in its first column), # before comments"
            )
    if not found:
        raise UserError(f"source {place}: no accessions in it; expected one per line such as P12345")
    if lines > len(found):
        log.info("%s: %d of %d accessions stand there more than once", place, lines - len(found), lines)
    return sorted(found)


@dataclass(frozen=True)
class AccessionsFromFiles:
    """The models of the accessions among another source's files; all fragments of one, in the highest version."""

    place: str
    remote: RemoteConfig
    structures: Callable[[], Source]

    def entries(self) -> Iterator[Entry]:
        wanted = read_accessions(self.place, self.remote)
        missing = set(wanted)
        held = frozenset(wanted)
        found = []
        for entry in self.structures().entries():
            model = model_of(entry.name)
            accession = accession_of(model[0]) if model else None
            if accession in held:
                missing.discard(accession)
                found.append(entry)
        if len(missing) == len(wanted):
            raise UserError(
                f"source {self.place}: none of its {len(wanted)} accessions is among source.structures; file names "
                "there must be like AF-P12345-F1-model_v6.cif.gz"
            )
        reader = Refused(NOT_FOUND, "source.structures holds no model of this accession")
        found += [Entry(f"AF-{accession}-F1", "", reader=reader) for accession in missing]
        yield from sorted(found, key=lambda entry: entry.name)


@dataclass(frozen=True)
class AccessionsFromApi:
    """One entry per accession; the process that parses it asks for the model's address and version, and fetches it."""

    place: str
    remote: RemoteConfig
    api: str
    model_format: str

    def entries(self) -> Iterator[Entry]:
        reader: Reader = AlphaFoldApi(self.remote, self.api, self.model_format)
        for accession in read_accessions(self.place, self.remote):
            yield Entry(f"AF-{accession}-F1", self.api.replace("{accession}", accession), reader=reader)


@dataclass(frozen=True)
class AlphaFoldApi:
    """Reads a model through the answer of an API: the version is the one that the answer names."""

    remote: RemoteConfig
    api: str
    model_format: str

    @property
    def kind(self) -> str:
        return f"api {self.api} {self.model_format}"

    @property
    def parallel(self) -> int:
        return self.remote.parallel

    def read(self, entry: Entry) -> tuple[str, bytes]:
        downloads = Downloads(self.remote)
        answer = download(downloads, entry.path)
        url = _address(answer, entry.name, f"{self.model_format}Url", entry.path)
        name = basename(url)
        found = model_of(name)
        if found is None or found[0] != entry.name:
            raise StructureError(UNREADABLE, f"{entry.path} names {url}, which tells no version of {entry.name}")
        return name, download(downloads, url)


def _address(answer: bytes, model: str, field: str, url: str) -> str:
    """Address of the model's newest file in an answer: a list of mappings, one per model.

    Raises:
        StructureError: `not_found`, when the model is not in it; `unreadable`, when it cannot be understood.
    """
    try:
        rows = json.loads(answer)
    except ValueError:
        raise StructureError(UNREADABLE, f"{url} did not answer with JSON: {answer[:60]!r}") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise StructureError(UNREADABLE, f"{url} answered with something else than a list of models")
    # Isoforms and complexes of the accession are listed too; only the model asked for counts.
    ours = [row for row in rows if model in (row.get("modelEntityId"), row.get("entryId")) and row.get(field)]
    if not ours:
        raise StructureError(NOT_FOUND, f"{url} lists no {field} of {model}")
    return str(max(ours, key=_latest)[field])


def _latest(row: dict[str, Any]) -> int:
    version = row.get("latestVersion")
    return version if isinstance(version, int) else -1
