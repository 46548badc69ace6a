"""The folder a build writes to: one build at a time, nothing foreign in it, a work folder that does not outlive it."""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from configs.errors import UserError
from data_pipeline.manifest import MANIFEST_NAME, REJECTS_NAME, Manifest, read_manifest

WORK_NAME = ".work"
INPUTS_NAME = "inputs.json"
"""Holds the hash over configuration and entries (with modification times) that a repeated build compares."""
REMOVAL_TRIES = 5
SECONDS_BETWEEN_TRIES = 0.2


@contextmanager
def sole_use(output: Path) -> Iterator[None]:
    """The folder, made when missing, for this process alone; the lock ends with the process and leaves no file.

    Raises:
        UserError: it cannot be made, or another build holds it.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        handle = os.open(output, os.O_RDONLY)
    except OSError as error:
        raise UserError(
            f"output {output}: cannot be used ({error.strerror}); name a folder that can be written"
        ) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UserError(
            f"output {output}: another build is writing there; wait for it or name another folder"
        ) from None
    try:
        yield
    finally:
        os.close(handle)


def finished_manifest(output: Path, identity: str) -> Manifest | None:
    """The manifest when the last build had the same inputs and every file still has its size."""
    if not (output / MANIFEST_NAME).is_file():
        return None
    try:
        manifest, _ = read_manifest(output)
        same = json.loads((output / INPUTS_NAME).read_bytes())["identity"] == identity
        shards = [shard for split in manifest.splits.values() for shard in split.shards]
        whole = all((output / s.name).stat().st_size == s.bytes and (output / s.index).is_file() for s in shards)
        whole = whole and (output / REJECTS_NAME).is_file()
    except (UserError, OSError, ValueError, KeyError):
        return None
    if not (same and whole):
        return None
    # Killed between its manifest and its last step.
    remove_folder(output / WORK_NAME)
    return manifest


def work_folders(output: Path, identity: str) -> tuple[Path, Path]:
    """Folders for parsed batches and for this build's unfinished shards; leftovers of other builds go.

    The manifest goes first: from here on the folder must not be taken for a finished build.

    Raises:
        UserError: the folder holds files that no build has written.
    """
    foreign = [p.name for p in output.iterdir()] if not _ours(output) else []
    if foreign:
        raise UserError(
            f"output {output}: holds {len(foreign)} other files (e.g. {sorted(foreign)[0]}) and no shards; "
            "name a new or empty folder, or an earlier build's"
        )
    work = output / WORK_NAME
    parsed, scratch = work / "parsed", work / identity
    # Made before the manifest goes, so that the folder is known as ours at every moment.
    parsed.mkdir(parents=True, exist_ok=True)
    (output / MANIFEST_NAME).unlink(missing_ok=True)
    for path in work.iterdir():
        # Also disarms workers of a killed build that still run: their unfinished files have nowhere to go.
        if path not in (parsed, scratch):
            remove_folder(path)
    scratch.mkdir(exist_ok=True)
    for path in [*parsed.glob(".*.part"), *scratch.glob(".*.part")]:
        path.unlink()
    return parsed, scratch


def remove_folder(folder: Path) -> None:
    """Remove a folder into which a worker of a killed build may still be writing its last file."""
    for _ in range(REMOVAL_TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(SECONDS_BETWEEN_TRIES)
    shutil.rmtree(folder)


def _ours(output: Path) -> bool:
    return (output / WORK_NAME).is_dir() or (output / INPUTS_NAME).is_file()
