"""The learning rate over a run."""

import pytest

from configs.engine import OptimizerConfig
from pretrain.schedule import learning_rate_factor


def test_warm_up_is_linear_and_reaches_the_base_rate() -> None:
    config = OptimizerConfig(steps=100, warmup_steps=4)
    assert [learning_rate_factor(step, config) for step in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 1.0]


def test_after_warm_up_the_rate_falls_to_almost_nothing_and_never_rises() -> None:
    config = OptimizerConfig(steps=100, warmup_steps=10)
    rates = [learning_rate_factor(step, config) for step in range(10, 101)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == rates[1] == 1.0
    assert 0 < rates[-1] < 1e-3


def test_halfway_down_the_cosine_stands_at_a_half() -> None:
    config = OptimizerConfig(steps=110, warmup_steps=10)
    # Exact but for the rounding of cos(pi / 2).
    assert learning_rate_factor(61, config) == pytest.approx(0.5, abs=1e-12)


def test_a_run_of_warm_up_only_and_one_without_it_are_defined() -> None:
    assert learning_rate_factor(1, OptimizerConfig(steps=1, warmup_steps=0)) == 1.0
    assert learning_rate_factor(3, OptimizerConfig(steps=3, warmup_steps=10)) == pytest.approx(0.3)
