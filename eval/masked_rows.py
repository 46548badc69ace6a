"""States of masked positions of our own trunks, without the work whose result nobody looks at or everybody shares.

Copies of a sequence that differ in one masked position share most of their first layer, and of the last layer only the
masked row is wanted: its query, its attention output, its feed-forward. What comes out is what a forward pass over
every copy gives at these rows.
"""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from eval.shared_layer import SharedLayer
from pretrain.model.attention import Layout, choose_backend, rotate
from pretrain.model.encoder import Encoder
from pretrain.model.layers import Layer
from pretrain.model.linear import linear


def masked_rows(encoder: Encoder, groups: Sequence[tuple[SharedLayer, Sequence[int]]]) -> Tensor:
    """[B, D]: the aligned state at the masked token of each of B copies.

    Args:
        groups: first layers of wild types, and which token is masked in each copy of them.
    """
    device = encoder.embedding.weight.device
    lengths = [len(shared.embedded) for shared, places in groups for _ in places]
    starts = torch.tensor([0, *lengths[:-1]]).cumsum(0)
    rows = (starts + torch.tensor([place for _, places in groups for place in places])).to(device)
    backend = choose_backend(encoder.attention, device, encoder.embedding.weight.dtype, encoder.shape.head_width)
    layout = Layout.of(lengths, encoder.rotary, device, backend)
    chosen = [(shared, torch.tensor(places, device=device)) for shared, places in groups]
    hidden = torch.cat([shared.streams(places).flatten(0, 1) for shared, places in chosen])
    if len(encoder.layers) > 1:
        mixed = torch.cat([shared.attended(places).flatten(0, 1) for shared, places in chosen])
        hidden = _rest(encoder.layers[0], hidden, mixed)
    for layer in encoder.layers[1:-1]:
        hidden = layer(hidden, layout)
    return encoder.final_norm(_last_layer(encoder.layers[-1], hidden, rows, layout))


def _last_layer(layer: Layer, hidden: Tensor, rows: Tensor, layout: Layout) -> Tensor:
    """The layer's output [B, D] at `rows`, one in each protein; only keys are needed everywhere.

    Probabilities of a row sum to one, so the values' projection comes after they are mixed: of one row in place of all.
    """
    attention, normed = layer.attention, layer.attention_norm(hidden)
    width, heads = hidden.shape[1], attention.heads
    (query_weight, key_weight, value_weight), bias = attention.qkv.weight.split(width), attention.qkv.bias
    query_bias, key_bias, value_bias = (None, None, None) if bias is None else bias.split(width)
    query = linear(normed[rows], query_weight, query_bias)
    key = linear(normed, key_weight, key_bias)
    if attention.normalised:
        query, key = attention.query_norm(query), attention.key_norm(key)
    query = rotate(query.view(len(rows), heads, -1), layout.rotary[rows])
    key = rotate(key.view(len(hidden), heads, -1), layout.rotary)
    mixed, begin, first = [], 0, 0
    for length, group in groupby(layout.lengths):
        count = len(list(group))
        part, own = slice(begin, begin + count * length), slice(first, first + count)
        scores = torch.einsum("bhd,bnhd->bhn", query[own], key[part].unflatten(0, (count, length)))
        wide = torch.promote_types(scores.dtype, torch.float32)
        probabilities = (scores.to(wide) * query.shape[-1] ** -0.5).softmax(-1).to(normed.dtype)
        mixed.append(probabilities @ normed[part].unflatten(0, (count, length)))
        begin, first = part.stop, own.stop
    values = torch.einsum("bhw,hdw->bhd", torch.cat(mixed), value_weight.unflatten(0, (heads, -1))).flatten(1)
    return _rest(layer, hidden[rows], values if value_bias is None else values + value_bias)


def _rest(layer: Layer, hidden: Tensor, mixed: Tensor) -> Tensor:
    """What follows attention [T, D] or [T, H, d] in a layer."""
    hidden = torch.add(hidden, layer.attention.out(mixed.flatten(1)), alpha=layer.residual_scale)
    return torch.add(hidden, layer.ffn(layer.ffn_norm(hidden)), alpha=layer.residual_scale)
