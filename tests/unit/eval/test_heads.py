import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from configs.benchmarks import ProbeConfig
from eval.datasets.records import Record
from eval.heads.inputs import labelled_residues, labels_of, pair_features, within_residues
from eval.heads.lbfgs import minimise
from eval.heads.linear import NEVER, fit_linear
from eval.heads.losses import mean_loss, residual_
from eval.heads.mlp import fit_mlp
from eval.heads.scaling import principal_axes


def by_accuracy(labels: torch.Tensor):
    return lambda scores: (float((scores.argmax(1) == labels).float().mean()), 0.0)


def by_error(values: torch.Tensor):
    return lambda scores: (-float((scores.double() - values).square().mean()), 0.0)


def classes(num_rows: int, num_classes: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated features of unequal scale around a large common mean, and overlapping classes of unequal size."""
    g = torch.Generator().manual_seed(seed)
    labels = (torch.rand(num_rows, generator=g).square() * num_classes).long()
    centres = torch.randn(num_classes, width, generator=g)
    mix = torch.randn(width, width, generator=g) * torch.logspace(0, -1.5, width)[:, None]
    return (centres[labels] + 2 * torch.randn(num_rows, width, generator=g)) @ mix + 5, labels


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("strength", [100.0, 1.0])
@pytest.mark.parametrize(("rows", "width"), [(600, 20), (60, 100)])
def test_multinomial_regression_is_scikit_learns(strength: float, rows: int, width: int) -> None:
    x, y = classes(rows, 7, width)
    y[:7] = torch.arange(7)
    head = fit_linear("softmax", x, y, 7, by_accuracy(y), x, (strength,))
    standard = ((x - x.mean(0)) / x.std(0, correction=0)).double().numpy()
    theirs = LogisticRegression(C=1 / strength, tol=1e-8, max_iter=5000).fit(standard, y.numpy())
    ours = head.scores(x).double().softmax(1).numpy()
    # The objective is within 1e-6 of its minimum, and it is quadratic there: probabilities are within about its root.
    np.testing.assert_allclose(ours, theirs.predict_proba(standard), atol=5e-3)
    assert head.converged


def test_one_vs_rest_regression_is_scikit_learns_for_each_label() -> None:
    x, y = classes(500, 4, 15)
    labels = torch.stack([y == 0, y >= 2, y % 2 == 0], dim=1)
    head = fit_linear("sigmoid", x, labels, 3, lambda scores: (0.0, 0.0), x, (10.0,))
    standard = ((x - x.mean(0)) / x.std(0, correction=0)).double().numpy()
    for k in range(3):
        theirs = LogisticRegression(C=0.1, tol=1e-8, max_iter=5000).fit(standard, labels[:, k].numpy())
        ours = torch.sigmoid(head.scores(x)[:, k]).numpy()
        # As above.
        np.testing.assert_allclose(ours, theirs.predict_proba(standard)[:, 1], atol=5e-3)


@pytest.mark.parametrize(("rows", "width"), [(400, 12), (40, 90)])
def test_ridge_is_scikit_learns(rows: int, width: int) -> None:
    x, y = classes(rows, 5, width)
    values = y.double() * 3 + 100
    head = fit_linear("squared", x, values, 1, by_error(values), x, (3.0,))
    standard = ((x - x.mean(0)) / x.std(0, correction=0)).double().numpy()
    theirs = Ridge(alpha=3.0).fit(standard, values.numpy()).predict(standard)
    # Single precision of predictions near 100.
    np.testing.assert_allclose(head.scores(x).numpy(), theirs, atol=2e-3)


def test_strength_is_chosen_on_validation_alone() -> None:
    g = torch.Generator().manual_seed(1)
    x, validation = torch.randn(60, 50, generator=g), torch.randn(400, 50, generator=g)
    values = x[:, 0].double() + torch.randn(60, generator=g).double()
    truth = validation[:, 0].double()
    head = fit_linear("squared", x, values, 1, by_error(truth), validation)
    errors = {
        s: float(
            (fit_linear("squared", x, values, 1, by_error(truth), validation, (s,)).scores(validation) - truth)
            .square()
            .mean()
        )
        for s in (1e-3, 1.0, 1e1, 10**1.5, 1e2, 10**2.5, 1e6)
    }
    assert head.strength == pytest.approx(min(errors, key=errors.get))
    assert 1e-3 < head.strength < 1e6


def test_constant_features_and_unseen_outputs_are_no_trouble() -> None:
    x, y = classes(200, 3, 10)
    x[:, 4] = 7.0
    head = fit_linear("softmax", x, y + 2, 8, by_accuracy(y + 2), x, (1.0,))
    scores = head.scores(x)
    assert torch.isfinite(scores).all()
    assert scores[:, [0, 1, 5, 6, 7]].eq(NEVER).all()
    assert float((scores.argmax(1) == y + 2).float().mean()) > 0.6
    labels = torch.stack([y == 0, torch.zeros(200, dtype=torch.bool), torch.ones(200, dtype=torch.bool)], dim=1)
    probabilities = torch.sigmoid(fit_linear("sigmoid", x, labels, 3, lambda s: (0.0, 0.0), x, (1.0,)).scores(x))
    # The logit is 30 on either side.
    assert float(probabilities[:, 1].max()) < 1e-12
    assert float(probabilities[:, 2].min()) > 0.999999


def test_features_without_any_variance_leave_the_base_rates() -> None:
    y = torch.tensor([0, 0, 0, 1])
    scores = fit_linear("softmax", torch.ones(4, 3), y, 2, by_accuracy(y), torch.ones(4, 3), (1.0,)).scores(
        torch.ones(1, 3)
    )
    # Float32 of log probabilities.
    torch.testing.assert_close(scores.softmax(1), torch.tensor([[0.75, 0.25]]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(50, 8), (8, 50)])
def test_principal_axes_span_the_training_rows(shape: tuple[int, int]) -> None:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) + 3
    axes = principal_axes(x)
    standard = (x - x.mean(0)) / x.std(0, correction=0)
    # Float32 sums of 50 terms.
    torch.testing.assert_close(axes.project(x) @ axes.axes.T, standard, atol=1e-4, rtol=0)
    torch.testing.assert_close(axes.project(x).square().mean(0), axes.variance, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_loss_and_gradient_are_autograds(loss: str) -> None:
    g = torch.Generator().manual_seed(0)
    logits = (20 * torch.randn(30, 5, generator=g)).requires_grad_(True)
    labels = torch.randint(0, 5, (30,), generator=g) if loss == "softmax" else torch.rand(30, 5, generator=g) < 0.3
    expected = mean_loss(loss, logits, labels) * (30 if loss == "softmax" else 150)
    expected.backward()
    total, gradient = residual_(loss, logits.detach().clone(), labels)
    # Float32 sums.
    assert total == pytest.approx(float(expected.detach()), rel=1e-5)
    torch.testing.assert_close(gradient, logits.grad, atol=1e-5, rtol=0)


def test_the_minimiser_finds_a_quadratics_minimum_and_says_when_it_did_not() -> None:
    curvature, at = torch.linspace(0.1, 5.0, 30), torch.randn(30, generator=torch.Generator().manual_seed(0))

    def objective(point: torch.Tensor) -> tuple[float, torch.Tensor]:
        away = point - at
        return float((curvature * away.square()).sum() / 2), curvature * away

    found = minimise(objective, torch.zeros(30), 1e-10, 200)
    assert found.converged
    # A value within about 1e-10 of the least means points within its root over the least curvature.
    torch.testing.assert_close(found.point, at, atol=1e-3, rtol=0)
    assert not minimise(objective, torch.zeros(30), 1e-10, 3).converged


def xor(num_rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(num_rows, 4, generator=torch.Generator().manual_seed(seed))
    return x, ((x[:, 0] > 0) ^ (x[:, 1] > 0)).long()


PROBE = ProbeConfig(head="mlp", hidden=32, epochs=30, patience=5, learning_rate=1e-2, batch_size=32)


def test_an_mlp_learns_what_no_linear_head_can() -> None:
    (x, y), (v, vy), (t, ty) = xor(600, 0), xor(200, 1), xor(400, 2)
    linear = fit_linear("softmax", x, y, 2, by_accuracy(vy), v)
    mlp = fit_mlp("softmax", x, y, 2, by_accuracy(vy), v, PROBE, 0)
    assert by_accuracy(ty)(linear.scores(t))[0] < 0.65
    assert by_accuracy(ty)(mlp.scores(t))[0] > 0.9
    assert 1 <= mlp.choice.epoch <= mlp.choice.epochs <= 30


def test_an_mlp_is_the_same_for_a_seed_and_leaves_the_callers_random_state() -> None:
    x, y = xor(100, 0)
    probe = PROBE.model_copy(update={"epochs": 2, "layers": 3})
    state = torch.get_rng_state()
    first, again, other = (fit_mlp("softmax", x, y, 2, by_accuracy(y), x, probe, seed).scores(x) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_mlp_stops_without_gain_and_keeps_its_best_epoch() -> None:
    x, y = xor(100, 0)
    marks = iter([0.2, 0.9, 0.5, 0.4, 0.3, 0.2])
    head = fit_mlp("softmax", x, y, 2, lambda s: (next(marks), 0.0), x, PROBE.model_copy(update={"patience": 3}), 0)
    assert (head.choice.epoch, head.choice.epochs, head.choice.quality) == (2, 5, 0.9)


def test_an_mlp_predicts_numbers_in_their_own_units() -> None:
    x, _ = xor(400, 0)
    values = 1000.0 + 50.0 * x[:, 0].double()
    head = fit_mlp("squared", x, values, 1, by_error(values), x, PROBE, 0)
    assert float((head.scores(x) - values).square().mean().sqrt()) < 15


def test_pair_features_do_not_depend_on_the_order() -> None:
    a, b = torch.randn(5, 4), torch.randn(5, 4)
    assert torch.equal(pair_features(a, b), pair_features(b, a))
    assert pair_features(a, b).shape == (5, 12)


def test_residues_are_drawn_as_whole_proteins_up_to_the_limit() -> None:
    records = [Record(f"r{i}", ("A" * 10,), np.array([0, -1] * 5)) for i in range(40)]
    records.append(Record("none", ("A" * 10,), np.full(10, -1)))
    chosen = within_residues(records, 52, seed=0)
    assert len(chosen) == 11
    assert sum(len(labelled_residues(record)) for record in chosen) == 55
    assert chosen == within_residues(records, 52, seed=0) != within_residues(records, 52, seed=1)
    assert [r.key for r in within_residues(records, 10**6, 0)] == [r.key for r in records if r.key != "none"]


def test_labels_of_residues_leave_out_those_without_one() -> None:
    records = [Record("a", ("ACD",), np.array([1.5, np.nan, 2.5])), Record("b", ("A",), np.array([np.nan]))]
    assert labels_of(records, "residue_value", 0).tolist() == [1.5, 2.5]
    sets = [Record("a", ("A",), np.array([0, 2])), Record("b", ("A",), np.array([], dtype=np.int64))]
    assert labels_of(sets, "labels", 3).tolist() == [[True, False, True], [False, False, False]]
