"""States of masked positions of our own trunks, without the work whose result nobody looks at or everybody shares.

Copies of a sequence that differ in one masked position have the same first projections everywhere else, and of the last
layer only the masked row is wanted: its query, its attention output, its feed-forward. What comes out is what a forward
pass over every copy gives at these rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.model.attention import Layout, SelfAttention, choose_backend, packed_attention, rotate
from pretrain.model.encoder import TRAINED_MASK_RATIO, Encoder
from pretrain.model.layers import Layer
from pretrain.model.linear import linear


@dataclass(frozen=True)
class MaskedCopies:
    """Copies of wild types, one masked token each."""

    wild_types: tuple[Tensor, ...]
    """int64 [n] each: distinct token sequences, special tokens included."""
    sources: tuple[int, ...]
    """Which wild type each of B copies is of; copies of one length stand together."""
    places: tuple[int, ...]
    """Which of its tokens is masked."""


def masked_rows(encoder: Encoder, copies: MaskedCopies) -> Tensor:
    """[B, D]: the aligned state at the masked token of each copy."""
    device = encoder.embedding.weight.device
    lengths = [len(copies.wild_types[source]) for source in copies.sources]
    starts = torch.tensor([0, *lengths[:-1]]).cumsum(0)
    rows = (starts + torch.tensor(copies.places)).to(device)
    backend = choose_backend(encoder.attention, device, encoder.embedding.weight.dtype, encoder.shape.head_width)
    layout = Layout.of(lengths, encoder.rotary, device, backend)
    base, masked = _embedded(encoder, copies.wild_types)
    begins = torch.tensor([0, *(len(tokens) for tokens in copies.wild_types[:-1])]).cumsum(0)
    source = torch.cat([torch.arange(n) + begins[s] for s, n in zip(copies.sources, lengths, strict=True)]).to(device)
    # The masked token's embedding does not depend on its place or sequence but for token dropout, which makes it zero.
    hidden = base.index_select(0, source).index_copy_(0, rows, masked.expand(len(rows), -1))
    for number, layer in enumerate(encoder.layers[:-1]):
        if number == 0:
            hidden = _first_layer(layer, hidden, base, masked, source, rows, layout)
        else:
            hidden = layer(hidden, layout)
    return encoder.final_norm(_last_layer(encoder.layers[-1], hidden, rows, layout))


def _embedded(encoder: Encoder, wild_types: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Embeddings of all wild types' tokens [T, D], as they are with one token masked, and of that token [1, D]."""
    weight, esm2 = encoder.embedding.weight, encoder.shape.family == "esm2"
    base = encoder.embedding(torch.cat(list(wild_types)).to(weight.device))
    masked = weight[encoder.shape.alphabet.mask_id][None]
    if not esm2:
        return base, masked
    sizes = torch.tensor([len(tokens) for tokens in wild_types])
    scale = ((1 - TRAINED_MASK_RATIO) / (1 - 1 / sizes)).repeat_interleave(sizes).to(base)
    return base * scale[:, None], torch.zeros_like(masked)


def _first_layer(
    layer: Layer, hidden: Tensor, base: Tensor, masked: Tensor, source: Tensor, rows: Tensor, layout: Layout
) -> Tensor:
    """The layer's output [T, D], with projections computed once for each token of a wild type."""
    shared = _project(layer.attention, layer.attention_norm(base)).index_select(0, source)
    own = _project(layer.attention, layer.attention_norm(masked))
    qkv = shared.index_copy_(0, rows, own.expand(len(rows), -1))
    mixed = packed_attention(qkv.view(len(qkv), 3, layer.attention.heads, -1), layout)
    return _rest(layer, hidden, mixed)


def _last_layer(layer: Layer, hidden: Tensor, rows: Tensor, layout: Layout) -> Tensor:
    """The layer's output [B, D] at `rows`, one in each protein; keys and values alone are needed everywhere."""
    attention, normed = layer.attention, layer.attention_norm(hidden)
    width, heads = hidden.shape[1], attention.heads
    weight, bias = attention.qkv.weight, attention.qkv.bias
    query = linear(normed[rows], weight[:width], None if bias is None else bias[:width])
    key, value = linear(normed, weight[width:], None if bias is None else bias[width:]).chunk(2, dim=-1)
    if attention.normalised:
        query, key = attention.query_norm(query), attention.key_norm(key)
    query = rotate(query.view(len(rows), heads, -1), layout.rotary[rows])
    key = rotate(key.reshape(len(hidden), heads, -1), layout.rotary)
    value = value.view(len(hidden), heads, -1)
    mixed, begin, first = [], 0, 0
    for length, group in groupby(layout.lengths):
        count = len(list(group))
        part = slice(begin, begin + count * length)
        q = query[first : first + count].unsqueeze(2)
        k, v = (x[part].unflatten(0, (count, length)).transpose(1, 2) for x in (key, value))
        mixed.append(F.scaled_dot_product_attention(q, k, v).squeeze(2))
        begin, first = part.stop, first + count
    return _rest(layer, hidden[rows], torch.cat(mixed))


def _rest(layer: Layer, hidden: Tensor, mixed: Tensor) -> Tensor:
    """What follows attention [T, H, d] in a layer."""
    hidden = torch.add(hidden, layer.attention.out(mixed.flatten(1)), alpha=layer.residual_scale)
    return torch.add(hidden, layer.ffn(layer.ffn_norm(hidden)), alpha=layer.residual_scale)


def _project(attention: SelfAttention, normed: Tensor) -> Tensor:
    """[T, 3D]: queries, keys and values, normalised where the family does so, not rotated."""
    qkv = attention.qkv(normed)
    if not attention.normalised:
        return qkv
    query, key, value = qkv.chunk(3, dim=-1)
    return torch.cat((attention.query_norm(query), attention.key_norm(key), value), dim=-1)
