"""Contacts from attention maps: the regression of ESM (Rao et al. 2021), and precision of its top pairs."""

import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from configs.evaluate import ContactConfig
from data_pipeline.structure.geometry import cb_or_virtual, contact_map
from eval.data import Example
from eval.features import Features
from eval.intervals import measurement_of
from eval.results import CONTACT_EXAMPLE_FILE, REGRESSION_FILE
from eval.tasks.protocol import Context, FunctionTask, Outcome
from pretrain.model.contacts import ContactRegression

MIN_SEPARATION = 6
RANGES: dict[str, tuple[int, int]] = {"short": (6, 11), "medium": (12, 23), "long": (24, 1 << 30)}
"""Smallest and largest |i - j|, both included."""
DIVISORS = {"P@L": 1, "P@L/2": 2, "P@L/5": 5}
METRICS = tuple(f"{name}_{span}" for span in RANGES for name in DIVISORS)
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


def known_positions(coordinates: np.ndarray) -> np.ndarray:
    """bool [N]: the residue has a CB or the backbone to place one."""
    return np.isfinite(cb_or_virtual(coordinates)).all(axis=1)


def precisions(scores: np.ndarray, contacts: np.ndarray, known: np.ndarray) -> dict[str, float]:
    """Precision of the best-scored pairs by metric; metrics of a range without any contact are left out.

    scores float [n, n], contacts bool [n, n], known bool [n]: only pairs of known residues are candidates. The number
    of top pairs is floor(n / k), at least 1 and at most the number of candidates; ties go to the smaller (i, j).
    """
    n = len(scores)
    rows, columns = np.triu_indices(n, MIN_SEPARATION)
    candidate = known[rows] & known[columns]
    rows, columns = rows[candidate], columns[candidate]
    found: dict[str, float] = {}
    for span, (low, high) in RANGES.items():
        inside = (columns - rows >= low) & (columns - rows <= high)
        truth = contacts[rows[inside], columns[inside]]
        if not truth.any():
            continue
        order = np.argsort(-scores[rows[inside], columns[inside]], kind="stable")
        for name, divisor in DIVISORS.items():
            top = min(max(n // divisor, 1), len(order))
            found[f"{name}_{span}"] = float(truth[order[:top]].mean())
    return found


def fit_regression(
    features: Features, examples: Sequence[Example], config: ContactConfig, seed: int
) -> ContactRegression | None:
    """L1 logistic regression on all pairs with |i - j| >= 6 of up to `fit_chains` chains; None without any contact."""
    order = np.random.default_rng(seed).permutation(len(examples))[: config.fit_chains]
    chosen = [examples[i] for i in np.sort(order)]
    pairs = [_fit_pairs(example) for example in chosen]
    num_pairs = sum(len(rows) for rows, _ in pairs)
    blocks, labels, share = [], [], 1.0
    generator = np.random.default_rng(seed)
    for (example, maps), (rows, columns) in zip(_maps_of(features, chosen), pairs, strict=True):
        share = min(1.0, MAX_FIT_VALUES / max(1, num_pairs * len(maps)))
        kept = generator.random(len(rows)) < share if share < 1.0 else np.ones(len(rows), dtype=bool)
        rows, columns = rows[kept], columns[kept]
        blocks.append(pair_features(maps, torch.from_numpy(rows), torch.from_numpy(columns)).cpu().numpy())
        labels.append(contact_map(example.coordinates, config.cutoff)[rows, columns])
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


def _fit_pairs(example: Example) -> tuple[np.ndarray, np.ndarray]:
    known = known_positions(example.coordinates)
    rows, columns = np.triu_indices(len(example), MIN_SEPARATION)
    kept = known[rows] & known[columns]
    return rows[kept], columns[kept]


def _maps_of(features: Features, examples: Sequence[Example]) -> Iterator[tuple[Example, Tensor]]:
    for example in examples:
        yield example, features.attention_maps(example)


def example_for_display(examples: Sequence[Example]) -> Example:
    """The chain of the held-out split whose length is closest to EXAMPLE_RESIDUES; the same for every checkpoint."""
    return min(examples, key=lambda example: (abs(len(example) - EXAMPLE_RESIDUES), example.key))


def _run(context: Context) -> Outcome:
    config, test = context.config.contact, context.data.test
    if not context.features.has_attention:
        return Outcome(skipped="the model gives no attention maps")
    regression = fit_regression(context.features, context.data.fit, config, context.config.seed)
    if regression is None:
        return Outcome(skipped="the fit chains have no contact with |i - j| >= 6")
    rows: dict[str, list[tuple[str, int, float, float]]] = {name: [] for name in METRICS}
    shown = example_for_display(test)
    artifacts = {REGRESSION_FILE: _regression_arrays(regression)}
    for example, maps in _maps_of(context.features, test):
        logits = contact_logits(maps, regression).float().cpu()
        contacts = contact_map(example.coordinates, config.cutoff)
        known = known_positions(example.coordinates)
        for name, value in precisions(logits.numpy(), contacts, known).items():
            rows[name].append((example.key, example.cluster, value, 1.0))
        if example is shown:
            probability = torch.sigmoid(logits).numpy()
            artifacts[CONTACT_EXAMPLE_FILE] = {"contacts": contacts, "probability": probability, "known": known}
    measurements = tuple(m for name, found in rows.items() if (m := measurement_of(name, found)) is not None)
    if not measurements:
        return Outcome(skipped="no chain of the held-out split has a contact with |i - j| >= 6")
    return Outcome(measurements, artifacts=artifacts, notes={CONTACT_EXAMPLE_FILE: shown.key})


def _regression_arrays(regression: ContactRegression) -> dict[str, np.ndarray]:
    return {"weight": regression.weight.numpy(), "bias": np.array([regression.bias], dtype=np.float32)}


TASK = FunctionTask(
    name="contact",
    version="1",
    frozen="trunk",
    head="L1 logistic regression (liblinear) over all attention maps, symmetrised and average-product corrected, on "
    "pairs with |i - j| >= 6 of a few chains of the fit split",
    method="mean over chains of the precision of the floor(L / k) best-scored pairs (at least 1, at most the number of "
    "pairs there are), L the chain's residues; contact: CB (virtual for glycine or where missing) within the cutoff; "
    "short 6-11, medium 12-23, long >= 24; pairs without a known position are no candidates, chains without a contact "
    "of a range are left out of that range",
    metrics=METRICS,
    work=_run,
)
