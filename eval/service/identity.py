"""Who a checkpoint is to the queue: its weights, and the protocol it is evaluated under."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from configs.errors import UserError
from configs.evaluate import EvalConfig
from eval.results import protocol_sha256
from pretrain.checkpoints import MANIFEST, is_checkpoint, open_checkpoint

SHARDS_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Identity:
    """A checkpoint folder, named by its weights."""

    checkpoint: Path
    weights_sha256: str
    """Of its manifest; of a damaged manifest `damaged:` and a hash of what lies there."""
    run: str
    step: int
    damage: str | None = None
    """Why it cannot be evaluated; what the manifest says is checked here, the files only by the evaluation itself."""


def identify(path: Path) -> Identity:
    """Read a checkpoint's manifest; a damaged one is an identity too, so that its failure has a place.

    Raises:
        UserError: the path is no checkpoint folder.
    """
    if not path.is_dir() or not is_checkpoint(path):
        raise UserError(f"checkpoint {path}: not a checkpoint folder; name one of a run's checkpoints/step_*")
    path = path.resolve()
    try:
        checkpoint = open_checkpoint(path, verify=False)
        return Identity(path, checkpoint.weights_sha256, checkpoint.config.name, checkpoint.step)
    except UserError as error:
        digits = path.name.rpartition("_")[2]
        run = path.parent.parent.name
        return Identity(path, _damaged_name(path), run, int(digits) if digits.isdigit() else 0, one_line(error))


def protocol_of(config: EvalConfig) -> str:
    """Hash of which tasks are evaluated and of all that can change their numbers."""
    manifest = None
    if config.data is not None:
        try:
            manifest = hashlib.sha256((config.data.shards / SHARDS_MANIFEST).read_bytes()).hexdigest()
        except OSError:
            manifest = str(config.data.shards)
    settings = [protocol_sha256(config, manifest), sorted(config.tasks)]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


def one_line(error: object, longest: int = 400) -> str:
    """An error as one line of limited length."""
    return " ".join(str(error).split())[:longest]


def _damaged_name(path: Path) -> str:
    try:
        content = (path / MANIFEST).read_bytes()
    except OSError:
        content = b""
    return f"damaged:{hashlib.sha256(str(path).encode() + content).hexdigest()[:48]}"
