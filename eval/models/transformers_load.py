"""Opening a `transformers` masked language model from a folder or the hub, without running code of others."""

import contextlib
import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from configs.errors import UserError
from eval.models.protocol import Precision
from eval.models.residue_tokens import ResidueTokens, residue_tokens
from eval.models.transformers_model import TransformersModel
from pretrain.checkpoints import TensorFacts, digest_of
from pretrain.model.attention import default_inv_freq
from pretrain.model.names import (
    TRANSFORMERS_ESM,
    TRANSFORMERS_ESMC,
    TRANSFORMERS_EUROBERT,
    Dialect,
    from_dialect,
)
from pretrain.model.shape import NORM_EPS, ROTARY_BASE, TrunkShape

HUB = "hf:"
HEADS_FILE = "heads.safetensors"
"""Of a release of this project: with it, the release has the name of the checkpoint it was made from."""
_DIALECTS: dict[str, Dialect] = {
    "esm": TRANSFORMERS_ESM,
    "eurobert": TRANSFORMERS_EUROBERT,
    "esmc": TRANSFORMERS_ESMC,
}
_TYPES = {torch.float32: "F32", torch.int32: "I32", torch.float64: "F64", torch.int64: "I64", torch.bool: "BOOL"}
_POSITION_OFFSETS = ("esm", "roberta", "xlm-roberta", "camembert")
"""Families whose learned positions begin after the padding token's number."""


def transformers_model(
    spec: str, batch_tokens: int, device: torch.device | str = "cpu", precision: Precision = "float32"
) -> TransformersModel:
    """A masked language model of residues.

    Args:
        spec: a folder, or `hf:ORG/NAME[@revision]`.

    Raises:
        UserError: cannot be read or downloaded, needs remote code, or is no masked language model of residues.
    """
    # transformers takes seconds to import, and only peers need it.
    from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer
    from transformers.utils import logging as quiet

    where = f"model {spec}"
    source, _, revision = spec.removeprefix(HUB).partition("@") if spec.startswith(HUB) else (spec, "", "")
    options: dict[str, Any] = {"trust_remote_code": False} | ({"revision": revision} if revision else {})
    quiet.disable_progress_bar()
    try:
        with _unheard("transformers"):
            AutoConfig.from_pretrained(source, **options)
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
            model, notes = AutoModelForMaskedLM.from_pretrained(
                source, dtype=torch.float32, output_loading_info=True, **options
            )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise UserError(f"{where}: {_reason(error)}") from None
    # Contact heads and poolers are no part of the masked language model.
    missing = sorted(name for name in notes["missing_keys"] if "contact_head" not in name and "pooler" not in name)
    if missing:
        raise UserError(f"{where}: has no weights for {missing[0]} and {len(missing) - 1} others; take another one")
    tokens = residue_tokens(tokenizer, where)
    config, device = model.config, torch.device(device)
    heads = Path(source) / HEADS_FILE
    return TransformersModel(
        model=model.to(device).eval(),
        tokens=tokens,
        name=spec.removeprefix(HUB) if spec.startswith(HUB) else Path(spec).name,
        description=f"{type(model).__name__} {config.num_hidden_layers}x{config.hidden_size}x"
        f"{config.num_attention_heads}",
        weights_sha256=weights_digest(model, load_file(heads) if heads.is_file() else {}),
        max_residues=_max_residues(config, tokens),
        batch_tokens=batch_tokens,
        device=device,
        precision=precision,
    )


def weights_digest(model: Any, heads: Mapping[str, Tensor]) -> str:
    """sha256 that names the weights: of a trunk that this project knows, the one that a checkpoint of it would have.

    Other models are named by the tensors of their state dict, under their own names.
    """
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    shape = _known_shape(model.config, state)
    if shape is not None:
        dialect = _DIALECTS[model.config.model_type]
        rotary = [tensor for name, tensor in state.items() if name.endswith("rotary_embeddings.inv_freq")]
        inv_freq = rotary[0].float().contiguous() if rotary else default_inv_freq(shape.head_width)
        state = {f"trunk.{name}": tensor for name, tensor in from_dialect(dialect, state, shape)}
        state |= {"trunk.rotary.inv_freq_bits": inv_freq.view(torch.int32), **heads}
    return digest_of({name: _facts(tensor) for name, tensor in state.items()})


def _facts(tensor: Tensor) -> TensorFacts:
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
    kind = _TYPES.get(tensor.dtype, str(tensor.dtype))
    return TensorFacts(kind, tuple(tensor.shape), hashlib.sha256(data).hexdigest())


def _known_shape(config: Any, state: Mapping[str, Tensor]) -> TrunkShape | None:
    """The trunk of this project that computes the same; None where there is none."""
    dialect = _DIALECTS.get(config.model_type)
    if dialect is None or dialect.marker not in state:
        return None
    shape = TrunkShape(dialect.family, config.num_hidden_layers, config.hidden_size, config.num_attention_heads)
    rope = getattr(config, "rope_parameters", None) or {}
    same = {
        "esm": getattr(config, "position_embedding_type", None) == "rotary"
        and getattr(config, "token_dropout", False)
        and not getattr(config, "emb_layer_norm_before", False)
        and getattr(config, "layer_norm_eps", None) == NORM_EPS,
        "eurobert": getattr(config, "rms_norm_eps", None) == NORM_EPS
        and getattr(config, "num_key_value_heads", None) == config.num_attention_heads
        and not any(tensor.any() for name, tensor in state.items() if name.endswith("_proj.bias")),
        "esmc": True,
    }[config.model_type]
    fits = (
        state[dialect.marker].shape == (len(shape.alphabet), shape.width)
        and config.intermediate_size == shape.inner_width
        and rope.get("rope_theta", ROTARY_BASE) == ROTARY_BASE
    )
    return shape if same and fits else None


def _max_residues(config: Any, tokens: ResidueTokens) -> int | None:
    """Where positions are learned, as many as there are; rotary ones have no bound."""
    learned = getattr(config, "position_embedding_type", "absolute") == "absolute"
    if not learned or getattr(config, "rope_parameters", None) or not getattr(config, "max_position_embeddings", None):
        return None
    offset = config.pad_token_id + 1 if config.model_type in _POSITION_OFFSETS else 0
    return config.max_position_embeddings - offset - tokens.before - tokens.after


def _reason(error: Exception) -> str:
    words = " ".join(str(error).split())
    if "trust_remote_code" in words or "custom code" in words:
        return (
            "needs code from its repository, which is never run here; name a release that transformers implements "
            "itself (AMPLIFY: `python -m eval release` writes one), or use callable:package.module:function"
        )
    return f"cannot be opened ({type(error).__name__}: {words[:200]}); name a folder of transformers or hf:ORG/NAME"


@contextlib.contextmanager
def _unheard(name: str) -> Any:
    """Loading reports weights that are none of the masked language model's; what is missing is checked above."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
