"""A user's function as a model to evaluate: sequences in, residue states out, nothing else known of it."""

import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from configs.errors import UserError
from eval.models.protocol import NotSupported, Precision

_PROBE = "ACDEFGHIKLMNPQRSTVWY"


@dataclass(frozen=True)
class CallableModel:
    """Residue states from `function(sequences) -> list of [N, D] arrays`."""

    function: Callable[[list[str]], Sequence[np.ndarray]]
    name: str
    description: str
    weights_sha256: str
    width: int
    layers: int = 1
    max_residues: int | None = None
    precision: Precision = "float32"

    def at(self, precision: Precision) -> "CallableModel":
        """Itself: a function computes as it does."""
        return self

    def hidden(self, sequences: Sequence[str], all_layers: bool = False) -> list[Tensor]:
        """What the function gives, float32 [N, D] each.

        Raises:
            NotSupported: all layers are asked for.
            UserError: the function gives something else than one [N, D] for each sequence.
        """
        if all_layers:
            raise NotSupported(f"{self.name} is a function of one representation; use features.representation=last")
        found = _arrays(self.function, sequences, self.name)
        wrong = next((a for a in found if a.shape[1] != self.width), None)
        if wrong is not None:
            raise UserError(
                f"{self.name}: gave {wrong.shape[1]} features, {self.width} before; it must be of one width"
            )
        return [torch.from_numpy(array) for array in found]

    def log_probs(self, sequences: Sequence[str]) -> list[Tensor]:
        """Not to be had of a function."""
        self._without("likelihoods")

    def masked_log_probs(self, jobs: Sequence[tuple[str, np.ndarray]]) -> list[Tensor]:
        """Not to be had of a function."""
        self._without("masked likelihoods")

    def attention_maps(self, sequence: str) -> Tensor:
        """Not to be had of a function."""
        self._without("attention maps")

    def threedi_logits(self, sequences: Sequence[str]) -> list[Tensor] | None:
        """None: a function has no 3Di head."""
        return None

    def threedi_of(self, hidden: Sequence[Tensor]) -> list[Tensor] | None:
        """None: a function has no 3Di head."""
        return None

    def trunk(self) -> NoReturn:
        """Not to be had of a function."""
        self._without("weights to tune")

    def _without(self, what: str) -> NoReturn:
        raise NotSupported(f"{self.name} is a function, which gives no {what}")


def callable_model(name: str) -> CallableModel:
    """The function `package.module:function`, found as Python finds modules from the working folder.

    Its attributes, all optional: `version` names its weights (without, the module's source does), `width` is D
    (without, it is called once), `max_residues` the longest sequence it takes.

    Raises:
        UserError: no such function, or it gives something else than states.
    """
    module_name, _, function_name = name.partition(":")
    where = f"model callable:{name}"
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{where}: {error}; allowed: callable:package.module:function") from None
    if not callable(function):
        raise UserError(f"{where}: is a {type(function).__name__}; name a function of a list of sequences")
    width = getattr(function, "width", None) or _arrays(function, [_PROBE], where)[0].shape[1]
    declared = getattr(function, "version", None)
    identity = f"{name} {declared}" if declared is not None else f"{name} {_source(function, where)}"
    return CallableModel(
        function=function,
        name=name,
        description=f"function, {'version ' + str(declared) if declared is not None else 'named by its source'}",
        weights_sha256=hashlib.sha256(identity.encode()).hexdigest(),
        width=int(width),
        max_residues=getattr(function, "max_residues", None),
    )


def _source(function: Callable, where: str) -> str:
    try:
        return Path(inspect.getfile(inspect.unwrap(function))).read_text()
    except (TypeError, OSError):
        raise UserError(f"{where}: has no source file to name its weights by; give it an attribute `version`") from None


def _arrays(function: Callable, sequences: Sequence[str], where: str) -> list[np.ndarray]:
    try:
        found = [np.array(array, dtype=np.float32) for array in function(list(sequences))]
    except Exception as error:
        raise UserError(f"{where}: raised {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
    shapes = [array.shape for array in found]
    if len(found) != len(sequences) or any(
        array.ndim != 2 or len(array) != len(sequence) for array, sequence in zip(found, sequences, strict=False)
    ):
        raise UserError(
            f"{where}: gave {len(found)} arrays of shapes {shapes[:3]} for {len(sequences)} sequences of "
            f"{[len(s) for s in sequences[:3]]} residues; it must give one [residues, features] for each"
        )
    return found
