"""What the forked workers of `training_runs` need: imported once, by the process that they are forked from."""

import os

from configs.engine import EngineConfig
from pretrain.engine import prepare_process

# DeepSpeed imports the compiler; its own workers would be threads, and those do not survive a fork.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
prepare_process(EngineConfig())

import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: E402, F401 - after the settings

import pretrain.canonical  # noqa: E402
import pretrain.launch  # noqa: E402
import pretrain.stages.align  # noqa: E402
import pretrain.worker  # noqa: E402, F401
