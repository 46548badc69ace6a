"""The dimensions that define a trunk."""

from dataclasses import dataclass

from configs.trunk import AMPLIFY_SIZES, ESM2_SIZES, PUBLISHED_SIZES, TrunkConfig
from pretrain.vocab import Alphabet, alphabet

NORM_EPS = 1e-5
ROTARY_BASE = 10000.0


@dataclass(frozen=True)
class TrunkShape:
    """Architecture family and dimensions of a trunk; everything its parameters' shapes follow from."""

    family: str
    """`esm2`, `amplify` or `esmc`."""
    layers: int
    width: int
    heads: int

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def inner_width(self) -> int:
        """Hidden units of the feed-forward network: 4 x width for ESM-2; for SwiGLU two thirds of that, up to a
        multiple of 8 for AMPLIFY (the published 1712 and 2560) and of 256 for ESM-C (2560)."""
        if self.family == "esm2":
            return 4 * self.width
        multiple = 8 if self.family == "amplify" else 256
        return multiple * -(-int(2 * 4 * self.width / 3) // multiple)

    @property
    def residual_scale(self) -> float:
        """Factor of what each layer adds to the residual stream; ESM-C's grows weaker with depth."""
        return (36 / self.layers) ** 0.5 if self.family == "esmc" else 1.0

    @property
    def alphabet(self) -> Alphabet:
        return alphabet(self.family)


def trunk_shape(config: TrunkConfig) -> TrunkShape:
    """The shape of a published or custom trunk."""
    if config.model == "custom":
        # The config's own validation lets no custom trunk through without its dimensions.
        return TrunkShape(config.family, config.layers or 0, config.width or 0, config.heads or 0)
    family = "esm2" if config.model in ESM2_SIZES else "amplify" if config.model in AMPLIFY_SIZES else "esmc"
    return TrunkShape(family, *PUBLISHED_SIZES[config.model])
