"""The learning rate as a pure function of the step: linear warm-up, then cosine to 0."""

import math

from configs.engine import OptimizerConfig


def learning_rate_factor(step: int, config: OptimizerConfig) -> float:
    """What the base rates are multiplied by in optimizer update `step` (1 .. config.steps); in [0, 1]."""
    assert step >= 1
    if step <= config.warmup_steps:
        return step / config.warmup_steps
    # The cosine would be 0 at the last update itself if it began at the warm-up's end: that update would be wasted.
    progress = (step - config.warmup_steps - 1) / max(1, config.steps - config.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
