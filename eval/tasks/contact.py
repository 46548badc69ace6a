"""Contacts from attention maps: the regression of ESM (Rao et al. 2021), and precision of its top pairs."""

import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from configs.evaluate import ContactConfig
from eval.data import Example
from eval.features import Features
from eval.intervals import measurement_of
from eval.results import CONTACT_EXAMPLE_FILE, REGRESSION_FILE
from eval.tasks.contact_task import SETS, Chains, ContactTask
from eval.tasks.contact_truth import FIXED, METRICS, candidates, definition_of, precisions, truth_of
from eval.tasks.protocol import Context, Outcome
from pretrain.model.contacts import ContactRegression

MAX_FIT_VALUES = 40_000_000
"""Pairs x attention maps given to the regression; beyond it pairs are drawn at random and weighted up."""
EXAMPLE_RESIDUES = 150
_HEADS_AT_ONCE = 64


def pair_features(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Symmetrised, average-product-corrected attention at residue pairs: float32 [M, H].

    maps [H, n + 2, n + 2] with both special tokens; rows, columns int64 [M] are residue numbers.
    """
    parts = []
    for part in maps.split(_HEADS_AT_ONCE):
        inner = part[:, 1:-1, 1:-1]
        sums = inner.sum(dim=2) + inner.sum(dim=1)
        total = sums.sum(dim=1, keepdim=True)
        pairs = inner[:, rows, columns] + inner[:, columns, rows]
        parts.append((pairs - sums[:, rows] * sums[:, columns] / total).T)
    return torch.cat(parts, dim=1)


def contact_logits(maps: Tensor, regression: ContactRegression) -> Tensor:
    """Logits [n, n] of all residue pairs, without ever holding a corrected copy of the maps.

    sum_h w_h (S_h - r_h r_h^T / t_h), with S = A + A^T, row sums r and total t, is one weighted sum and one product.
    """
    n = maps.shape[1] - 2
    logits = torch.full((n, n), regression.bias, dtype=maps.dtype, device=maps.device)
    weights = regression.weight.to(maps)
    for part, weight in zip(maps.split(_HEADS_AT_ONCE), weights.split(_HEADS_AT_ONCE), strict=True):
        inner = part[:, 1:-1, 1:-1]
        summed = torch.einsum("h,hij->ij", weight, inner)
        sums = inner.sum(dim=2) + inner.sum(dim=1)
        total = sums.sum(dim=1)
        logits += summed + summed.T - (sums * (weight / total)[:, None]).T @ sums
    return logits


def fit_regression(
    features: Features, examples: Sequence[Example], config: ContactConfig, seed: int
) -> ContactRegression | None:
    """L1 logistic regression on all pairs far enough apart of up to `fit_chains` chains; None without any contact."""
    order = np.random.default_rng(seed).permutation(len(examples))[: config.fit_chains]
    chosen = [examples[i] for i in np.sort(order)]
    truths = [truth_of(example, config) for example in chosen]
    pairs = [candidates(known, definition_of(config).min_separation) for _, known in truths]
    num_pairs = sum(len(rows) for rows, _ in pairs)
    blocks, labels, share = [], [], 1.0
    generator = np.random.default_rng(seed)
    for example, (contacts, _), (rows, columns) in zip(chosen, truths, pairs, strict=True):
        maps = features.model.attention_maps(example.sequence)
        share = min(1.0, MAX_FIT_VALUES / max(1, num_pairs * len(maps)))
        kept = generator.random(len(rows)) < share if share < 1.0 else np.ones(len(rows), dtype=bool)
        rows, columns = rows[kept], columns[kept]
        blocks.append(pair_features(maps, torch.from_numpy(rows), torch.from_numpy(columns)).cpu().numpy())
        labels.append(contacts[rows, columns])
    truth = np.concatenate(labels)
    if not truth.any() or truth.all():
        return None
    model = LogisticRegression(
        solver="liblinear", l1_ratio=1.0, C=config.inverse_regularisation / share, random_state=seed
    )
    with warnings.catch_warnings():
        # An unconverged fit is still the protocol's regression; its precision is what is reported.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(np.concatenate(blocks), truth)
    return ContactRegression(torch.from_numpy(model.coef_[0].astype(np.float32)), float(model.intercept_[0]))


def example_for_display(examples: Chains) -> object:
    """The chain of the held-out split whose length is closest to EXAMPLE_RESIDUES; the same for every checkpoint."""
    return min(examples, key=lambda example: (abs(len(example) - EXAMPLE_RESIDUES), example.key))


def _work(context: Context, fit: Sequence[Example], test: Chains) -> Outcome:
    config = context.config.contact
    definition = definition_of(config)
    regression = fit_regression(context.features, fit, config, context.config.seed)
    if regression is None:
        return Outcome(skipped=f"the fit chains have no contact with |i - j| >= {definition.min_separation}")
    rows: dict[str, list[tuple[str, int, float, float]]] = {name: [] for name in METRICS}
    shown = example_for_display(test)
    artifacts = {REGRESSION_FILE: _regression_arrays(regression)}
    for chain in test:
        logits = contact_logits(context.features.model.attention_maps(chain.sequence), regression).float().cpu()
        contacts, known = truth_of(chain, config)
        for name, value in precisions(logits.numpy(), contacts, known, definition).items():
            rows[name].append((chain.key, chain.cluster, value, 1.0))
        if chain is shown:
            probability = torch.sigmoid(logits).numpy()
            artifacts[CONTACT_EXAMPLE_FILE] = {"contacts": contacts, "probability": probability, "known": known}
    measurements = tuple(m for name, found in rows.items() if (m := measurement_of(name, found)) is not None)
    if not measurements:
        return Outcome(skipped=f"no chain tested has a contact with |i - j| >= {definition.min_separation}")
    return Outcome(measurements, artifacts=artifacts, notes={CONTACT_EXAMPLE_FILE: shown.key})


def _regression_arrays(regression: ContactRegression) -> dict[str, np.ndarray]:
    return {"weight": regression.weight.numpy(), "bias": np.array([regression.bias], dtype=np.float32)}


TASK = ContactTask(
    name="contact",
    frozen="trunk",
    head="L1 logistic regression (liblinear) over all attention maps, symmetrised and average-product corrected, on "
    f"pairs with |i - j| >= {FIXED.min_separation} (preset published: 7) of a few chains of the fit split",
    work=_work,
)
SET_TASKS = tuple(replace(TASK, name=f"contact_{name}", dataset=name) for name in SETS)
"""The same regression, measured on chains that `benchmarks.sources` names."""
