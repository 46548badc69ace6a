"""Frozen protein graph networks: architecture, training and derived columns."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from configs.loading import Config


class GearNetConfig(Config):
    """GearNet: residue types as node features, seven relations; the defaults are the published size."""

    layers: int = Field(default=6, ge=1)
    width: int = Field(default=512, ge=8)
    representation: Literal["last", "concat"] = "last"
    """What a residue's embedding is: the states of the last layer (`width` features, as in the published alignment) or
    of all layers side by side (`layers` times as many)."""

    @property
    def features(self) -> int:
        """Of one residue's embedding."""
        return self.width * (self.layers if self.representation == "concat" else 1)


class MultiviewConfig(Config):
    """Multiview Contrast pretraining of a GearNet."""

    crop_residues: int = Field(default=50, ge=5)
    ball_radius: float = Field(default=15.0, gt=0)
    """Angstrom."""
    edge_mask: float = Field(default=0.15, ge=0, lt=1)
    mask_odds: float = Field(default=0.5, ge=0, le=1)
    """Chance that a view loses `edge_mask` of its edges; otherwise it keeps all, as in the published code's choice of
    noise."""
    overlapping: bool = False
    """Training draws second views again until they share a residue with the first. Views in different parts of a chain,
    three pairs in ten of the real chains, have only their composition in common."""
    temperature: float = Field(default=0.07, gt=0)
    proteins_per_batch: int = Field(default=32, ge=2)


class TeacherConfig(Config):
    """The frozen protein graph network, or the one to train in stage `teacher`."""

    kind: Literal["gearnet", "gearnet_edge", "mpnn"] = "gearnet"
    """`gearnet_edge` has edge messages too: about 20 times the work per residue. `mpnn` sees no residue types."""
    gearnet: GearNetConfig = GearNetConfig()
    multiview: MultiviewConfig = MultiviewConfig()
    weights: Path | None = None
    """GearNets: a run or checkpoint folder of stage `teacher`, or a .pth, .pt or .safetensors file of a state dict as
    published. mpnn: the .npz of the encoder."""
    column: str | None = None
    """Name of the derived column (beside the shards) that holds its embeddings; unset: embed online."""


class DeriveConfig(Config):
    """How `derive teacher` computes and stores a column of embeddings, and `derive reference` one of losses."""

    num_workers: int | None = Field(default=None, ge=1)
    """Ray actors that share the shards; 1: this process, without Ray. Unset: one for each GPU, else each CPU, of the
    cluster that engine.address or RAY_ADDRESS names, else of this machine; small columns are made in this process.
    The bytes written do not depend on it."""
    form: Literal["float16", "int8", "pca"] = "float16"
    """`float16`: as the teacher gives them; `int8`: one scale per residue, about half the bytes; `pca`: the first
    `pca_width` principal components. The column's manifest states the error of the form."""
    pca_width: int | None = Field(default=None, ge=1)
    """Principal components kept by form `pca`: what training sees as the teacher's width."""
    pca_storage: Literal["float16", "int8"] = "float16"
    """How form `pca` stores the components."""
    pca_residues: int = Field(default=100_000, ge=1)
    """Residues of the train split, taken from all over it, on which the components are fitted."""
    batch_residues: int = Field(default=4096, ge=1)
    """Chains are embedded together up to this many residues; a longer chain stands alone."""

    masks: int = Field(default=4, ge=1)
    """`derive reference`: fixed masks of every chain over which the reference model's losses are averaged."""

    @model_validator(mode="after")
    def _pca_complete(self) -> Self:
        if (self.form == "pca") != (self.pca_width is not None):
            what = "needs derive.pca_width" if self.form == "pca" else "has no use for derive.pca_width"
            raise ValueError(f"derive.form {self.form!r} {what}; set both form=pca and pca_width, or neither")
        return self
