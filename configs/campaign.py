"""Configuration of `python -m cluster run`: the whole road as dependent, restartable stages."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from configs.loading import Config


class StageConfig(Config):
    """One program call."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    command: tuple[str, ...] = Field(min_length=1)
    """Arguments after `python -m`, e.g. [pretrain, train, configs/pretrain/demo_align.yaml]; `{root}` stands for the
    campaign's folder."""
    after: tuple[str, ...] = ()
    """Stages that must have ended well before this one starts."""
    alongside: str | None = None
    """Start together with that stage (e.g. evaluation that follows a training run) instead of after it."""


class SummaryConfig(Config):
    """Artifacts that the closing table reads (paths may hold `{root}`)."""

    shards: Path
    training: tuple[Path, ...]
    """Run folders, each with metrics.jsonl."""
    evaluations: tuple[Path, ...]
    """Folders that hold step_*/results.json, in the table's column order: first and last checkpoint of each."""
    report: Path
    tracking: Path
    release: Path


class CampaignConfig(Config):
    root: Path
    """Folder of every artifact of the campaign."""
    structures: Path | None = None
    """Real structures; unset: synthetic ones."""
    stages: tuple[StageConfig, ...] = Field(min_length=1)
    summary: SummaryConfig | None = None

    @model_validator(mode="after")
    def _graph_sound(self) -> Self:
        seen: set[str] = set()
        for stage in self.stages:
            needed = {*stage.after, *([stage.alongside] if stage.alongside else [])}
            if stage.name in seen or not needed <= seen:
                raise ValueError(
                    f"stage {stage.name!r}: names must be distinct, and it may only depend on earlier stages"
                    f" {sorted(seen)}"
                )
            seen.add(stage.name)
        return self
