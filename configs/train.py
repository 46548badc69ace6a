"""Configuration of `python -m pretrain train` and `derive`: shards -> checkpoints."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from configs.engine import CheckpointConfig, EngineConfig, OptimizerConfig, TrackingConfig
from configs.loading import Config
from configs.losses import LossConfig, SelectionConfig
from configs.teacher import DeriveConfig, TeacherConfig
from configs.training_data import DataConfig
from configs.trunk import TrunkConfig


class TrainConfig(Config):
    """shards -> checkpoints, for one stage."""

    stage: Literal["teacher", "reference", "align"]
    """`teacher`: train a GearNet; `reference`: the selection model; `align`: the model of interest. MLM-only controls
    are `align` with losses.structure=0 and losses.contrast=0."""
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Run name; artifacts go to <runs>/<name>/."""
    runs: Path = Path("runs")
    seed: int = 0
    preset: Literal["default", "paper"] = "default"
    """`paper`: the published choices that ours repair, as defaults of losses.* and selection.*: local negatives without
    exclusions, constant denominators, selection within a rank; keys that are given win."""
    data: DataConfig
    trunk: TrunkConfig | None = None
    teacher: TeacherConfig = TeacherConfig()
    more_teachers: tuple[TeacherConfig, ...] = ()
    """Further frozen teachers, each with projections and a temperature of its own; the contrast is their mean."""
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
