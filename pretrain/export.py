"""`python -m pretrain export`: the trunk of a checkpoint in another project's format."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import safetensors.torch

from configs.errors import UserError
from pretrain.checkpoints import Checkpoint, open_checkpoint
from pretrain.model.contacts import ContactRegression, read_contact_regression
from pretrain.model.encoder import Encoder
from pretrain.model.export import to_amplify, write_huggingface_folder
from pretrain.model.fair_esm import regression_path, write_fair_esm
from pretrain.model.shape import trunk_shape
from pretrain.model.weights import load_trunk

Form = Literal["fair-esm", "huggingface", "amplify"]
_FAMILY: dict[str, str] = {"fair-esm": "esm2", "amplify": "amplify"}
"""Trunk family of the forms that only one has."""
_RESULTS, _REGRESSION = "results.json", "contact_regression.safetensors"
"""Files of an evaluation, in `<run>/eval/step_*/`."""


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    paths: tuple[Path, ...]
    num_bytes: int
    contacts: Path | None
    """The contact regression that went with it."""


def export(checkpoint_path: Path, form: Form, output: Path, contacts: Path | None = None) -> Exported:
    """Write the trunk of a checkpoint (or of a run's last good one), low-rank adapters merged, and nothing else.

    Args:
        checkpoint_path: checkpoint or run folder.
        form: `fair-esm`: `output` is an `esm2*.pt`, its contact regression beside it; `huggingface`: a folder for
            `AutoModelForMaskedLM`; `amplify`: a `.safetensors` file of the published AMPLIFY keys.
        output: must not exist.
        contacts: contact regression of an ESM-2 trunk; unset: the one that an evaluation of these very weights
            refitted in `<run>/eval`, if there is one.

    Raises:
        UserError: output that exists or has the wrong name, a trunk without that form, a regression that does not fit,
            a disk that is full.
    """
    written = _paths(form, output)
    for path in written:
        if path.exists():
            raise UserError(f"output {path}: exists already; remove it, or name another")
    checkpoint = open_checkpoint(checkpoint_path)
    _check_form(checkpoint, form)
    regression, source = _regression(checkpoint, contacts)
    encoder = load_trunk(checkpoint)
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        if form == "fair-esm":
            write_fair_esm(encoder, output, regression)
        else:
            _write_then_rename(encoder, form, output, regression)
    except OSError as error:
        raise UserError(
            f"output {output}: cannot be written ({error.strerror or error}); free space or name another place"
        ) from None
    files = [file for path in written for file in ([path] if path.is_file() else path.iterdir())]
    return Exported(written, sum(file.stat().st_size for file in files), source)


def _paths(form: Form, output: Path) -> tuple[Path, ...]:
    """What will be written; a name that the form's readers would not accept is refused."""
    if form == "fair-esm":
        if output.suffix != ".pt" or not output.name.startswith("esm2"):
            raise UserError(
                f"output {output}: fair-esm only loads esm2*.pt; name it e.g. {output.parent / 'esm2_sa.pt'}"
            )
        return output, regression_path(output)
    if form == "amplify" and output.suffix != ".safetensors":
        raise UserError(f"output {output}: form amplify is one file; name it e.g. {output.parent / 'sa.safetensors'}")
    return (output,)


def _check_form(checkpoint: Checkpoint, form: Form) -> None:
    trunk = checkpoint.config.trunk
    if trunk is None:
        raise UserError(
            f"checkpoint {checkpoint.path}: stage {checkpoint.config.stage!r} trains no trunk;"
            " name a checkpoint of stage reference or align"
        )
    family = trunk_shape(trunk).family
    if _FAMILY.get(form, family) != family:
        allowed = [name for name in ("fair-esm", "huggingface", "amplify") if _FAMILY.get(name, family) == family]
        raise UserError(
            f"checkpoint {checkpoint.path}: form {form!r} is for {_FAMILY[form]} trunks, this one is {family};"
            f" allowed: {', '.join(allowed)}"
        )


def _regression(checkpoint: Checkpoint, contacts: Path | None) -> tuple[ContactRegression | None, Path | None]:
    """The contact regression to go with an ESM-2 trunk, and the file it is from."""
    assert checkpoint.config.trunk is not None
    shape = trunk_shape(checkpoint.config.trunk)
    if shape.family != "esm2":
        if contacts is not None:
            raise UserError(
                f"contact regression {contacts}: only exports of esm2 trunks hold one; leave out --contacts"
            )
        return None, None
    source = contacts or _evaluated_regression(checkpoint)
    if source is None:
        return None, None
    regression = read_contact_regression(source)
    wanted = shape.layers * shape.heads
    if regression.weight.numel() != wanted:
        raise UserError(
            f"contact regression {source}: has {regression.weight.numel()} weights, the trunk {wanted} attention maps"
            f" ({shape.layers} layers x {shape.heads} heads); name the one fitted on this trunk"
        )
    return regression, source


def _evaluated_regression(checkpoint: Checkpoint) -> Path | None:
    """The regression that an evaluation of exactly these weights fitted, where the run folder has one."""
    for results in sorted((checkpoint.path.parent.parent / "eval").glob(f"step_*/{_RESULTS}")):
        file = results.with_name(_REGRESSION)
        if file.is_file() and json.loads(results.read_text()).get("weights_sha256") == checkpoint.weights_sha256:
            return file
    return None


def _write_then_rename(encoder: Encoder, form: Form, output: Path, regression: ContactRegression | None) -> None:
    """The output gets its name only when it is complete."""
    partial = output.with_name(f".{output.name}.part")
    _remove(partial)
    try:
        if form == "amplify":
            safetensors.torch.save_file(to_amplify(encoder), partial, metadata={"format": "pt"})
        else:
            write_huggingface_folder(encoder, partial, regression)
        for file in [partial] if partial.is_file() else partial.iterdir():
            # safetensors writes files that only their owner may read.
            file.chmod(0o644)
        partial.rename(output)
    except safetensors.SafetensorError as error:
        raise OSError(str(error)) from error
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
