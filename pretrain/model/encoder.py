"""The protein language model: ESM-2, AMPLIFY or ESM-C over packed sequences, without any work on padding."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pretrain.batch import Packed
from pretrain.model.attention import Layout, RotaryTable, choose_backend
from pretrain.model.heads import language_head
from pretrain.model.layers import Layer, layer_norm
from pretrain.model.shape import TrunkShape

TRAINED_MASK_RATIO = 0.15 * 0.8
"""Share of tokens that were `<mask>` when ESM-2 was trained; its token dropout rescales to it."""


class Encoder(nn.Module):
    """A trunk with its masked-language-model head.

    `forward` gives the hidden state that structure losses align: for ESM-2 and ESM-C after the final LayerNorm, for
    AMPLIFY the last layer's output before the final RMSNorm (which belongs to the language head).
    """

    def __init__(self, shape: TrunkShape) -> None:
        super().__init__()
        self.shape = shape
        # How forward runs, not what it gives; `execution.py` sets both.
        self.attention, self.checkpointing = "auto", False
        self.embedding = nn.Embedding(len(shape.alphabet), shape.width)
        # Rows of unit length: the tied head's logits start with unit variance, whatever the width.
        nn.init.normal_(self.embedding.weight, std=shape.width**-0.5)
        self.rotary = RotaryTable(shape.head_width)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        own_norm = shape.family != "amplify"
        self.final_norm = layer_norm(shape.width, bias=shape.family == "esm2") if own_norm else nn.Identity()
        self.lm_head = language_head(shape, self.embedding.weight)

    def forward(self, packed: Packed) -> Tensor:
        """[T, D]: the aligned hidden state of every token."""
        hidden, layout = self._start(packed)
        keep_inputs_only = self.checkpointing and torch.is_grad_enabled()
        for layer in self.layers:
            if keep_inputs_only:
                hidden = checkpoint(layer, hidden, layout, use_reentrant=False)
            else:
                hidden = layer(hidden, layout)
        return self.final_norm(hidden)

    def lm_logits(self, hidden: Tensor) -> Tensor:
        """[M, V] of rows [M, D] of the aligned hidden state."""
        return self.lm_head(hidden)

    def layer_states(self, packed: Packed) -> list[Tensor]:
        """layers + 1 tensors [T, D]: the embedding, then every layer's output, the last as `forward` gives it."""
        states = list(self._walk(packed))
        return [*states[:-1], self.final_norm(states[-1])]

    def attention_maps(self, packed: Packed) -> list[Tensor]:
        """Per protein float32 [layers * heads, n, n] attention probabilities, special tokens included (evaluation)."""
        maps: list[list[Tensor]] = []
        for _ in self._walk(packed, maps):
            pass
        return [torch.cat([layer[i] for layer in maps]) for i in range(len(packed.lengths))]

    def _walk(self, packed: Packed, maps: list[list[Tensor]] | None = None) -> Iterator[Tensor]:
        hidden, layout = self._start(packed)
        yield hidden
        for layer in self.layers:
            hidden = layer(hidden, layout, maps)
            yield hidden

    def _start(self, packed: Packed) -> tuple[Tensor, Layout]:
        """Embedded tokens [T, D] and where proteins lie in them."""
        hidden = self.embedding(packed.tokens)
        if self.shape.family == "esm2":
            scale = token_dropout_scale(packed.tokens, packed.lengths, self.shape.alphabet.mask_id)
            hidden = hidden * scale[:, None].to(hidden.dtype)
        backend = choose_backend(self.attention, hidden.device, hidden.dtype, self.shape.head_width)
        return hidden, Layout.of(packed.lengths, self.rotary, hidden.device, backend)


def token_dropout_scale(tokens: Tensor, lengths: Sequence[int], mask_id: int) -> Tensor:
    """float32 [T]: ESM-2's factor on embeddings, 0 at `<mask>` and (1 - trained) / (1 - observed mask ratio) elsewhere.

    The observed ratio is counted per protein over all its tokens, special ones included.
    """
    masked = tokens == mask_id
    sizes = torch.tensor(lengths, device=tokens.device)
    protein = torch.repeat_interleave(sizes, output_size=len(tokens))
    counts = torch.zeros(len(sizes), device=tokens.device).index_add_(0, protein, masked.float())
    scale = (1 - TRAINED_MASK_RATIO) / (1 - counts / sizes)
    return scale[protein].masked_fill(masked, 0.0)
