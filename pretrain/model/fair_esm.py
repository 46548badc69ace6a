"""Files that fair-esm itself loads: the one place of this project that writes a pickle, because that format is one.

What is written holds tensors, plain containers and one argparse.Namespace, as the published files do, so that
`torch.load(weights_only=True)` reads it once that class is allowed.
"""

import os
from pathlib import Path

import torch

from pretrain.model.contacts import ContactRegression
from pretrain.model.encoder import Encoder
from pretrain.model.export import fair_esm_files


def regression_path(path: Path) -> Path:
    """Where fair-esm looks for the contact regression of a model file."""
    return path.with_name(f"{path.stem}-contact-regression.pt")


def write_fair_esm(encoder: Encoder, path: Path, contact_regression: ContactRegression | None = None) -> None:
    """Write `<esm2...>.pt` and `<esm2...>-contact-regression.pt`, which fair-esm reads together.

    Without a contact regression its weights are zeros, so that fair-esm loads and predicts 0.5 everywhere. The bytes
    depend on nothing but the weights. Other files of these names are replaced, each at once and the model last.

    Args:
        encoder: an ESM-2 trunk.
        path: its stem must begin with `esm2`, by which fair-esm knows the architecture.

    Raises:
        OSError: a file cannot be written.
    """
    assert path.match("esm2*.pt"), "fair-esm chooses its reader by the name"
    model, regression = fair_esm_files(encoder, contact_regression)
    _write(regression, regression_path(path))
    _write(model, path)


def _write(content: dict, path: Path) -> None:
    partial = path.with_name(f".{path.name}.part")
    try:
        with partial.open("wb") as file:
            try:
                # Through a file object, as the archive would be named after a path.
                torch.save(content, file)
            except RuntimeError as error:
                # torch's archive writer meets a full disk with an error of its own.
                raise OSError(str(error).splitlines()[0]) from error
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
