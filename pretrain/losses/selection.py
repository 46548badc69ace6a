"""Residue loss selection: which residues of a pool have the largest (or smallest) excess loss over the reference."""

import math
from typing import Literal

import torch
from torch import Tensor

from configs.losses import SelectionConfig
from pretrain.distributed import Group, Rows, gather_values, rows_of

Mode = Literal["off", "large", "small"]


def selection_ratio(step: int, config: SelectionConfig) -> float:
    """Fraction kept in optimizer update `step` (from 1): linear from start_ratio to ratio, reached after ratio_steps.

    The first update keeps start_ratio, update ratio_steps + 1 and all later ones ratio.
    """
    if config.start_ratio is None:
        return config.ratio
    done = min(max(step - 1, 0) / config.ratio_steps, 1.0)
    return config.start_ratio + done * (config.ratio - config.start_ratio)


def num_kept(count: int, ratio: float) -> int:
    """How many of `count` residues a ratio keeps: ceil(ratio * count)."""
    # 0.55 * 100 is 55.000000000000007 in binary; the ratio the user wrote is decimal.
    return min(count, math.ceil(round(ratio * count, 6)))


def pool_kept(rows: Rows, ratio: float, mode: Mode, scope: Literal["pool", "rank"] = "pool") -> int:
    """How many residues of the whole pool `keep_mask` keeps: its loss's count."""
    if mode == "off":
        return rows.total
    return num_kept(rows.total, ratio) if scope == "pool" else sum(num_kept(size, ratio) for size in rows.sizes)


def keep_mask(
    excess: Tensor,
    ratio: float,
    mode: Mode,
    group: Group = None,
    rows: Rows | None = None,
    scope: Literal["pool", "rank"] = "pool",
) -> Tensor:
    """bool [n]: which of this rank's residues are among the ceil(ratio * count) of largest excess in the whole pool.

    The pool is every rank's `excess` [n] in rank order. Exact: the values themselves are gathered and sorted, and equal
    ones are kept in pool order, so the number kept is always the same. `small` keeps the smallest; `off` keeps all.
    Scope `rank` takes each rank's residues for themselves, as published. A collective of scope `pool`, unless `off`.
    """
    if mode == "off":
        return torch.ones(len(excess), dtype=torch.bool, device=excess.device)
    if scope == "rank":
        rows = Rows.alone(len(excess))
    elif rows is None:
        (rows,) = rows_of([len(excess)], excess.device, group)
    pool = gather_values(excess, rows, group)
    order = torch.sort(pool, descending=mode == "large", stable=True).indices
    mask = torch.zeros(len(pool), dtype=torch.bool, device=excess.device)
    mask[order[: num_kept(len(pool), ratio)]] = True
    return mask[rows.local]
