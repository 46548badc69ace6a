"""The stages of training, by name."""

from configs.train import TrainConfig
from pretrain.checkpoints import Checkpoint
from pretrain.stages.protocol import Stage


def open_stage(config: TrainConfig, resume: Checkpoint | None = None) -> Stage:
    """The stage that a config names; with `resume`, published start weights are not loaded.

    Raises:
        UserError: shards, teacher, reference or start weights that do not exist or do not fit.
    """
    if config.stage == "teacher":
        from pretrain.stages.teacher import TeacherStage

        return TeacherStage(config)
    from pretrain.stages.align import AlignStage

    return AlignStage(config, resume)
