"""Non-linear heads by AdamW, the epoch chosen on validation."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from configs.benchmarks import ProbeConfig
from eval.heads.linear import Judge
from eval.heads.losses import Loss, mean_loss
from eval.heads.scaling import CHUNK, Standard, standard_of

GRADIENT_CLIP = 1.0
"""Norm of the gradients of a head and of a tuned trunk."""


class Choice(NamedTuple):
    """The epoch that was kept, from 1, of how many, and the metric on validation there."""

    epoch: int
    epochs: int
    quality: float


@dataclass(frozen=True)
class MlpHead:
    """Standardised features through the layers."""

    standard: Standard
    layers: nn.Module
    centre: float
    spread: float
    """Numbers are predicted in units of their standard deviation about their mean; 0 and 1 for logits."""
    number: bool
    choice: Choice

    @torch.no_grad()
    def scores(self, features: Tensor) -> Tensor:
        """Logits [R, K], or numbers [R], on the CPU."""
        device = self.standard.mean.device
        parts = [self.layers(self.standard(part.to(device))).float().cpu() for part in features.split(CHUNK)]
        scores = torch.cat(parts)
        return scores[:, 0] * self.spread + self.centre if self.number else scores


def make_layers(width: int, num_outputs: int, probe: ProbeConfig) -> nn.Module:
    """Linear-ReLU-Dropout, `layers - 1` times, and Linear; a linear head is that last one alone."""
    parts: list[nn.Module] = []
    for _ in range(probe.layers - 1 if probe.head == "mlp" else 0):
        parts += [nn.Linear(width, probe.hidden), nn.ReLU(), nn.Dropout(probe.dropout)]
        width = probe.hidden
    return nn.Sequential(*parts, nn.Linear(width, num_outputs))


def spread_of(values: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of training numbers; 1 where they are all equal."""
    centre, spread = float(values.double().mean()), float(values.double().std(correction=0))
    return centre, spread if spread > 0 else 1.0


def fit_mlp(
    loss: Loss,
    features: Tensor,
    labels: Tensor,
    num_outputs: int,
    judge: Judge,
    validation: Tensor,
    probe: ProbeConfig,
    seed: int,
) -> MlpHead:
    """The head of the best epoch by `judge`; without validation rows, of the last.

    Equal seeds give equal heads on one device; the caller's random state is untouched. For the arguments see
    `fit_linear`.
    """
    number = loss == "squared"
    standard = standard_of(features)
    centre, spread = spread_of(labels) if number else (0.0, 1.0)
    targets = ((labels.double() - centre) / spread).float() if number else labels
    targets = targets.to(features.device)
    devices = [features.device] if features.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        layers = make_layers(features.shape[1], num_outputs, probe).to(features.device)
        optimizer = torch.optim.AdamW(
            layers.parameters(), lr=probe.learning_rate, weight_decay=probe.weight_decay, fused=True
        )
        kept: dict[str, Tensor] = {}
        best, best_epoch, epoch = (float("-inf"), float("-inf")), 0, 0
        for epoch in range(1, probe.epochs + 1):
            layers.train()
            for batch in torch.randperm(len(features)).to(features.device).split(probe.batch_size):
                scores = layers(standard(features[batch]))
                optimizer.zero_grad()
                mean_loss(loss, scores[:, 0] if number else scores, targets[batch]).backward()
                nn.utils.clip_grad_norm_(layers.parameters(), GRADIENT_CLIP)
                optimizer.step()
            head = MlpHead(standard, layers.eval(), centre, spread, number, Choice(epoch, epoch, best[0]))
            quality = judge(head.scores(validation)) if len(validation) else (float("nan"), float(epoch))
            if not kept or quality > best or not len(validation):
                best, best_epoch = quality, epoch
                kept = {name: value.clone() for name, value in layers.state_dict().items()}
            elif epoch - best_epoch >= probe.patience:
                break
    layers.load_state_dict(kept)
    return MlpHead(standard, layers.eval(), centre, spread, number, Choice(best_epoch, epoch, best[0]))
