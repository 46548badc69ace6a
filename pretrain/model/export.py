"""Writing a trunk for other systems: fair-esm, transformers without remote code, and AMPLIFY's own keys."""

import argparse
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from pretrain.model.attention import default_inv_freq
from pretrain.model.contacts import ContactRegression, contact_state
from pretrain.model.encoder import Encoder
from pretrain.model.names import (
    AMPLIFY,
    FAIR_ESM,
    TRANSFORMERS_ESM,
    TRANSFORMERS_ESMC,
    TRANSFORMERS_EUROBERT,
    to_dialect,
)
from pretrain.model.shape import NORM_EPS, ROTARY_BASE

ESM2_POSITIONS = 1026
"""`max_position_embeddings` of the published configs; rotary positions have no such bound."""
AMPLIFY_POSITIONS = 2048


def to_fair_esm(encoder: Encoder) -> dict[str, Tensor]:
    """State dict for `esm.model.esm2.ESM2`, without its contact regression."""
    state = to_dialect(FAIR_ESM, _parameters(encoder, "esm2"), encoder.shape)
    state["lm_head.weight"] = state["embed_tokens.weight"].clone()
    for i in range(encoder.shape.layers):
        state[f"layers.{i}.self_attn.rot_emb.inv_freq"] = encoder.rotary.inv_freq.clone()
    return state


def to_huggingface_esm(
    encoder: Encoder, contact_regression: ContactRegression | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Keyword arguments of `EsmConfig` and the state dict of `EsmForMaskedLM`.

    Without a fitted contact regression its weights are zeros, so that `predict_contacts` gives 0.5 everywhere.
    """
    shape, tokens = encoder.shape, encoder.shape.alphabet
    state = to_dialect(TRANSFORMERS_ESM, _parameters(encoder, "esm2"), shape)
    state["esm.rotary_embeddings.inv_freq"] = encoder.rotary.inv_freq.clone()
    regression = contact_state(contact_regression or _no_regression(encoder))
    state |= {f"esm.{name}": tensor for name, tensor in regression.items()}
    config = {
        "vocab_size": len(tokens),
        "mask_token_id": tokens.mask_id,
        "pad_token_id": tokens.pad_id,
        "bos_token_id": tokens.cls_id,
        "eos_token_id": tokens.eos_id,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.inner_width,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": ESM2_POSITIONS,
        "rope_theta": ROTARY_BASE,
        "layer_norm_eps": NORM_EPS,
        "position_embedding_type": "rotary",
        "emb_layer_norm_before": False,
        "token_dropout": True,
        "tie_word_embeddings": True,
    }
    return config, state


def to_amplify(encoder: Encoder) -> dict[str, Tensor]:
    """State dict under the published AMPLIFY keys."""
    return to_dialect(AMPLIFY, _parameters(encoder, "amplify"), encoder.shape)


def to_eurobert(encoder: Encoder) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Keyword arguments of `EuroBertConfig` and the state dict of `EuroBertForMaskedLM` that equal an AMPLIFY trunk.

    `mlp_bias` is on only because EuroBERT's language head has a bias exactly when its MLPs have one; theirs are zeros.
    """
    shape, tokens = encoder.shape, encoder.shape.alphabet
    state = to_dialect(TRANSFORMERS_EUROBERT, _parameters(encoder, "amplify"), shape)
    assert torch.equal(encoder.rotary.inv_freq, default_inv_freq(shape.head_width)), "EuroBERT computes its frequencies"
    for i in range(shape.layers):
        for name, width in (("gate", shape.inner_width), ("up", shape.inner_width), ("down", shape.width)):
            state[f"model.layers.{i}.mlp.{name}_proj.bias"] = torch.zeros(width)
    config = {
        "vocab_size": len(tokens),
        "mask_token_id": tokens.mask_id,
        "pad_token_id": tokens.pad_id,
        "bos_token_id": tokens.cls_id,
        "eos_token_id": tokens.eos_id,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "head_dim": shape.head_width,
        "intermediate_size": shape.inner_width,
        "hidden_act": "silu",
        "max_position_embeddings": AMPLIFY_POSITIONS,
        "rms_norm_eps": NORM_EPS,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROTARY_BASE},
        "attention_bias": False,
        "mlp_bias": True,
        "tie_word_embeddings": False,
    }
    return config, state


def to_esmc(encoder: Encoder) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Keyword arguments of `EsmcConfig` and the state dict of `EsmcForMaskedLM`."""
    shape, tokens = encoder.shape, encoder.shape.alphabet
    assert torch.equal(encoder.rotary.inv_freq, default_inv_freq(shape.head_width)), "ESM-C computes its frequencies"
    config = {
        "vocab_size": len(tokens),
        "mask_token_id": tokens.mask_id,
        "pad_token_id": tokens.pad_id,
        "bos_token_id": tokens.cls_id,
        "eos_token_id": tokens.eos_id,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.inner_width,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROTARY_BASE},
        "tie_word_embeddings": False,
    }
    return config, to_dialect(TRANSFORMERS_ESMC, _parameters(encoder, "esmc"), shape)


def fair_esm_files(encoder: Encoder, contact_regression: ContactRegression | None = None) -> tuple[dict, dict]:
    """What `<esm2...>.pt` and `<esm2...>-contact-regression.pt` hold; `fair_esm.py` writes them."""
    shape = encoder.shape
    prefixed = {
        f"encoder.{name}" if name.startswith("lm_head.") else f"encoder.sentence_encoder.{name}": tensor
        for name, tensor in to_fair_esm(encoder).items()
    }
    settings = argparse.Namespace(
        encoder_layers=shape.layers,
        encoder_embed_dim=shape.width,
        encoder_attention_heads=shape.heads,
        token_dropout=True,
    )
    regression = contact_regression or _no_regression(encoder)
    return {"cfg": {"model": settings}, "model": prefixed}, {"model": contact_state(regression)}


def write_huggingface_folder(
    encoder: Encoder, folder: Path, contact_regression: ContactRegression | None = None
) -> None:
    """Write config.json, model.safetensors and the tokenizer.

    `AutoModelForMaskedLM` and `AutoTokenizer` load the folder without remote code: ESM-2 as EsmForMaskedLM, AMPLIFY as
    EuroBertForMaskedLM, ESM-C as EsmcForMaskedLM (which have no contact head: a contact regression is left out).
    """
    # transformers takes seconds to import, and only this writes its files.
    from transformers import EsmcConfig, EsmConfig, EsmcTokenizer, EuroBertConfig

    folder.mkdir(parents=True, exist_ok=True)
    if encoder.shape.family == "esm2":
        settings, state = to_huggingface_esm(encoder, contact_regression)
        config = EsmConfig(**settings, architectures=["EsmForMaskedLM"], dtype="float32")
        _write_esm_tokenizer(encoder, folder)
    elif encoder.shape.family == "esmc":
        settings, state = to_esmc(encoder)
        config = EsmcConfig(**settings, architectures=["EsmcForMaskedLM"], dtype="float32")
        EsmcTokenizer().save_pretrained(folder)
    else:
        settings, state = to_eurobert(encoder)
        config = EuroBertConfig(**settings, architectures=["EuroBertForMaskedLM"], dtype="float32")
        _write_amplify_tokenizer(encoder, folder)
    config.save_pretrained(folder)
    safetensors.torch.save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def _no_regression(encoder: Encoder) -> ContactRegression:
    return ContactRegression(torch.zeros(encoder.shape.layers * encoder.shape.heads), 0.0)


def _parameters(encoder: Encoder, family: str) -> dict[str, Tensor]:
    assert encoder.shape.family == family, f"a {encoder.shape.family} trunk cannot be written as {family}"
    return {name: parameter.detach().float().cpu() for name, parameter in encoder.named_parameters()}


def _write_esm_tokenizer(encoder: Encoder, folder: Path) -> None:
    from transformers import EsmTokenizer

    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(encoder.shape.alphabet.tokens))
    EsmTokenizer(str(vocabulary)).save_pretrained(folder)


def _write_amplify_tokenizer(encoder: Encoder, folder: Path) -> None:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = encoder.shape.alphabet
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens.tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("."), behavior="isolated")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", tokens.cls_id), ("<eos>", tokens.eos_id)]
    )
    special = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=AMPLIFY_POSITIONS, **special).save_pretrained(
        folder
    )
