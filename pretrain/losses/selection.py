"""Residue loss selection: which residues of a pool have the largest (or smallest) excess loss over the reference."""

import math
from typing import Literal

import torch
from torch import Tensor

from pretrain.distributed import Group, Rows, gather_values, rows_of

Mode = Literal["off", "large", "small"]


def num_kept(count: int, ratio: float) -> int:
    """How many of `count` residues a ratio keeps: ceil(ratio * count)."""
    # 0.55 * 100 is 55.000000000000007 in binary; the ratio the user wrote is decimal.
    return min(count, math.ceil(round(ratio * count, 6)))


def keep_mask(excess: Tensor, ratio: float, mode: Mode, group: Group = None, rows: Rows | None = None) -> Tensor:
    """bool [n]: which of this rank's residues are among the ceil(ratio * count) of largest excess in the whole pool.

    The pool is every rank's `excess` [n] in rank order. Exact: the values themselves are gathered and sorted, and equal
    ones are kept in pool order, so the number kept is always the same. `small` keeps the smallest; `off` keeps all.
    A collective unless the mode is `off`.
    """
    if mode == "off":
        return torch.ones(len(excess), dtype=torch.bool, device=excess.device)
    if rows is None:
        (rows,) = rows_of([len(excess)], excess.device, group)
    pool = gather_values(excess, rows, group)
    order = torch.sort(pool, descending=mode == "large", stable=True).indices
    mask = torch.zeros(len(pool), dtype=torch.bool, device=excess.device)
    mask[order[: num_kept(len(pool), ratio)]] = True
    return mask[rows.local]
