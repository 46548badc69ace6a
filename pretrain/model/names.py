"""How other systems name and lay out a trunk's parameters, as rules that are read in both directions."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.model.shape import TrunkShape


@dataclass(frozen=True)
class Rule:
    """One parameter of ours and the tensors that hold it elsewhere, stacked along rows."""

    ours: str
    parts: tuple[str, ...]
    half_split: tuple[str, ...] = ()
    """Those parts whose rows pair feature j with j + d/2 in each head, where ours pair 2j with 2j + 1."""


@dataclass(frozen=True)
class Dialect:
    """A naming scheme of one trunk family."""

    name: str
    family: str
    marker: str
    """A key that only this scheme has."""
    rules: Callable[[TrunkShape], list[Rule]]


def from_dialect(dialect: Dialect, state: Mapping[str, Tensor], shape: TrunkShape) -> Iterator[tuple[str, Tensor]]:
    """Our parameters, one at a time, from a state dict that has every part the rules name, in their shapes."""
    for rule in dialect.rules(shape):
        parts = [
            _pair_neighbours(state[part], shape.heads) if part in rule.half_split else state[part]
            for part in rule.parts
        ]
        yield rule.ours, torch.cat(parts) if len(parts) > 1 else parts[0]


def to_dialect(dialect: Dialect, state: Mapping[str, Tensor], shape: TrunkShape) -> dict[str, Tensor]:
    """The dialect's state dict from our parameters; contiguous, no two tensors in one storage.

    Parameters that the dialect names as they are share their memory with `state`: a large model is not held twice.
    """
    theirs = {}
    for rule in dialect.rules(shape):
        if len(rule.parts) == 1 and not rule.half_split:
            tensor = state[rule.ours].detach().contiguous()
            # A view into a larger buffer would carry all of it into a pickled file.
            shared = tensor.untyped_storage().nbytes() > tensor.nbytes
            theirs[rule.parts[0]] = tensor.clone() if shared else tensor
            continue
        for part, rows in zip(rule.parts, state[rule.ours].chunk(len(rule.parts)), strict=True):
            split = _pair_halves(rows, shape.heads) if part in rule.half_split else rows
            theirs[part] = split.detach().clone(memory_format=torch.contiguous_format)
    return theirs


def _pair_neighbours(rows: Tensor, heads: int) -> Tensor:
    """Rows of every head from (0 .. d/2 - 1, d/2 .. d - 1) to (0, d/2, 1, d/2 + 1, ...)."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _pair_halves(rows: Tensor, heads: int) -> Tensor:
    """The inverse of `_pair_neighbours`."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _affine(ours: str, theirs: str) -> list[Rule]:
    return [Rule(f"{ours}.{kind}", (f"{theirs}.{kind}",)) for kind in ("weight", "bias")]


def _fair_esm(shape: TrunkShape) -> list[Rule]:
    rules = [Rule("embedding.weight", ("embed_tokens.weight",))]
    for i in range(shape.layers):
        ours, theirs = f"layers.{i}", f"layers.{i}"
        for kind in ("weight", "bias"):
            q, k, v = (f"{theirs}.self_attn.{x}_proj.{kind}" for x in "qkv")
            rules.append(Rule(f"{ours}.attention.qkv.{kind}", (q, k, v), (q, k)))
        rules += _affine(f"{ours}.attention.out", f"{theirs}.self_attn.out_proj")
        rules += _affine(f"{ours}.attention_norm", f"{theirs}.self_attn_layer_norm")
        rules += _affine(f"{ours}.ffn_norm", f"{theirs}.final_layer_norm")
        rules += _affine(f"{ours}.ffn.up", f"{theirs}.fc1") + _affine(f"{ours}.ffn.down", f"{theirs}.fc2")
    rules += _affine("final_norm", "emb_layer_norm_after") + _affine("lm_head.dense", "lm_head.dense")
    return [*rules, *_affine("lm_head.norm", "lm_head.layer_norm"), Rule("lm_head.bias", ("lm_head.bias",))]


def _transformers_esm(shape: TrunkShape) -> list[Rule]:
    rules = [Rule("embedding.weight", ("esm.embeddings.word_embeddings.weight",))]
    for i in range(shape.layers):
        ours, theirs = f"layers.{i}", f"esm.encoder.layer.{i}"
        for kind in ("weight", "bias"):
            q, k, v = (f"{theirs}.attention.self.{x}.{kind}" for x in ("query", "key", "value"))
            rules.append(Rule(f"{ours}.attention.qkv.{kind}", (q, k, v), (q, k)))
        rules += _affine(f"{ours}.attention.out", f"{theirs}.attention.output.dense")
        rules += _affine(f"{ours}.attention_norm", f"{theirs}.attention.LayerNorm")
        rules += _affine(f"{ours}.ffn_norm", f"{theirs}.LayerNorm")
        rules += _affine(f"{ours}.ffn.up", f"{theirs}.intermediate.dense")
        rules += _affine(f"{ours}.ffn.down", f"{theirs}.output.dense")
    rules += _affine("final_norm", "esm.encoder.emb_layer_norm_after") + _affine("lm_head.dense", "lm_head.dense")
    return [*rules, *_affine("lm_head.norm", "lm_head.layer_norm"), Rule("lm_head.bias", ("lm_head.bias",))]


def _amplify(shape: TrunkShape) -> list[Rule]:
    rules = [Rule("embedding.weight", ("encoder.weight",)), Rule("lm_head.norm.weight", ("layer_norm_2.weight",))]
    for i in range(shape.layers):
        ours, theirs = f"layers.{i}", f"transformer_encoder.{i}"
        rules += [
            Rule(f"{ours}.attention.qkv.weight", tuple(f"{theirs}.{x}.weight" for x in "qkv")),
            Rule(f"{ours}.attention.out.weight", (f"{theirs}.wo.weight",)),
            Rule(f"{ours}.attention_norm.weight", (f"{theirs}.attention_norm.weight",)),
            Rule(f"{ours}.ffn_norm.weight", (f"{theirs}.ffn_norm.weight",)),
            Rule(f"{ours}.ffn.up.weight", (f"{theirs}.ffn.w12.weight",)),
            Rule(f"{ours}.ffn.down.weight", (f"{theirs}.ffn.w3.weight",)),
        ]
    return rules + _affine("lm_head.decoder", "decoder")


def _transformers_eurobert(shape: TrunkShape) -> list[Rule]:
    rules = [
        Rule("embedding.weight", ("model.embed_tokens.weight",)),
        Rule("lm_head.norm.weight", ("model.norm.weight",)),
    ]
    for i in range(shape.layers):
        ours, theirs = f"layers.{i}", f"model.layers.{i}"
        q, k, v = (f"{theirs}.self_attn.{x}_proj.weight" for x in "qkv")
        rules += [
            Rule(f"{ours}.attention.qkv.weight", (q, k, v), (q, k)),
            Rule(f"{ours}.attention.out.weight", (f"{theirs}.self_attn.o_proj.weight",)),
            Rule(f"{ours}.attention_norm.weight", (f"{theirs}.input_layernorm.weight",)),
            Rule(f"{ours}.ffn_norm.weight", (f"{theirs}.post_attention_layernorm.weight",)),
            Rule(f"{ours}.ffn.up.weight", (f"{theirs}.mlp.gate_proj.weight", f"{theirs}.mlp.up_proj.weight")),
            Rule(f"{ours}.ffn.down.weight", (f"{theirs}.mlp.down_proj.weight",)),
        ]
    return rules + _affine("lm_head.decoder", "lm_head")


def _transformers_esmc(shape: TrunkShape) -> list[Rule]:
    rules = [
        Rule("embedding.weight", ("esmc.embed_tokens.weight",)),
        Rule("final_norm.weight", ("esmc.norm.weight",)),
    ]
    for i in range(shape.layers):
        ours, theirs = f"layers.{i}", f"esmc.layers.{i}"
        q, k, v = (f"{theirs}.self_attn.{x}_proj.weight" for x in "qkv")
        rules.append(Rule(f"{ours}.attention.qkv.weight", (q, k, v), (q, k)))
        for name in ("query", "key"):
            norm = f"{theirs}.self_attn.{name[0]}_norm.weight"
            rules.append(Rule(f"{ours}.attention.{name}_norm.weight", (norm,), (norm,)))
        rules += [
            *_affine(f"{ours}.attention_norm", f"{theirs}.input_layernorm"),
            *_affine(f"{ours}.ffn_norm", f"{theirs}.post_attention_layernorm"),
            Rule(f"{ours}.attention.out.weight", (f"{theirs}.self_attn.o_proj.weight",)),
            Rule(f"{ours}.ffn.up.weight", (f"{theirs}.mlp.gate_proj.weight", f"{theirs}.mlp.up_proj.weight")),
            Rule(f"{ours}.ffn.down.weight", (f"{theirs}.mlp.down_proj.weight",)),
        ]
    rules += _affine("lm_head.dense", "lm_head.dense") + _affine("lm_head.norm", "lm_head.layer_norm")
    return rules + _affine("lm_head.decoder", "lm_head.decoder")


FAIR_ESM = Dialect("fair-esm ESM-2", "esm2", "embed_tokens.weight", _fair_esm)
TRANSFORMERS_ESM = Dialect(
    "transformers EsmForMaskedLM", "esm2", "esm.embeddings.word_embeddings.weight", _transformers_esm
)
AMPLIFY = Dialect("AMPLIFY", "amplify", "encoder.weight", _amplify)
TRANSFORMERS_EUROBERT = Dialect(
    "transformers EuroBertForMaskedLM", "amplify", "model.embed_tokens.weight", _transformers_eurobert
)
TRANSFORMERS_ESMC = Dialect("transformers EsmcForMaskedLM", "esmc", "esmc.embed_tokens.weight", _transformers_esmc)
DIALECTS = (FAIR_ESM, TRANSFORMERS_ESM, AMPLIFY, TRANSFORMERS_EUROBERT, TRANSFORMERS_ESMC)
