"""The checkpoint format: pickle-free, independent of world size and ZeRO stage, complete only with its manifest.

`step_XXXXXXXX/` holds `config.yaml`, `state.json`, `weights-RRRRR.safetensors` and `optimizer-RRRRR.safetensors` (full
tensors by parameter name, each in exactly one file) and, written last, `manifest.json` with every file's bytes and
sha256. A folder without a manifest is not a checkpoint, so the format needs no rename and also holds on object stores.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from torch import Tensor

from configs.errors import UserError
from configs.loading import load_config
from configs.train import TrainConfig
from pretrain.tensor_files import FileFacts, TensorFacts, hash_file, write_bytes, write_tensors

FORMAT_VERSION = "1.0"
MANIFEST = "manifest.json"
CONFIG = "config.yaml"
STATE = "state.json"
CHECKPOINTS = "checkpoints"
BEST = "best"
_STEP_FOLDER = re.compile(r"step_(\d{8,})")
log = logging.getLogger("pretrain.checkpoints")


class DamagedCheckpoint(UserError):
    """A checkpoint folder whose content is not what its manifest says, or that has no manifest."""


class Content(Protocol):
    """What one rank contributes to a checkpoint."""

    def write(self, folder: Path, rank: int) -> dict[str, FileFacts]:
        """Write this rank's `weights-` and `optimizer-` files; returns what the manifest needs to know of them."""
        ...


@dataclass(frozen=True)
class Share:
    """Whole tensors in memory: parameters and optimizer moments that a rank owns, on the CPU."""

    weights: dict[str, Tensor]
    """Full float32 parameters (and buffers, in their own type) by name."""
    optimizer: dict[str, Tensor]
    """Full float32 moments by `<parameter>:<moment>`."""

    def write(self, folder: Path, rank: int) -> dict[str, FileFacts]:
        """Write the tensors into a file per kind."""
        facts = {}
        for kind, tensors in (("weights", self.weights), ("optimizer", self.optimizer)):
            if tensors:
                name = share_name(kind, rank)
                facts[name] = write_tensors(folder / name, tensors)
        return facts


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk; tensors are read on demand."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        return self.manifest["step"]

    @property
    def weights_sha256(self) -> str:
        """Names the weights whatever the sharding: see `digest_of`."""
        return self.manifest["weights_sha256"]

    @cached_property
    def config(self) -> TrainConfig:
        """The resolved configuration of the run that wrote it."""
        return load_config(TrainConfig, self.path / CONFIG)

    @cached_property
    def state(self) -> dict[str, Any]:
        """Content of state.json: step, data position, schedule, optimizer steps, counts."""
        return json.loads((self.path / STATE).read_text())

    def weights(self) -> dict[str, Tensor]:
        """Every parameter (float32) and buffer by name, on the CPU."""
        return dict(self.tensors("weights"))

    def tensors(self, kind: str) -> Iterator[tuple[str, Tensor]]:
        """Name and tensor, one at a time and file by file in name order; `kind` is `weights` or `optimizer`."""
        for name in sorted(self.manifest["files"]):
            if name.startswith(f"{kind}-"):
                with safe_open(self.path / name, framework="pt") as file:
                    for key in file.keys():  # noqa: SIM118 - a safetensors file is not a mapping
                        yield key, file.get_tensor(key)


def step_folder(run: Path, step: int) -> Path:
    return run / CHECKPOINTS / f"step_{step:08d}"


def digest_of(tensors: dict[str, TensorFacts]) -> str:
    """sha256 over the lines `name dtype shape sha256(bytes)` of all tensors in sorted name order."""
    lines = (f"{name} {t.dtype} {list(t.shape)} {t.sha256}\n" for name, t in sorted(tensors.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def list_checkpoints(run: Path) -> list[Path]:
    """Complete checkpoint folders of a run in step order: those with a manifest, not verified."""
    return [folder for _, folder in _step_folders(run) if (folder / MANIFEST).is_file()]


def is_checkpoint(path: Path) -> bool:
    """Whether a path means one checkpoint, whole or damaged, and not a run folder or something else."""
    return _STEP_FOLDER.fullmatch(path.name) is not None or (path / MANIFEST).is_file()


def open_checkpoint(path: Path | str, verify: bool = True) -> Checkpoint:
    """Open a checkpoint folder, or the last good one of a run folder (or of its `checkpoints/`).

    `RUN/best` is the checkpoint of lowest validation loss.

    With `verify`, every file is read once and compared with its sha256. In a run folder a damaged checkpoint is named
    in a warning and the one before it is taken.

    Raises:
        UserError: nothing there, no good checkpoint in the run, or the named checkpoint is damaged.
    """
    path = Path(path)
    if path.name == BEST and not path.exists():
        best = best_checkpoint(path.parent)
        if best is None:
            raise UserError(f"checkpoint {path}: no checkpoint there was validated; set validation.pools, or name one")
        path = best
    if is_checkpoint(path):
        return _open_one(path, verify)
    if not path.is_dir():
        raise UserError(f"checkpoint {path}: no such folder; name a run folder or one of its checkpoints/step_*")
    found = last_good(path, verify)
    if found is None:
        raise UserError(f"checkpoint {path}: no complete checkpoint there; train the run first, or name another folder")
    return found


def best_checkpoint(run: Path) -> Path | None:
    """The complete checkpoint of a run with the lowest validation loss; None where none was validated."""
    losses = {}
    for folder in list_checkpoints(run):
        try:
            state = json.loads((folder / STATE).read_text())
        except (OSError, ValueError):
            continue
        if "loss" in state.get("validation", {}):
            losses[folder] = state["validation"]["loss"]
    return min(losses, key=losses.__getitem__, default=None)


def last_good(run: Path, verify: bool = True) -> Checkpoint | None:
    """The newest checkpoint of a run that is what its manifest says; None when there is none."""
    for folder in reversed(list_checkpoints(run)):
        try:
            return _open_one(folder, verify)
        except DamagedCheckpoint as error:
            log.warning("%s; it is skipped", error)
    return None


def share_name(kind: str, rank: int) -> str:
    """Name of one rank's file of `weights` or `optimizer`."""
    return f"{kind}-{rank:05d}.safetensors"


def clear_folder(folder: Path) -> None:
    """Make an empty folder for a checkpoint; what an interrupted or damaged attempt left there is removed."""
    if folder.exists():
        # The manifest goes first: a removal cut short must not look complete.
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def complete(folder: Path, step: int, config_text: str, state: dict[str, Any], files: dict[str, FileFacts]) -> str:
    """Write the small files and, last, the manifest; returns the sha256 that names the weights."""
    files = dict(files)
    files[CONFIG] = write_bytes(folder / CONFIG, config_text.encode())
    files[STATE] = write_bytes(folder / STATE, _json(state))
    weights = {n: t for name, f in files.items() if name.startswith("weights-") for n, t in f.tensors.items()}
    facts = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "weights_sha256": digest_of(weights),
        "parameters_and_buffers": {n: {"dtype": t.dtype, "shape": list(t.shape)} for n, t in sorted(weights.items())},
        "files": {name: {"bytes": f.num_bytes, "sha256": f.sha256} for name, f in sorted(files.items())},
    }
    partial = folder / f"{MANIFEST}.partial"
    write_bytes(partial, _json({**facts, "manifest_sha256": _digest(facts)}))
    os.replace(partial, folder / MANIFEST)
    _sync_folder(folder)
    return facts["weights_sha256"]


def save(
    run: Path,
    step: int,
    config_text: str,
    state: dict[str, Any],
    content: Content,
    rank: int = 0,
    exchange: Callable[[object], Sequence[Any]] = lambda value: [value],
) -> Path:
    """Write a checkpoint by all ranks together; every rank calls it, and it returns when the manifest is there.

    `exchange` gathers one small value of every rank on every rank (and so is a barrier).

    Raises:
        OSError: any rank could not write (disk full, say); raised on every rank. No manifest is written, and what was
            written is removed.
    """
    folder = step_folder(run, step)
    try:
        _together(exchange, rank, lambda: clear_folder(folder) if rank == 0 else None)
        parts = _together(exchange, rank, lambda: content.write(folder, rank))
        files = {name: facts for part in parts for name, facts in part.items()}
        _together(exchange, rank, lambda: complete(folder, step, config_text, state, files) if rank == 0 else None)
    except OSError:
        if rank == 0:
            _remove(folder)
        raise
    return folder


def remove_unfinished(run: Path) -> list[Path]:
    """Remove the folders that an interrupted save or removal left without a manifest; returns them."""
    removed = [folder for _, folder in _step_folders(run) if not (folder / MANIFEST).is_file()]
    for folder in removed:
        _remove(folder)
    return removed


def _remove(folder: Path) -> None:
    """Free a folder's space as far as that is possible; what is left has no manifest."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def prune(run: Path, keep: int) -> list[Path]:
    """Remove all but the newest `keep` complete checkpoints and the `best` one; returns what was removed."""
    best = best_checkpoint(run)
    removed = [folder for folder in list_checkpoints(run)[:-keep] if folder != best]
    for folder in removed:
        _remove(folder)
    return removed


def _together(exchange: Callable[[object], Sequence[Any]], rank: int, work: Callable[[], Any]) -> list[Any]:
    """Run `work` on every rank and share the results; one rank's OSError becomes every rank's, so nobody waits."""
    try:
        outcome = (work(), None)
    except OSError as error:
        outcome = (None, f"rank {rank}: {error}")
    outcomes = exchange(outcome)
    failures = [failure for _, failure in outcomes if failure]
    if failures:
        raise OSError(f"checkpoint not written: {'; '.join(failures)}")
    return [result for result, _ in outcomes]


def _step_folders(run: Path) -> list[tuple[int, Path]]:
    parent = run / CHECKPOINTS if (run / CHECKPOINTS).is_dir() else run
    matches = ((_STEP_FOLDER.fullmatch(folder.name), folder) for folder in parent.glob("step_*"))
    return sorted((int(match[1]), folder) for match, folder in matches if match)


def _open_one(folder: Path, verify: bool) -> Checkpoint:
    if not folder.is_dir():
        raise UserError(f"checkpoint {folder}: no such folder; name a run folder or one of its checkpoints/step_*")
    try:
        data = (folder / MANIFEST).read_bytes()
        manifest = json.loads(data)
        facts = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
        # Byte for byte what `complete` wrote: a flip in white space counts as damage too.
        intact = data == _json({**facts, "manifest_sha256": _digest(facts)})
    except FileNotFoundError:
        raise DamagedCheckpoint(f"checkpoint {folder}: not complete (no {MANIFEST}); take an earlier one") from None
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedCheckpoint(f"checkpoint {folder}: {MANIFEST} is damaged ({error}); take another one") from None
    if not intact:
        raise DamagedCheckpoint(f"checkpoint {folder}: {MANIFEST} is damaged (sha256 differs); take another one")
    if manifest["format_version"].split(".")[0] != FORMAT_VERSION.split(".", maxsplit=1)[0]:
        raise UserError(
            f"checkpoint {folder}: format {manifest['format_version']}, this version reads {FORMAT_VERSION};"
            " open it with the version that wrote it"
        )
    for name, expected in manifest["files"].items():
        _check_file(folder, name, expected, verify)
    return Checkpoint(folder, manifest)


def _check_file(folder: Path, name: str, expected: dict[str, Any], verify: bool) -> None:
    file = folder / name
    try:
        num_bytes = file.stat().st_size
    except FileNotFoundError:
        raise DamagedCheckpoint(f"checkpoint {folder}: {name} is missing; take another one") from None
    if num_bytes != expected["bytes"]:
        raise DamagedCheckpoint(
            f"checkpoint {folder}: {name} has {num_bytes} bytes, {expected['bytes']} were written; take another one"
        )
    try:
        found = hash_file(file) if verify else expected["sha256"]
    except (OSError, SafetensorError) as error:
        raise DamagedCheckpoint(f"checkpoint {folder}: {name} cannot be read ({error}); take another one") from None
    if found != expected["sha256"]:
        raise DamagedCheckpoint(f"checkpoint {folder}: {name} is damaged (sha256 differs); take another one")


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, indent=1).encode() + b"\n"


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(_json(content)).hexdigest()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
