"""Configuration of `python -m pretrain train` and `derive`: shards -> checkpoints."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

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


class TrunkConfig(Config):
    """The protein language model."""

    model: str = "custom"
    """A published name (`esm2_t6_8M_UR50D` ... `esm2_t48_15B_UR50D`, `AMPLIFY_120M`, `AMPLIFY_350M`) or `custom`."""
    family: Literal["esm2", "amplify"] = "esm2"
    """Architecture of a `custom` model; a published name sets it."""
    layers: int | None = Field(default=None, ge=1)
    width: int | None = Field(default=None, ge=8)
    heads: int | None = Field(default=None, ge=1)
    weights: str | None = None
    """Start from weights: a fair-esm .pt, a transformers folder, a safetensors file of AMPLIFY keys, a checkpoint
    folder of ours, or `hub` (needs network). Unset: random initialisation."""

    @model_validator(mode="after")
    def _size_known(self) -> Self:
        if self.model == "custom":
            if None in (self.layers, self.width, self.heads):
                raise ValueError("trunk.model is 'custom': set layers, width and heads")
            if self.width % (2 * self.heads):
                raise ValueError(
                    f"trunk.width {self.width} must be a multiple of 2 x heads ({2 * self.heads}) for rotary"
                )
        elif self.model not in ESM2_SIZES | AMPLIFY_SIZES:
            allowed = ", ".join(["custom", *ESM2_SIZES, *AMPLIFY_SIZES])
            raise ValueError(f"trunk.model {self.model!r} is not known; allowed: {allowed}")
        elif {self.layers, self.width, self.heads} != {None}:
            raise ValueError(
                f"trunk.model {self.model!r} fixes layers, width and heads; leave them out, or use model=custom"
            )
        return self


class CacheConfig(Config):
    """The local copy of shards that lie on remote storage; not used for a local folder."""

    folder: Path | None = None
    """Shared by all processes of a machine; unset: `$XDG_CACHE_HOME/saplm/shards` (~/.cache/saplm/shards)."""
    gigabytes: float = Field(default=50.0, gt=0)
    """The least recently used shards are removed to stay below this (10^9 bytes)."""
    shards_ahead: int = Field(default=8, ge=0)
    """Shards fetched before they are needed, in the order of use."""
    attempts: int = Field(default=5, ge=1)
    """Of every request, with growing pauses, before remote storage counts as unreachable."""


def _folder_or_url(place: str | Path) -> str | Path:
    if isinstance(place, Path):
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(place)):
            raise ValueError(f"{str(place)!r} is a URL given as a Path, which loses a slash; give a string")
        return place
    return place if "://" in place else Path(place)


class DataConfig(Config):
    """Which chains, how they are cropped, packed and pooled."""

    shards: Annotated[str | Path, Field(union_mode="left_to_right"), AfterValidator(_folder_or_url)]
    """Folder written by `data_pipeline build`, or the URL of one on remote storage (s3://, https://, file://, any that
    fsspec reads)."""
    cache: CacheConfig = CacheConfig()
    split: str = "train"
    high_quality_only: bool = False
    """Only the high-quality subset (the reference model's stage)."""
    max_residues: int = Field(default=2046, ge=8)
    """Longer chains are randomly cropped to this."""
    pack_tokens: int = Field(default=2048, ge=16)
    """Token budget of one pack (residues plus two special tokens per chain)."""
    packs_per_pool: int = Field(default=2, ge=1)
    """Packs that stand together in one contrastive pool, across all ranks; a multiple of the number of workers."""
    pools_per_step: int = Field(default=1, ge=1)
    """Pools (backward passes) accumulated into one optimizer step."""
    mask_fraction: float = Field(default=0.15, gt=0, lt=1)
    mask_unreliable: bool = True
    """Positions that the shards mark as unreliable (low pLDDT, high B-factor) take no part in structure losses."""
    shuffle_window_shards: int | None = Field(default=None, ge=1)
    """Shuffle within windows of so many shards, taken in shuffled order, so that a remote data set larger than the
    cache is fetched once per epoch; choose it so that two windows fit into the cache. Unset: global shuffle."""
    verify: bool = True
    """Check each shard's sha256 on first touch."""

    @model_validator(mode="after")
    def _crop_fits_pack(self) -> Self:
        if self.max_residues + 2 > self.pack_tokens:
            raise ValueError(
                f"data.pack_tokens {self.pack_tokens} cannot hold data.max_residues {self.max_residues} + 2"
            )
        return self


class GearNetConfig(Config):
    """GearNet on torch-geometric: residue types as node features, seven relations."""

    layers: int = Field(default=6, ge=1)
    width: int = Field(default=512, ge=8)


class MultiviewConfig(Config):
    """Multiview Contrast pretraining of a GearNet."""

    crop_residues: int = Field(default=50, ge=5)
    ball_radius: float = Field(default=15.0, gt=0)
    """Angstrom."""
    edge_mask: float = Field(default=0.15, ge=0, lt=1)
    temperature: float = Field(default=0.07, gt=0)
    proteins_per_batch: int = Field(default=32, ge=2)


class TeacherConfig(Config):
    """The frozen protein graph network, or the one to train in stage `teacher`."""

    kind: Literal["gearnet", "mpnn"] = "gearnet"
    gearnet: GearNetConfig = GearNetConfig()
    multiview: MultiviewConfig = MultiviewConfig()
    weights: Path | None = None
    """A checkpoint folder of stage `teacher`, or the .npz of the MPNN encoder."""
    column: str | None = None
    """Name of the derived column (beside the shards) that holds its embeddings; unset: embed online."""


class DeriveConfig(Config):
    """How `derive teacher` computes and stores a column of embeddings."""

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

    @model_validator(mode="after")
    def _pca_complete(self) -> Self:
        if (self.form == "pca") != (self.pca_width is not None):
            what = "needs derive.pca_width" if self.form == "pca" else "has no use for derive.pca_width"
            raise ValueError(f"derive.form {self.form!r} {what}; set both form=pca and pca_width, or neither")
        return self


class LossConfig(Config):
    """Weights of the three losses; a weight of 0 leaves the loss and its head out."""

    mlm: float = Field(default=1.0, ge=0)
    structure: float = Field(default=0.5, ge=0)
    """3Di token prediction (physical level)."""
    contrast: float = Field(default=0.5, ge=0)
    """Residue-wise InfoNCE against the teacher (latent level)."""
    projection_width: int = Field(default=512, ge=8)
    """The projection heads map to min(trunk width, this)."""
    max_logit_scale: float = Field(default=100.0, gt=1)
    """Upper bound of exp(logit_scale)."""
    exclude_same_cluster: bool = True
    """Residues of the same protein or sequence cluster are not used as negatives of each other (the positive stays)."""
    contrast_tile: int = Field(default=1024, ge=16)
    """Rows per tile of the memory-linear InfoNCE."""


class SelectionConfig(Config):
    """Residue loss selection by excess over a frozen reference model."""

    mode: Literal["off", "large", "small"] = "off"
    """`large`: keep the residues of largest excess loss; `small`: of smallest."""
    ratio: float = Field(default=0.8, gt=0, le=1)
    """Fraction kept, separately per structure loss."""
    reference: Path | None = None
    """Checkpoint (or run folder: its last good one) of stage `reference`."""

    @model_validator(mode="after")
    def _reference_given(self) -> Self:
        if self.mode != "off" and self.reference is None:
            raise ValueError(
                f"selection.mode is {self.mode!r} but selection.reference is not set; name a checkpoint, or mode=off"
            )
        return self


class OptimizerConfig(Config):
    trunk_lr: float = Field(default=1e-4, gt=0)
    head_lr: float = Field(default=1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    clip: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; 0 switches clipping off."""
    steps: int = Field(default=1000, ge=1)
    """Optimizer updates of the whole run."""
    warmup_steps: int = Field(default=100, ge=0)
    """Linear warm-up, then cosine to 0."""


class EngineConfig(Config):
    """How the step runs; nothing here changes what is learnt, except precision."""

    zero_stage: Literal[0, 1, 2, 3] = 3
    deepspeed: Path | None = None
    """A DeepSpeed JSON file laid over the generated one; batch sizes are checked against the data config."""
    precision: Literal["fp32", "bf16"] = "fp32"
    num_workers: int = Field(default=1, ge=1)
    cpus_per_worker: int = Field(default=1, ge=1)
    gpus_per_worker: int = Field(default=0, ge=0)
    launcher: Literal["ray", "env"] = "ray"
    """`ray`: Ray Train starts the workers; `env`: torchrun or srun did (RANK, WORLD_SIZE, ... are set)."""
    address: str | None = None
    """Ray cluster; default: RAY_ADDRESS, else a cluster of this machine that ends with the run."""
    max_failures: int = Field(default=2, ge=0)
    """Restarts from the last good checkpoint after a worker is lost."""


class CheckpointConfig(Config):
    every: int = Field(default=500, ge=1)
    """Steps between checkpoints; the last step always writes one."""
    keep: int | None = Field(default=None, ge=1)
    """Keep this many of the newest; unset: all."""


class TrackingConfig(Config):
    mlflow: bool = True
    uri: str | None = None
    """MLflow tracking URI; default: sqlite:///<runs folder>/mlflow.db."""
    experiment: str = "structure-alignment"
    every: int = Field(default=1, ge=1)
    """Steps between rows of metrics.jsonl and MLflow."""


class TrainConfig(Config):
    """shards -> checkpoints, for one stage."""

    stage: Literal["teacher", "reference", "align"]
    """`teacher`: train a GearNet; `reference`: the selection model; `align`: the model of interest. MLM-only controls
    are `align` with losses.structure=0 and losses.contrast=0."""
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Run name; artifacts go to <runs>/<name>/."""
    runs: Path = Path("runs")
    seed: int = 0
    data: DataConfig
    trunk: TrunkConfig | None = None
    teacher: TeacherConfig = TeacherConfig()
    derive: DeriveConfig = DeriveConfig()
    losses: LossConfig = LossConfig()
    selection: SelectionConfig = SelectionConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    engine: EngineConfig = EngineConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _stage_complete(self) -> Self:
        if self.stage != "teacher" and self.trunk is None:
            raise ValueError(f"stage {self.stage!r} needs `trunk`")
        if self.stage == "reference" and self.selection.mode != "off":
            raise ValueError("stage 'reference' trains without selection; set selection.mode=off")
        if self.data.packs_per_pool % self.engine.num_workers:
            raise ValueError(
                f"data.packs_per_pool {self.data.packs_per_pool} must be a multiple of engine.num_workers"
                f" {self.engine.num_workers}"
            )
        if self.stage != "teacher" and self.losses.mlm + self.losses.structure + self.losses.contrast == 0:
            raise ValueError("losses: every weight is 0; at least one must be positive")
        return self
