"""Which residues the selection keeps."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from pretrain.losses.selection import keep_mask, num_kept


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
