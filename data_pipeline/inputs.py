"""What a build reads: the entries of its source, with what tells a changed file from the same one."""

import hashlib
import json
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from configs.build import BuildConfig
from data_pipeline.sources import Entry, open_source
from data_pipeline.synthetic import write_synthetic


@dataclass(frozen=True)
class Inputs:
    """Entries in name order."""

    place: Path
    """Folder, tar or file that was read."""
    entries: tuple[Entry, ...]
    fingerprints: tuple[str, ...]
    """Per entry: name, size and modification time of the file that holds it; a change means parsing again."""
    names_and_sizes_sha256: str
    """The same without times and places: equal wherever the same files lie."""


def read_inputs(config: BuildConfig) -> Inputs:
    """List the source's entries, up to `source.limit`; writes the synthetic structures first when they are the source.

    Synthetic structures lie in `<output>.structures` beside the shards and are kept: they are inputs like any other.

    Raises:
        UserError: nothing at the source's path, or nothing in it.
    """
    place = _place(config)
    entries = tuple(islice(open_source(place).entries(), config.source.limit))
    stats: dict[str, tuple[int, int]] = {}
    fingerprints = tuple(_fingerprint(entry, stats) for entry in entries)
    lasting = json.dumps([[entry.name, _size(entry, stats)] for entry in entries])
    return Inputs(place, entries, fingerprints, hashlib.sha256(lasting.encode()).hexdigest())


def _place(config: BuildConfig) -> Path:
    if config.source.kind == "files":
        assert config.source.path is not None
        return config.source.path.absolute()
    output = config.output.absolute()
    place = output.with_name(f"{output.name}.structures")
    write_synthetic(config.source.synthetic, place)
    return place


def _fingerprint(entry: Entry, stats: dict[str, tuple[int, int]]) -> str:
    """Changes whenever the entry's bytes may have changed; independent of where the source's root lies."""
    fields = {name: value for name, value in asdict(entry).items() if name != "path"}
    return json.dumps([fields, _stat(entry, stats)], sort_keys=True, default=str)


def _size(entry: Entry, stats: dict[str, tuple[int, int]]) -> int:
    return _stat(entry, stats)[0] if entry.length is None else entry.length


def _stat(entry: Entry, stats: dict[str, tuple[int, int]]) -> tuple[int, int]:
    """Size and modification time (ns) of the file that holds the entry; `stats` remembers them by path."""
    if entry.path not in stats:
        try:
            found = Path(entry.path).stat()
            stats[entry.path] = (found.st_size, found.st_mtime_ns)
        except OSError:
            # Gone since it was listed, or a broken link: reading it will give the reason.
            stats[entry.path] = (0, 0)
    return stats[entry.path]
