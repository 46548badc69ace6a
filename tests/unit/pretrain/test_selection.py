"""Which residues the selection keeps."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from configs.losses import SelectionConfig
from pretrain.distributed import Rows
from pretrain.losses.selection import keep_mask, num_kept, pool_kept, selection_ratio


def test_large_keeps_the_largest_and_small_the_smallest() -> None:
    excess = torch.tensor([0.3, -1.0, 2.0, 0.0, 1.0])
    assert keep_mask(excess, 0.4, "large").tolist() == [False, False, True, False, True]
    assert keep_mask(excess, 0.4, "small").tolist() == [False, True, False, True, False]


def test_off_keeps_everything() -> None:
    assert keep_mask(torch.randn(7), 0.1, "off").all()


def test_equal_values_are_kept_in_pool_order() -> None:
    assert keep_mask(torch.zeros(5), 0.5, "large").tolist() == [True, True, True, False, False]
    assert keep_mask(torch.zeros(5), 0.5, "small").tolist() == [True, True, True, False, False]


def test_an_empty_pool_has_an_empty_mask() -> None:
    assert keep_mask(torch.zeros(0), 0.8, "large").shape == (0,)


def test_the_number_kept_follows_the_decimal_ratio() -> None:
    # 0.55 * 100 and 0.07 * 100 lie just above a whole number in binary.
    assert num_kept(100, 0.55) == 55
    assert num_kept(100, 0.07) == 7
    assert num_kept(3, 0.8) == 3
    assert num_kept(0, 0.8) == 0


@given(
    excess=st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=60),
    ratio=st.floats(0.05, 1.0).map(lambda x: round(x, 2)),
)
def test_no_dropped_residue_has_more_excess_than_a_kept_one(excess: list[float], ratio: float) -> None:
    values = torch.tensor(excess)
    mask = keep_mask(values, ratio, "large")
    assert mask.sum() == num_kept(len(values), ratio)
    if not mask.all():
        assert values[mask].min() >= values[~mask].max()


def test_the_ratio_goes_linearly_from_its_start_to_its_end() -> None:
    config = SelectionConfig(mode="large", ratio=0.5, start_ratio=1.0, ratio_steps=4, column="known")
    assert [selection_ratio(step, config) for step in (1, 2, 3, 5, 6, 1000)] == [1.0, 0.875, 0.75, 0.5, 0.5, 0.5]
    rising = SelectionConfig(mode="large", ratio=0.8, start_ratio=0.2, ratio_steps=2, column="known")
    assert [selection_ratio(step, rising) for step in (1, 2, 3)] == pytest.approx([0.2, 0.5, 0.8])
    assert selection_ratio(7, SelectionConfig(mode="large", ratio=0.7, column="known")) == 0.7


def test_scope_rank_keeps_its_own_share_whatever_the_pool_is_like() -> None:
    pool = Rows((3, 5), 1)
    excess = torch.tensor([0.1, 0.5, 0.3, 0.2, 0.4])
    assert keep_mask(excess, 0.4, "large", rows=pool, scope="rank").tolist() == [False, True, False, False, True]
    assert pool_kept(pool, 0.5, "large") == 4
    assert pool_kept(pool, 0.5, "large", "rank") == 2 + 3
    assert pool_kept(pool, 0.5, "off") == 8
