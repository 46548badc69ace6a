"""Heads fitted on frozen features: multinomial logistic regression, and the 3Di head's architecture."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

HEAD_LEARNING_RATE = 1e-3
HEAD_BATCH_RESIDUES = 512
PATIENCE_EPOCHS = 5
SELECTION_FRACTION = 0.1


@dataclass(frozen=True)
class SoftmaxRegression:
    """Linear classifier of standardised features."""

    mean: Tensor
    """float32 [D]."""
    scale: Tensor
    """float32 [D]."""
    weight: Tensor
    """float32 [K, D]."""
    bias: Tensor
    """float32 [K]."""

    def predict(self, features: Tensor) -> Tensor:
        """int64 [N] most probable class of features [N, D]."""
        return (((features - self.mean) / self.scale) @ self.weight.T + self.bias).argmax(dim=-1)


def fit_softmax_regression(features: Tensor, labels: Tensor, num_classes: int, l2: float = 1.0) -> SoftmaxRegression:
    """Minimise sum of cross entropies + l2/2 ||W||^2 over standardised features [N, D] by L-BFGS (bias not penalised).

    This is the objective of scikit-learn's LogisticRegression with C = 1 / l2.
    """
    mean, scale = features.mean(dim=0), features.std(dim=0, correction=0).clamp_min(1e-6)
    x = (features - mean) / scale
    weight = torch.zeros(num_classes, x.shape[1], requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=300, history_size=20, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        penalty = 0.5 * l2 * weight.square().sum() / len(labels)
        loss = functional.cross_entropy(x @ weight.T + bias, labels) + penalty
        loss.backward()
        return loss

    optimizer.step(objective)
    return SoftmaxRegression(mean, scale, weight.detach(), bias.detach())


def fit_token_head(
    features: Tensor, labels: Tensor, clusters: np.ndarray, num_classes: int, epochs: int, seed: int
) -> nn.Module:
    """L2-normalise, Linear(D, D), ReLU, Linear(D, K): the architecture of the 3Di head, fitted by Adam.

    A tenth of the fit residues, by cluster, chooses the epoch that is kept (and stops after PATIENCE_EPOCHS without a
    gain); the test split is never seen. `clusters` int64 [N] is the sequence cluster of each residue.
    """
    chosen = torch.from_numpy(selection_mask(clusters, seed))
    unit = functional.normalize(features, dim=-1)
    # Trunks whose states share a large mean leave Adam on a plateau; it works on standardised inputs, which the first
    # Linear takes in afterwards, so that the head is still of the same architecture.
    mean, scale = unit[~chosen].mean(dim=0), unit[~chosen].std(dim=0, correction=0).clamp_min(1e-6)
    x = (unit - mean) / scale
    fit_index = (~chosen).nonzero().squeeze(1)
    select_x, select_y = x[chosen], labels[chosen]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width = x.shape[1]
        head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, num_classes))
        optimizer = torch.optim.Adam(head.parameters(), lr=HEAD_LEARNING_RATE)
        best_loss, best_epoch, best = float("inf"), 0, _copy(head)
        for epoch in range(epochs):
            for batch in fit_index[torch.randperm(len(fit_index))].split(HEAD_BATCH_RESIDUES):
                optimizer.zero_grad()
                functional.cross_entropy(head(x[batch]), labels[batch]).backward()
                optimizer.step()
            loss = _loss(head, select_x, select_y)
            if loss < best_loss:
                best_loss, best_epoch, best = loss, epoch, _copy(head)
            elif epoch - best_epoch >= PATIENCE_EPOCHS:
                break
    head.load_state_dict(best)
    first = head[0]
    with torch.no_grad():
        first.weight /= scale
        first.bias -= first.weight @ mean
    return nn.Sequential(_Normalise(), head).eval()


def selection_mask(clusters: np.ndarray, seed: int, fraction: float = SELECTION_FRACTION) -> np.ndarray:
    """bool [N]: rows of a random `fraction` of the clusters (at least one cluster on each side where there are two)."""
    names = np.unique(clusters)
    num = min(max(1, round(fraction * len(names))), len(names) - 1)
    if num == 0:
        # A single cluster: selection by residue is the best there is.
        return np.random.default_rng(seed).random(len(clusters)) < fraction
    return np.isin(clusters, np.random.default_rng(seed).permutation(names)[:num])


class _Normalise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.normalize(x, dim=-1)


def _copy(head: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in head.state_dict().items()}


@torch.no_grad()
def _loss(head: nn.Module, x: Tensor, labels: Tensor) -> float:
    if len(labels) == 0:
        return 0.0
    return float(functional.cross_entropy(head(x), labels))
