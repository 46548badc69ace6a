"""Contacts from attention maps by logistic regression (Rao et al. 2021), as ESM-2 does it."""

from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from configs.errors import UserError

_KEYS = ("contact_head.regression.weight", "contact_head.regression.bias")
_RESULT_KEYS = ("weight", "bias")
"""Of the regression that stands beside an evaluation's results."""


@dataclass(frozen=True)
class ContactRegression:
    """Logistic regression over the C = layers * heads attention maps."""

    weight: Tensor
    """float32 [C]."""
    bias: float


def contact_features(maps: Tensor) -> Tensor:
    """[C, N, N] of attention maps [C, N + 2, N + 2]: special tokens dropped, symmetrised, average product corrected."""
    inner = maps[:, 1:-1, 1:-1]
    symmetric = inner + inner.transpose(1, 2)
    rows = symmetric.sum(-1, keepdim=True)
    expected = rows * rows.transpose(1, 2) / rows.sum(1, keepdim=True)
    return symmetric - expected


def predict_contacts(maps: Tensor, regression: ContactRegression) -> Tensor:
    """[N, N] contact probabilities of one protein's attention maps [C, N + 2, N + 2]."""
    logits = torch.tensordot(regression.weight.to(maps), contact_features(maps), dims=1) + regression.bias
    return logits.sigmoid()


def read_contact_regression(path: Path) -> ContactRegression:
    """Read fair-esm's `<model>-contact-regression.pt`, or our `.safetensors`: an evaluation's, or one written here.

    Raises:
        UserError: no such file, or not one of these layouts.
    """
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            # weights_only: the file may come from anywhere; only tensors and plain containers are unpickled.
            state = torch.load(path, map_location="cpu", weights_only=True)["model"]
        weight, bias = (state[key].float() for key in (_KEYS if _KEYS[0] in state else _RESULT_KEYS))
    except FileNotFoundError:
        raise UserError(f"contact regression {path}: no such file") from None
    except Exception as error:
        raise UserError(
            f"contact regression {path}: cannot be read ({type(error).__name__}); "
            "allowed: fair-esm's <model>-contact-regression.pt, or a .safetensors of ours"
        ) from None
    return ContactRegression(weight.reshape(-1), bias.item())


def write_contact_regression(regression: ContactRegression, path: Path) -> None:
    """Write a `.safetensors` file that `read_contact_regression` reads back; names and shapes are fair-esm's."""
    safetensors.torch.save_file(contact_state(regression), path)


def contact_state(regression: ContactRegression) -> dict[str, Tensor]:
    """The regression under fair-esm's names: weight [1, C], bias [1]."""
    weight = regression.weight.reshape(1, -1).float().clone(memory_format=torch.contiguous_format)
    return dict(zip(_KEYS, (weight, torch.tensor([regression.bias])), strict=True))
