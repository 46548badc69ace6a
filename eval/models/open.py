"""Models by the words a user names them with."""

from pathlib import Path

import torch

from configs.errors import UserError
from configs.evaluate import EvalConfig
from eval.models.checkpoint_model import checkpoint_model
from eval.models.protocol import ProteinModel
from pretrain.checkpoints import Checkpoint

CALLABLE = "callable:"
HUB = "hf:"


def open_model(spec: str | Path | Checkpoint, config: EvalConfig) -> ProteinModel:
    """A model in evaluation mode on the configured device, in the precision of `config.features`.

    Args:
        spec: a run or checkpoint folder of this project (or an opened checkpoint), a folder of `transformers`,
            `hf:ORG/NAME[@revision]`, or `callable:package.module:function`.

    Raises:
        UserError: nothing of that kind there, or a model that cannot be read.
    """
    if config.execution.threads is not None:
        torch.set_num_threads(config.execution.threads)
    device, precision = device_of(config), config.features.precision
    if isinstance(spec, Checkpoint):
        return checkpoint_model(spec, config.batch_tokens, device, precision)
    words = str(spec)
    if words.startswith(CALLABLE):
        from eval.models.callable_model import callable_model

        return callable_model(words.removeprefix(CALLABLE))
    if words.startswith(HUB) or (Path(words) / "config.json").is_file():
        from eval.models.transformers_load import transformers_model

        return transformers_model(words, config.batch_tokens, device, precision)
    return checkpoint_model(words, config.batch_tokens, device, precision)


def device_of(config: EvalConfig) -> torch.device:
    """The configured device.

    Raises:
        UserError: `cuda` was asked for and there is none.
    """
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise UserError("device is 'cuda' but no CUDA device can be used; set device=cpu or device=auto")
    return torch.device("cuda" if available and config.device != "cpu" else "cpu")
