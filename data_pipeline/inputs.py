"""What a build reads: the entries of its source, with what tells a changed file from the same one."""

import hashlib
import json
import os
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from configs.build import BuildConfig
from configs.source import SourceConfig
from data_pipeline.sources import Entry, configured_source, mark_superseded
from data_pipeline.sources.opening import local_path
from data_pipeline.sources.remote import is_url
from data_pipeline.synthetic.entries import write_synthetic

_DIGEST_BYTES = 16


@dataclass(frozen=True)
class Inputs:
    """Entries in their source's order."""

    place: str
    """Folder, tar, file, list or URL that was read."""
    entries: tuple[Entry, ...]
    fingerprints: tuple[str, ...]
    """Per entry: hash over its name and state (size and time on disk, or what a remote listing tells), and over how it
    is read; a change means parsing again."""
    names_and_sizes_sha256: str
    """Over names and sizes alone (null where only reading tells it): equal wherever the same files lie."""


def read_inputs(config: BuildConfig) -> Inputs:
    """List the source's entries, up to `source.limit`; writes the synthetic structures first when they are the source.

    Synthetic structures lie in `<output>.structures` beside the shards and are kept: they are inputs like any other.
    Of several versions of a model all but the highest refuse to be read (among the listed ones, if there is a limit).

    Raises:
        UserError: nothing at the source's path, or nothing in it.
    """
    place, source = _place(config)
    listed = islice(configured_source(source, config.seconds_per_structure).entries(), source.limit)
    entries = tuple(mark_superseded(list(listed)))
    stats = _Stats()
    fingerprints = tuple(_fingerprint(entry, stats) for entry in entries)
    return Inputs(place, entries, fingerprints, _names_and_sizes(entries, stats))


def _place(config: BuildConfig) -> tuple[str, SourceConfig]:
    """What was read, in words, and the configuration of reading it."""
    source = config.source
    if source.kind != "synthetic":
        assert source.path is not None
        path = local_path(source.path)
        return (path if isinstance(path, str) else str(path.absolute())), source
    output = config.output.absolute()
    place = str(output.with_name(f"{output.name}.structures"))
    write_synthetic(source.synthetic, Path(place))
    return place, source.model_copy(update={"kind": "files", "path": place})


class _Stats:
    """Size and modification time (ns) of local files; those that hold many entries are remembered."""

    def __init__(self) -> None:
        self._of_archive: dict[str, tuple[int, int]] = {}

    def of(self, entry: Entry) -> tuple[int, int]:
        if entry.offset is None:
            return _stat(entry.path)
        if entry.path not in self._of_archive:
            self._of_archive[entry.path] = _stat(entry.path)
        return self._of_archive[entry.path]


def _stat(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        # Gone since it was listed, or a broken link: reading it will give the reason.
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _is_local(entry: Entry) -> bool:
    return bool(entry.path) and not is_url(entry.path)


def _fingerprint(entry: Entry, stats: _Stats) -> str:
    """Changes whenever the entry's bytes may have changed; independent of where the source's root lies."""
    state = stats.of(entry) if _is_local(entry) and not entry.version else None
    kind = entry.reader.kind if entry.reader else ""
    content = json.dumps([entry.name, entry.offset, entry.length, entry.version, state, kind])
    return hashlib.blake2b(content.encode(), digest_size=_DIGEST_BYTES).hexdigest()


def _names_and_sizes(entries: tuple[Entry, ...], stats: _Stats) -> str:
    digest = hashlib.sha256(b"[")
    for index, entry in enumerate(entries):
        digest.update((", " * bool(index) + json.dumps([entry.name, _size(entry, stats)])).encode())
    digest.update(b"]")
    return digest.hexdigest()


def _size(entry: Entry, stats: _Stats) -> int | None:
    if entry.length is not None:
        return entry.length
    if _is_local(entry):
        return stats.of(entry)[0]
    size = entry.version.partition("|")[0]
    return int(size) if size.isdigit() else None
