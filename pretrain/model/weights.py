"""Reading published or own weights into a trunk."""

import argparse
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from configs.errors import UserError
from configs.trunk import AMPLIFY_SIZES, ESM2_SIZES, PUBLISHED_SIZES
from pretrain.checkpoints import Checkpoint, open_checkpoint
from pretrain.model.attention import default_inv_freq
from pretrain.model.encoder import Encoder
from pretrain.model.lora import merge_adapters
from pretrain.model.names import DIALECTS, Dialect, from_dialect
from pretrain.model.shape import TrunkShape, trunk_shape

FREQUENCIES = "rotary.inv_freq_bits"
_NOT_OURS = re.compile(
    # Tied copies, contact regression, transformers' absolute positions and pooler, and MLP biases of an AMPLIFY export.
    r"contact_head\.|position_ids$|position_embeddings\.|pooler\.|lm_head\.decoder\.weight$|mlp\.\w+_proj\.bias$"
    r"|inv_freq$|(^|\.)version$|freqs_cis$"
)
_ALLOWED = "a fair-esm .pt, a transformers folder, AMPLIFY .safetensors or .pt, a checkpoint or run folder of ours, hub"


def load_trunk_weights(encoder: Encoder, source: str, model: str) -> None:
    """Copy weights into `encoder` from a file, a folder, or the model hub.

    Args:
        encoder: receives every parameter, and the rotary frequencies where the source has them.
        source: a fair-esm `.pt`, a transformers folder (ESM, or AMPLIFY as EuroBERT or with its own keys), a
            `.safetensors` or `.pt` file of AMPLIFY keys, a checkpoint or run folder of this project, or `hub`.
        model: published name, used by `hub`.

    Raises:
        UserError: the source cannot be read, or does not fit the trunk's shape; the first differences are named.
    """
    where, shape = f"trunk weights {source}", encoder.shape
    path = _download(model) if source == "hub" else Path(source)
    if not path.exists():
        raise UserError(f"{where}: no such file or folder; allowed: {_ALLOWED}")
    if path.is_dir() and not (path / "config.json").exists():
        assign(encoder, _own_weights(path, shape, where), where)
        return
    if path.is_dir():
        state, heads = _read_transformers(path, where)
    else:
        state, heads = _read_file(path, where)
    if heads is not None and heads != shape.heads:
        raise UserError(
            f"{where}: has {heads} attention heads, the configured trunk {shape.heads}; set trunk.heads={heads}"
        )
    dialect = _recognise(state, shape, where)
    _check(dialect, state, shape, where)
    frequencies = [tensor for name, tensor in state.items() if name.endswith("inv_freq")]
    inv_freq = frequencies[0].float().contiguous() if frequencies else default_inv_freq(shape.head_width)
    with torch.no_grad():
        # One tensor at a time out of a mapped file: beside the model itself, loading needs its largest matrix.
        for name, tensor in from_dialect(dialect, state, shape):
            encoder.get_parameter(name).copy_(tensor)
        encoder.get_buffer(FREQUENCIES).copy_(inv_freq.view(torch.int32))


def load_trunk(checkpoint: Checkpoint) -> Encoder:
    """The trunk alone of a checkpoint, low-rank adapters merged, on the CPU in eval mode.

    Raises:
        UserError: the checkpoint holds no trunk (stage `teacher`), or does not fit its own config.
    """
    where = f"checkpoint {checkpoint.path}"
    if checkpoint.config.trunk is None:
        raise UserError(
            f"{where}: stage {checkpoint.config.stage!r} trains no trunk; name a checkpoint of stage reference or align"
        )
    # The random start is overwritten; drawing it must not move the caller's random state.
    with torch.random.fork_rng(devices=[]):
        encoder = Encoder(trunk_shape(checkpoint.config.trunk))
    assign(encoder, _trunk_tensors(checkpoint), where)
    return encoder.eval()


def assign(module: torch.nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy tensors into a module's parameters and buffers, by name; a shared parameter goes by its first name.

    Raises:
        UserError: names or shapes differ; the first differences are listed.
    """
    targets = dict(module.named_parameters()) | dict(module.named_buffers())
    differences = [f"{name} is missing" for name in targets if name not in tensors]
    differences += [f"{name} is unknown" for name in tensors if name not in targets]
    differences += [
        f"{name} has shape {list(tensors[name].shape)}, wanted {list(target.shape)}"
        for name, target in targets.items()
        if name in tensors and tensors[name].shape != target.shape
    ]
    _raise_if(differences, where)
    with torch.no_grad():
        for name, tensor in tensors.items():
            targets[name].copy_(tensor)


def _raise_if(differences: list[str], where: str) -> None:
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise UserError(
            f"{where}: does not fit the configured trunk: {'; '.join(differences[:3])}{more}; set `trunk` to match"
        )


def _recognise(state: Mapping[str, Tensor], shape: TrunkShape, where: str) -> Dialect:
    for dialect in DIALECTS:
        if dialect.marker in state:
            if dialect.family != shape.family:
                raise UserError(f"{where}: holds {dialect.name} weights, the configured trunk is {shape.family}")
            return dialect
    raise UserError(
        f"{where}: parameter names are of no known kind (first: {', '.join(sorted(state)[:3])}); allowed: {_ALLOWED}"
    )


def _check(dialect: Dialect, state: Mapping[str, Tensor], shape: TrunkShape, where: str) -> None:
    """Compare names and shapes in the source's own words, which a user can look up."""
    with torch.device("meta"):
        reference = Encoder(shape)
    wanted = {}
    for rule in dialect.rules(shape):
        rows, *rest = reference.get_parameter(rule.ours).shape
        wanted |= {part: [rows // len(rule.parts), *rest] for part in rule.parts}
    tied = {"lm_head.weight"} if shape.family == "esm2" else set()
    differences = [f"{name} is missing" for name in wanted if name not in state]
    differences += [
        f"{name} is unknown" for name in state if name not in wanted and name not in tied and not _NOT_OURS.search(name)
    ]
    differences += [
        f"{name} has shape {list(state[name].shape)}, wanted {size}"
        for name, size in wanted.items()
        if name in state and list(state[name].shape) != size
    ]
    if dialect.family == "amplify":
        # EuroBERT's MLPs may have biases that an AMPLIFY trunk has no place for.
        differences += [f"{name} is not zero" for name in state if name.endswith("_proj.bias") and state[name].any()]
    _raise_if(differences, where)


def _read_file(path: Path, where: str) -> tuple[dict[str, Tensor], int | None]:
    """State dict of a .safetensors or .pt file, and the number of heads where the file says it."""
    if path.suffix == ".safetensors":
        return _read_safetensors(path, where), None
    content = _read_pt(path, where)
    heads = None
    if isinstance(content.get("cfg"), dict):
        heads = getattr(content["cfg"].get("model"), "encoder_attention_heads", None)
    state = content["model"] if isinstance(content.get("model"), dict) else content
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{where}: holds more than a state dict of tensors; allowed: {_ALLOWED}")
    prefix = re.compile(r"^encoder\.sentence_encoder\.|^encoder\.(?=lm_head\.)")
    return {prefix.sub("", name): tensor for name, tensor in state.items()}, heads


def _read_safetensors(path: Path, where: str) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{where}: {path.name} cannot be read as safetensors ({error})") from None


def _read_pt(path: Path, where: str) -> dict:
    try:
        # weights_only with the one class fair-esm files hold: nothing else in the pickle is ever built or run.
        with torch.serialization.safe_globals([argparse.Namespace]):
            # Mapped, not read: tensors take memory when they are copied out. Files of torch before 1.6 are no zips.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        raise UserError(f"{where}: {path.name} cannot be read safely by torch.load ({type(error).__name__})") from None
    if not isinstance(content, dict):
        raise UserError(f"{where}: {path.name} holds a {type(content).__name__}; allowed: {_ALLOWED}")
    return content


def _read_transformers(folder: Path, where: str) -> tuple[dict[str, Tensor], int | None]:
    """State dict of all weight files of a transformers folder, and the number of heads its config names."""
    heads = json.loads((folder / "config.json").read_text()).get("num_attention_heads")
    files = sorted(folder.glob("model*.safetensors"))
    if files:
        parts = [_read_safetensors(file, where) for file in files]
    else:
        parts = [_read_pt(file, where) for file in sorted(folder.glob("pytorch_model*.bin"))]
    if not parts:
        raise UserError(f"{where}: has config.json but no model*.safetensors or pytorch_model*.bin")
    # transformers 5 saves ESM's layer norms under the names gamma and beta, and reads both.
    modern = {".gamma": ".weight", ".beta": ".bias"}
    rename = re.compile(r"(?<=LayerNorm)\.(gamma|beta)$")
    return {rename.sub(lambda m: modern[m[0]], name): tensor for part in parts for name, tensor in part.items()}, heads


def _own_weights(folder: Path, shape: TrunkShape, where: str) -> dict[str, Tensor]:
    checkpoint = open_checkpoint(folder)
    trunk = checkpoint.config.trunk
    if trunk is None or trunk_shape(trunk) != shape:
        held = "no trunk" if trunk is None else f"a trunk of {_words(trunk_shape(trunk))}"
        raise UserError(f"{where}: holds {held}, the configured one is {_words(shape)}; set `trunk` to match")
    return _trunk_tensors(checkpoint)


def _trunk_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    weights = {n.removeprefix("trunk."): t for n, t in checkpoint.weights().items() if n.startswith("trunk.")}
    assert checkpoint.config.trunk is not None
    return merge_adapters(weights, checkpoint.config.trunk.lora)


def _words(shape: TrunkShape) -> str:
    return f"{shape.family} {shape.layers} x {shape.width} x {shape.heads} (layers x width x heads)"


def _download(model: str) -> Path:
    """Folder of a published model in the hub's cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if model not in PUBLISHED_SIZES:
        raise UserError(
            f"trunk.weights=hub needs a published trunk.model, got {model!r}; allowed: {', '.join(PUBLISHED_SIZES)}"
        )
    owner = "facebook" if model in ESM2_SIZES else "chandar-lab" if model in AMPLIFY_SIZES else "biohub"
    repository = f"{owner}/{model.replace('ESMC_', 'ESMC-')}"
    try:
        folder = Path(snapshot_download(repository, allow_patterns=["config.json", "model*.safetensors"]))
        if not list(folder.glob("model*.safetensors")):
            folder = Path(snapshot_download(repository, allow_patterns=["config.json", "pytorch_model*.bin"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"trunk.weights=hub: {repository} could not be downloaded ({type(error).__name__}); "
            "check the network, or download it elsewhere and give trunk.weights=<folder>"
        ) from None
    return folder
