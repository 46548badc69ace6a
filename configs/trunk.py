"""The protein language model of a training run."""

from typing import Literal, Self

from pydantic import Field, model_validator

from configs.loading import Config

ESM2_SIZES: dict[str, tuple[int, int, int]] = {
    "esm2_t6_8M_UR50D": (6, 320, 20),
    "esm2_t12_35M_UR50D": (12, 480, 20),
    "esm2_t30_150M_UR50D": (30, 640, 20),
    "esm2_t33_650M_UR50D": (33, 1280, 20),
    "esm2_t36_3B_UR50D": (36, 2560, 40),
    "esm2_t48_15B_UR50D": (48, 5120, 40),
}
"""Published ESM-2 models: layers, width, heads."""
AMPLIFY_SIZES: dict[str, tuple[int, int, int]] = {"AMPLIFY_120M": (24, 640, 10), "AMPLIFY_350M": (32, 960, 15)}
"""Published AMPLIFY models: layers, width, heads."""
ESMC_SIZES: dict[str, tuple[int, int, int]] = {"ESMC_300M": (30, 960, 15)}
"""Published ESM-C models whose first licence allows any use: layers, width, heads."""
PUBLISHED_SIZES = ESM2_SIZES | AMPLIFY_SIZES | ESMC_SIZES


class LoraConfig(Config):
    """Low-rank adapters (Hu et al. 2021, through peft) on a frozen trunk; heads are trained whole.

    Embedding, norms, biases and the language head stay as published. Adapters learn at optimizer.trunk_lr (usual values
    are some ten times those of training all weights) and are not decayed.
    """

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0)
    """Updates are scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of the adapters' inputs; above 0 the result depends on the number of workers, as every dropout's does."""
    targets: tuple[Literal["qkv", "out", "up", "down"], ...] = Field(default=("qkv", "out", "up", "down"), min_length=1)
    """Matrices of every layer: attention in and out, feed-forward up and down."""


class TrunkConfig(Config):
    """The protein language model."""

    model: str = "custom"
    """A published name (`esm2_t6_8M_UR50D` ... `esm2_t48_15B_UR50D`, `AMPLIFY_120M`, `AMPLIFY_350M`, `ESMC_300M`) or
    `custom`."""
    family: Literal["esm2", "amplify", "esmc"] = "esm2"
    """Architecture of a `custom` model; a published name sets it."""
    layers: int | None = Field(default=None, ge=1)
    width: int | None = Field(default=None, ge=8)
    heads: int | None = Field(default=None, ge=1)
    weights: str | None = None
    """Start from weights: a fair-esm .pt, a transformers folder, a safetensors file of AMPLIFY keys, a checkpoint
    folder of ours, or `hub` (needs network). Unset: random initialisation."""
    lora: LoraConfig | None = None
    """Train low-rank adapters instead of the trunk's own weights; needs `weights`."""

    @model_validator(mode="after")
    def _adapters_have_a_trunk(self) -> Self:
        if self.lora is not None and self.weights is None:
            raise ValueError(
                "trunk.lora trains adapters on frozen weights but trunk.weights is not set; name a source of weights,"
                " or leave out trunk.lora"
            )
        return self

    @model_validator(mode="after")
    def _size_known(self) -> Self:
        if self.model == "custom":
            if None in (self.layers, self.width, self.heads):
                raise ValueError("trunk.model is 'custom': set layers, width and heads")
            if self.width % (2 * self.heads):
                raise ValueError(
                    f"trunk.width {self.width} must be a multiple of 2 x heads ({2 * self.heads}) for rotary"
                )
        elif self.model not in PUBLISHED_SIZES:
            allowed = ", ".join(["custom", *PUBLISHED_SIZES])
            raise ValueError(f"trunk.model {self.model!r} is not known; allowed: {allowed}")
        elif {self.layers, self.width, self.heads} != {None}:
            raise ValueError(
                f"trunk.model {self.model!r} fixes layers, width and heads; leave them out, or use model=custom"
            )
        return self
