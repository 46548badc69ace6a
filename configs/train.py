"""Configuration of `python -m pretrain train` and `derive`: shards -> checkpoints."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from configs.engine import CheckpointConfig, EngineConfig, OptimizerConfig, TrackingConfig
from configs.loading import Config
from configs.losses import LossConfig, SelectionConfig, with_paper_defaults
from configs.teacher import DeriveConfig, TeacherConfig
from configs.training_data import DataConfig, ValidationConfig
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
    """`paper`: the published choices that ours repair, as defaults: negatives of the rank alone without exclusions,
    constant denominators, no bound of the temperature that matters, selection within a rank, unreliable residues in
    the losses; keys that are given win."""
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
    validation: ValidationConfig = ValidationConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _stage_complete(self) -> Self:
        if self.stage != "teacher" and self.trunk is None:
            raise ValueError(f"stage {self.stage!r} needs `trunk`")
        if self.stage == "reference" and self.selection.mode != "off":
            raise ValueError("stage 'reference' trains without selection; set selection.mode=off")
        packs, engine = self.data.packs_per_pool, self.engine
        if packs < engine.num_workers or (engine.min_workers is None and packs % engine.num_workers):
            raise ValueError(
                f"data.packs_per_pool {packs} must be a multiple of engine.num_workers {engine.num_workers}"
                " (with engine.min_workers: at least as many)"
            )
        if self.stage == "teacher" and self.validation.pools:
            raise ValueError("stage 'teacher' has no validation; set validation.pools=0")
        if self.stage != "teacher" and self.losses.mlm + self.losses.structure + self.losses.contrast == 0:
            raise ValueError("losses: every weight is 0; at least one must be positive")
        return self

    @model_validator(mode="after")
    def _published(self) -> Self:
        # Not `before`: that would turn JSON's lists into Python's, which strict tuples refuse.
        return with_paper_defaults(self) if self.preset == "paper" else self
