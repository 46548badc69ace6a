"""A first layer's attention of copies of one wild type that differ in a masked position, from that of the wild type.

Before the first layer a copy differs in one token, so its queries, keys and values do in one row. Every other row's
attention then loses one term of its softmax and gains another, which takes O(n) where attention anew takes O(n^2):

    mixed' = (mixed - a v_p + b v_m) / (1 - a + b),   a = exp(q k_p - log Z),   b = exp(q k_m - log Z)

with the probability a that the row gave to the token at place p, and b what the mask there gets in its stead.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.model.attention import attention_with_log_sums, rotate
from pretrain.model.encoder import TRAINED_MASK_RATIO, Encoder

_SOUND_SHARE = 0.9
"""Rows that gave the replaced token more of their attention are computed anew: 1 - a would lose digits."""
_LARGEST_EXPONENT = 60.0
"""exp of more leaves float32; by then the other tokens' share is below any rounding."""


@dataclass(frozen=True)
class SharedLayer:
    """What copies of a wild type of n tokens share in the first layer; but for the stream in float32 at least."""

    embedded: Tensor
    """[n, D]: residual stream before the layer, in the model's type."""
    masked: Tensor
    """[D]: the same of a mask."""
    query: Tensor
    """[H, n, d]: rotated as key, and scaled by 1 / sqrt(d)."""
    key: Tensor
    """[H, n, d]."""
    value: Tensor
    """[H, n, d]."""
    mask_query: Tensor
    """[H, n, d]: a mask's at every place, rotated and scaled; mask_key likewise."""
    mask_key: Tensor
    """[H, n, d]."""
    mask_value: Tensor
    """[H, 1, d]."""
    mixed: Tensor
    """[n, H, d]: attention's output for the wild type."""
    log_sums: Tensor
    """[H, n]: log of the sum of exp(score) of each row."""

    @classmethod
    def of(cls, encoder: Encoder, tokens: Tensor) -> "SharedLayer":
        """For int64 [n]: special tokens included, one of them masked in each copy."""
        layer, n = encoder.layers[0], len(tokens)
        embedded = _embedded(encoder, tokens)
        qkv = layer.attention.project(layer.attention_norm(embedded))
        qkv = qkv if qkv.dtype == torch.float64 else qkv.float()
        rotary = torch.view_as_real(encoder.rotary(torch.arange(n, device=qkv.device)))
        # The mask stands at every place, and its value once.
        query, key = rotate(qkv[:-1, :2], rotary).permute(1, 2, 0, 3)
        mask_query, mask_key = rotate(qkv[-1:, :2].expand(n, -1, -1, -1), rotary).permute(1, 2, 0, 3)
        value, mask_value = qkv[:, 2].transpose(0, 1).split((n, 1), dim=1)
        mixed, log_sums = attention_with_log_sums(query, key, value)
        scale = query.shape[-1] ** -0.5
        return cls(
            embedded=embedded[:-1],
            masked=embedded[-1],
            query=query * scale,
            key=key.contiguous(),
            value=value.contiguous(),
            mask_query=mask_query * scale,
            mask_key=mask_key.contiguous(),
            mask_value=mask_value,
            mixed=mixed.transpose(0, 1).contiguous(),
            log_sums=log_sums,
        )

    def streams(self, places: Tensor) -> Tensor:
        """[m, n, D]: residual stream before the layer of the copies masked at int64 [m] places."""
        streams = self.embedded.repeat(len(places), 1, 1)
        streams[torch.arange(len(places), device=places.device), places] = self.masked
        return streams

    def attended(self, places: Tensor) -> Tensor:
        """[m, n, H, d]: the attention's output of these copies, in the model's type."""
        old, new = self.key[:, places], self.mask_key[:, places]
        exponents = self.query @ torch.cat((old, new), dim=1).transpose(1, 2) - self.log_sums[..., None]
        lost, gained = exponents.clamp(max=_LARGEST_EXPONENT).exp().permute(2, 1, 0).chunk(2)
        unsound = lost.amax(-1) > _SOUND_SHARE
        unsound[torch.arange(len(places), device=places.device), places] = True
        share = 1 / (1 - lost + gained)
        mixed = self.mixed * share[..., None]
        mixed.addcmul_((lost * share)[..., None], self.value[:, places].transpose(0, 1)[:, None], value=-1)
        mixed.addcmul_((gained * share)[..., None], self.mask_value.transpose(0, 1)[:, None])
        copies, rows = unsound.nonzero(as_tuple=True)
        # As many rows at once as a whole attention has.
        for copy, row in zip(copies.split(len(self.embedded)), rows.split(len(self.embedded)), strict=True):
            mixed[copy, row] = self._anew(places[copy], row)
        return mixed.to(self.embedded.dtype)

    def _anew(self, places: Tensor, rows: Tensor) -> Tensor:
        """[R, H, d]: attention of int64 [R] rows, each in the copy masked at its place."""
        is_mask = (rows == places)[None, :, None]
        query = torch.where(is_mask, self.mask_query[:, rows], self.query[:, rows])
        scores = query @ self.key.transpose(1, 2)
        at = places[None, :, None].expand(len(query), -1, 1)
        scores.scatter_(2, at, (query * self.mask_key[:, places]).sum(-1, keepdim=True))
        probabilities = scores.softmax(-1)
        of_mask = probabilities.gather(2, at)
        return (probabilities.scatter_(2, at, 0.0) @ self.value + of_mask * self.mask_value).transpose(0, 1)


def _embedded(encoder: Encoder, tokens: Tensor) -> Tensor:
    """[n + 1, D]: embeddings of the wild type's tokens as they are with one of them masked, and of the mask.

    The mask's does not depend on place or sequence but for ESM-2's token dropout, which makes it zero.
    """
    weight, alphabet = encoder.embedding.weight, encoder.shape.alphabet
    embedded = encoder.embedding(torch.cat((tokens, torch.tensor([alphabet.mask_id]))).to(weight.device))
    if encoder.shape.family == "esm2":
        embedded[:-1] *= (1 - TRAINED_MASK_RATIO) / (1 - 1 / len(tokens))
        embedded[-1] = 0
    return embedded
