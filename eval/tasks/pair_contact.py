"""Contacts by a supervised head on pairs of residue states, as SaESM2 reports them."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from configs.evaluate import ContactConfig
from eval.data import Example
from eval.features import Features
from eval.intervals import measurement_of
from eval.probes import selection_mask
from eval.tasks.contact_task import SETS, Chains, ContactTask
from eval.tasks.contact_truth import METRICS, candidates, definition_of, precisions, truth_of
from eval.tasks.protocol import Context, Outcome, Wants

HIDDEN = 128
NEGATIVES = 4
"""Other pairs drawn for each contact, anew in every epoch."""
CHAINS_PER_STEP = 4
MAX_CONTACTS = 2048
"""Of one chain in one step."""
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.01
BLOCK_VALUES = 1 << 24
"""Hidden values of one block of rows of a map: 64 MB."""
_VALIDATION_SEED = 1_000_003


class PairHead(nn.Module):
    """concat(h_i, h_j) -> Linear(2D, 128) -> ReLU -> Linear(128, 2), averaged over both orders of the pair.

    The first layer is kept as its two halves, one for each residue: a pair costs an addition, and no [N, N, 2D] is
    ever made. Inputs are standardised by the fit chains' mean and deviation.
    """

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        width = len(mean)
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        # One Linear(2D, 128), so that the initial weights are those of the published head.
        first = nn.Linear(2 * width, HIDDEN)
        self.weight, self.bias = first.weight, first.bias
        self.second = nn.Linear(HIDDEN, 2)

    def halves(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """[N, 128] each, of states [N, D] as first and as second residue of a pair; their sum is the hidden layer."""
        x = (states - self.mean) / self.scale
        width = x.shape[1]
        return x @ self.weight[:, :width].T + self.bias, x @ self.weight[:, width:].T

    def pairs(self, states: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Logits [M, 2] of pairs of residues."""
        first, second = self.halves(states)
        there, back = first[rows] + second[columns], first[columns] + second[rows]
        return self.second((there.relu() + back.relu()) / 2)

    @torch.no_grad()
    def map(self, states: Tensor) -> Tensor:
        """[N, N] logit of a contact minus that of none, by blocks of rows; symmetric."""
        first, second = self.halves(states)
        direction = self.second.weight[1] - self.second.weight[0]
        offset = self.second.bias[1] - self.second.bias[0]
        step = max(1, BLOCK_VALUES // (len(states) * HIDDEN))
        there = torch.cat([(rows[:, None] + second[None]).relu_() @ direction for rows in first.split(step)])
        return (there + there.T) / 2 + offset


def fit_pair_head(features: Features, examples: Sequence[Example], config: ContactConfig, seed: int) -> PairHead | None:
    """Fitted on contacts and NEGATIVES times as many other pairs; the epoch is chosen on a tenth of the clusters.

    One chain's states are held at a time, whatever the number of chains; None without any contact.
    """
    truths = [_pairs_of(example, config) for example in examples]
    usable = [i for i, (positive, negative) in enumerate(truths) if len(positive[0]) and len(negative[0])]
    if not usable:
        return None
    chosen = selection_mask(np.array([examples[i].cluster for i in usable]), seed)
    if chosen.all() or not chosen.any():
        # One chain or none to choose the epoch on: the last epoch counts.
        chosen = np.zeros(len(usable), dtype=bool)
    fit, select = [usable[i] for i in np.flatnonzero(~chosen)], [usable[i] for i in np.flatnonzero(chosen)]
    mean, scale = _moments(features, [examples[i].sequence for i in fit])
    generator = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = PairHead(mean, scale)
        optimizer = torch.optim.AdamW(head.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        best_loss, best = float("inf"), None
        for _ in range(config.pair_epochs):
            order = generator.permutation(fit)
            for start in range(0, len(order), CHAINS_PER_STEP):
                optimizer.zero_grad()
                group = order[start : start + CHAINS_PER_STEP]
                for i in group:
                    loss = _loss(head, features, examples[i].sequence, truths[i], generator)
                    (loss / len(group)).backward()
                optimizer.step()
            if select:
                loss = _selection_loss(head, features, [(examples[i].sequence, truths[i]) for i in select])
                if loss < best_loss:
                    best_loss, best = loss, copy.deepcopy(head.state_dict())
    if best is not None:
        head.load_state_dict(best)
    return head.eval()


Pairs = tuple[np.ndarray, np.ndarray]


def _pairs_of(example: Example, config: ContactConfig) -> tuple[Pairs, Pairs]:
    """Rows and columns of contacts, and of the other candidates."""
    contacts, known = truth_of(example, config)
    rows, columns = candidates(known, definition_of(config).min_separation)
    truth = contacts[rows, columns]
    # int16 holds every position and a quarter of the memory.
    short = rows.astype(np.int16), columns.astype(np.int16)
    return (short[0][truth], short[1][truth]), (short[0][~truth], short[1][~truth])


def _loss(
    head: PairHead, features: Features, sequence: str, truth: tuple[Pairs, Pairs], generator: np.random.Generator
) -> Tensor:
    """Cross entropy of drawn contacts and of NEGATIVES times as many other pairs of one chain."""
    (rows, columns), (other_rows, other_columns) = truth
    num = min(len(rows), MAX_CONTACTS)
    positive = generator.choice(len(rows), num, replace=False)
    negative = generator.integers(len(other_rows), size=NEGATIVES * num)
    first = np.concatenate([rows[positive], other_rows[negative]]).astype(np.int64)
    second = np.concatenate([columns[positive], other_columns[negative]]).astype(np.int64)
    labels = torch.zeros(len(first), dtype=torch.int64)
    labels[:num] = 1
    (states,) = features.hidden([sequence])
    return functional.cross_entropy(head.pairs(states, torch.from_numpy(first), torch.from_numpy(second)), labels)


@torch.no_grad()
def _selection_loss(head: PairHead, features: Features, chains: Sequence[tuple[str, tuple[Pairs, Pairs]]]) -> float:
    """Mean loss over chains, of the same pairs in every epoch."""
    generator = np.random.default_rng(_VALIDATION_SEED)
    return float(np.mean([float(_loss(head, features, sequence, truth, generator)) for sequence, truth in chains]))


def _moments(features: Features, sequences: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [D] over all residues, one chain at a time."""
    total = squares = None
    count = 0
    for sequence in sequences:
        states = features.hidden([sequence])[0].double()
        sums = states.sum(dim=0), states.square().sum(dim=0)
        total, squares = sums if total is None else (total + sums[0], squares + sums[1])
        count += len(states)
    mean = total / count
    scale = (squares / count - mean.square()).clamp_min(0).sqrt().clamp_min(1e-6)
    return mean.float(), scale.float()


def drawn_chains(fit: Sequence[Example], config: ContactConfig, seed: int) -> list[Example]:
    """At most `pair_fit_chains` chains, drawn once from `seed`."""
    order = np.random.default_rng(seed).permutation(len(fit))[: config.pair_fit_chains]
    return [fit[i] for i in np.sort(order)]


def _wants(context: Context, fit: Sequence[Example], test: Chains) -> Wants:
    drawn = drawn_chains(fit, context.config.contact, context.config.seed)
    return Wants(residues=tuple(chain.sequence for chain in (*drawn, *test)))


def _work(context: Context, fit: Sequence[Example], test: Chains) -> Outcome:
    config = context.config.contact
    definition = definition_of(config)
    drawn = drawn_chains(fit, config, context.config.seed)
    seeds = context.config.probe_of("contact_supervised").seeds
    heads = [fit_pair_head(context.features, drawn, config, seed) for seed in seeds]
    if any(head is None for head in heads):
        return Outcome(skipped=f"the fit chains have no contact with |i - j| >= {definition.min_separation}")
    rows: dict[tuple[str, int], list[tuple[str, int, float, float]]] = {}
    for chain in test:
        (states,) = context.features.hidden([chain.sequence])
        contacts, known = truth_of(chain, config)
        for seed, head in zip(seeds, heads, strict=True):
            for name, value in precisions(head.map(states).numpy(), contacts, known, definition).items():
                rows.setdefault((name, seed), []).append((chain.key, chain.cluster, value, 1.0))
    ordered = sorted(rows, key=lambda row: (METRICS.index(row[0]), row[1]))
    measurements = tuple(measurement_of(name, rows[name, seed], seed=seed) for name, seed in ordered)
    if not measurements:
        return Outcome(skipped=f"no chain tested has a contact with |i - j| >= {definition.min_separation}")
    return Outcome(measurements)


TASK = ContactTask(
    name="contact_supervised",
    frozen="trunk",
    head=f"Linear(2D, {HIDDEN}), ReLU, Linear({HIDDEN}, 2) on both states of a pair, averaged over the pair's two "
    f"orders; AdamW {LEARNING_RATE:g}, {CHAINS_PER_STEP} chains a step, all contacts (at most {MAX_CONTACTS}) and "
    f"{NEGATIVES} times as many other pairs of each; on standardised states of the fit split; epoch chosen on a tenth "
    "of its clusters",
    work=_work,
    needs=_wants,
)
SET_TASKS = tuple(replace(TASK, name=f"contact_supervised_{name}", dataset=name) for name in SETS)
"""The same head, measured on chains that `benchmarks.sources` names."""
