"""Structure files of a local folder, in name order and listed only as far as they are consumed."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from configs.errors import UserError
from data_pipeline.sources.archives import is_archive_name, nothing_in, open_archive
from data_pipeline.sources.entries import Entry, is_structure_name


@dataclass(frozen=True)
class FolderSource:
    """Every structure file below a folder, and every one in the tars below it; hidden ones are left out.

    Members of a tar are named `<tar's path>/<member's name>`, as if the tar were a folder. Only the names in
    the folders on the way to the current file are held, so the first entries of a mirror of millions cost little.
    """

    path: Path
    cache: Path | None = None

    def entries(self) -> Iterator[Entry]:
        empty = True
        for entry in self._below(self.path, ""):
            empty = False
            yield entry
        if empty:
            raise nothing_in(self.path)

    def _below(self, folder: Path, prefix: str) -> Iterator[Entry]:
        for name in _listed(folder):
            if name.endswith("/"):
                yield from self._below(folder / name, prefix + name)
            elif is_archive_name(name):
                members = open_archive(folder / name, self.cache).entries()
                yield from (replace(member, name=f"{prefix}{name}/{member.name}") for member in members)
            else:
                yield Entry(prefix + name, f"{folder}/{name}")


@dataclass(frozen=True)
class FileSource:
    """One structure file."""

    path: Path

    def entries(self) -> Iterator[Entry]:
        yield Entry(self.path.name, str(self.path))


def _listed(folder: Path) -> list[str]:
    """Structure files, tars and folders; folders (and tars, in the order) end in `/`.

    With that ending, the order of the names of each folder is the order of the full paths.
    """
    found = []
    try:
        with os.scandir(folder) as items:
            for item in items:
                if item.name.startswith("."):
                    continue
                if item.is_dir():
                    # As os.walk does: a link to a folder may lead in circles.
                    if not item.is_symlink():
                        found.append((f"{item.name}/", f"{item.name}/"))
                elif is_archive_name(item.name):
                    found.append((f"{item.name}/", item.name))
                elif is_structure_name(item.name):
                    found.append((item.name, item.name))
    except OSError as error:
        raise UserError(f"source {folder}: {error.strerror or error}; make it readable or move it away") from None
    return [name for _, name in sorted(found)]
