"""Running whitening: outputs uncorrelated, statistics followed in training alone and equal to plain averages."""

import pytest
import torch

from pretrain.teachers import whitening
from pretrain.teachers.whitening import RunningWhitening


def rows(seed: int, count: int = 4000) -> torch.Tensor:
    """float64 [count, 4]: one direction has ten thousand times the variance of another."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spread = torch.tensor([10.0, 1.0, 1.0, 0.1], dtype=torch.float64)
    return (torch.randn(count, 4, generator=generator, dtype=torch.float64) * spread) @ mixing + 3


def test_outputs_are_uncorrelated_and_of_variance_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whitening, "RIDGE", 0.0)
    module = RunningWhitening(4).double()
    out = module(rows(1))
    # The first batch is the statistics.
    torch.testing.assert_close(out.T @ out / len(out), torch.eye(4, dtype=torch.float64), atol=1e-8, rtol=0)
    torch.testing.assert_close(out.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-8, rtol=0)


def test_statistics_are_the_mean_over_the_first_batches_and_stand_still_in_evaluation() -> None:
    module = RunningWhitening(4).double()
    batches = [rows(seed, 50) for seed in range(3)]
    for batch in batches:
        module(batch)
    wanted = sum(torch.cov(batch.T, correction=0) for batch in batches) / 3
    torch.testing.assert_close(module.covariance, wanted, atol=1e-10, rtol=1e-10)
    before = module.covariance.clone()
    module.eval()
    module(rows(9, 50))
    assert torch.equal(module.covariance, before)


def test_few_rows_and_constant_features_do_not_break_it() -> None:
    module = RunningWhitening(4)
    values = torch.ones(2, 4, requires_grad=True)
    out = module(values * torch.tensor([0.0, 1.0, 2.0, 3.0]) + torch.tensor([[0.0], [1.0]]))
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert torch.isfinite(values.grad).all()
