"""Fine-tuning of a copy of the trunk together with a head: all weights, or low-rank adapters through peft."""

import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from configs.benchmarks import ProbeConfig
from eval.datasets.records import Record, Target
from eval.heads.frozen import Prediction
from eval.heads.inputs import RESIDUE_TARGETS, labelled_residues, labels_of, pair_features
from eval.heads.linear import Judge
from eval.heads.losses import LOSSES, Loss, mean_loss
from eval.heads.mlp import GRADIENT_CLIP, make_layers, spread_of
from eval.heads.scaling import Standard, standard_of
from eval.models.batches import SPECIAL_TOKENS, batches_of
from eval.models.protocol import NotSupported, Tunable

WARMUP = 0.1
"""Share of the steps over which learning rates rise; they fall linearly to 0 afterwards."""
CALIBRATION = 256
"""Training examples whose states, before tuning, give the head's inputs their scale."""


@dataclass(frozen=True)
class Tuning:
    """A trunk and a head in training."""

    trunk: Tunable
    head: nn.Module
    standard: Standard
    target: Target
    centre: float
    spread: float
    batch_tokens: int
    half: bool
    """Forward passes in bfloat16 where it is sound; weights and their updates stay float32."""

    @property
    def device(self) -> torch.device:
        return next(self.trunk.module.parameters()).device

    def inputs(self, records: Sequence[Record]) -> Tensor:
        """float32 [R, F]: what the head sees of records that share a forward pass, with gradient."""
        sequences = list(dict.fromkeys(sequence for record in records for sequence in record.sequences))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            states = dict(zip(sequences, self.trunk.states(sequences), strict=True))
        if self.target in RESIDUE_TARGETS:
            at = [torch.from_numpy(labelled_residues(record)).to(self.device) for record in records]
            return torch.cat([states[r.sequences[0]].float()[i] for r, i in zip(records, at, strict=True)])
        sides = [
            torch.stack([states[record.sequences[side]].float().mean(dim=0) for record in records])
            for side in range(2 if self.target == "pair_class" else 1)
        ]
        return pair_features(*sides) if len(sides) == 2 else sides[0]

    def outputs(self, records: Sequence[Record]) -> Tensor:
        """float32 [R, K] logits, or [R] numbers in units of their spread."""
        scores = self.head(self.standard(self.inputs(records)))
        return scores[:, 0] if LOSSES[self.target] == "squared" else scores

    def batches(self, records: Sequence[Record]) -> Iterator[list[int]]:
        """Numbers of records of similar length that fit one forward pass."""
        lengths = [sum(len(s) + SPECIAL_TOKENS for s in record.sequences) for record in records]
        return batches_of(lengths, self.batch_tokens, padded=True)

    @torch.no_grad()
    def scores(self, records: Sequence[Record]) -> Tensor:
        """Logits [R, K], or numbers [R] in their own units, in the records' order, on the CPU."""
        self.train(False)
        found: list[Tensor] = [torch.empty(0)] * len(records)
        for batch in self.batches(records):
            part = self.outputs([records[i] for i in batch]).float().cpu()
            for i, rows in zip(batch, part.split([rows_in(records[i], self.target) for i in batch]), strict=True):
                found[i] = rows
        return torch.cat(found) * self.spread + self.centre

    def train(self, on: bool = True) -> None:
        """Dropout on or off."""
        self.trunk.module.train(on)
        self.head.train(on)

    def tuned(self) -> dict[str, nn.Parameter]:
        """What changes, by name."""
        named = {f"trunk.{name}": p for name, p in self.trunk.module.named_parameters()}
        named |= {f"head.{name}": p for name, p in self.head.named_parameters()}
        return {name: parameter for name, parameter in named.items() if parameter.requires_grad}


def tuned_predictions(
    make_trunk: Callable[[], Tunable],
    splits: Mapping[str, Sequence[Record]],
    target: Target,
    num_classes: int,
    probe: ProbeConfig,
    judge: Judge,
    batch_tokens: int,
    half: bool = False,
) -> Iterator[Prediction]:
    """For each seed: tune a fresh copy on `train`, keep the epoch that `judge` likes best, score `test`.

    The caller's model is not touched and its random state neither; equal seeds give equal results on one device.

    Args:
        make_trunk: gives a copy that may be changed, on the device to compute on.
        batch_tokens: tokens of one forward pass; an update sums the gradients of the passes of `probe.batch_size`
            examples.

    Raises:
        NotSupported: the model cannot be tuned.
    """
    for seed in probe.seeds:
        trunk = make_trunk()
        device = next(trunk.module.parameters()).device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            tuning = prepared(trunk, splits["train"], target, num_classes, probe, batch_tokens, half)
            epoch, last, quality = _tune(tuning, splits["train"], splits["validation"], probe, judge, seed)
            scores = tuning.scores(splits["test"])
            validation = tuning.scores(splits["validation"]) if splits["validation"] else scores[:0]
        yield Prediction(seed, scores, f"epoch {epoch} of {last}", quality, validation)
        del trunk, tuning
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def prepared(
    trunk: Tunable,
    train: Sequence[Record],
    target: Target,
    num_classes: int,
    probe: ProbeConfig,
    batch_tokens: int,
    half: bool = False,
) -> Tuning:
    """The trunk with adapters where `probe` asks for them, and a head of random weights on inputs of unit scale."""
    device = next(trunk.module.parameters()).device
    if probe.protocol == "lora":
        _add_adapters(trunk, probe)
    else:
        trunk.module.requires_grad_(True)
    width = trunk.width * (3 if target == "pair_class" else 1)
    head = make_layers(width, num_classes if num_classes else 1, probe).to(device)
    labels = labels_of(train, target, num_classes)
    centre, spread = spread_of(labels) if LOSSES[target] == "squared" else (0.0, 1.0)
    unscaled = Standard(torch.zeros(width, device=device), torch.ones(width, device=device))
    tuning = Tuning(trunk, head, unscaled, target, centre, spread, batch_tokens, half)
    chosen = torch.randperm(len(train))[:CALIBRATION].tolist()
    sample = [train[i] for i in chosen]
    tuning.train(False)
    with torch.no_grad():
        rows = torch.cat([tuning.inputs([sample[i] for i in batch]).float() for batch in tuning.batches(sample)])
    return Tuning(trunk, head, standard_of(rows), target, centre, spread, batch_tokens, half)


def rows_in(record: Record, target: Target) -> int:
    """Labelled residues of a record of such a target, else 1."""
    return len(labelled_residues(record)) if target in RESIDUE_TARGETS else 1


def rate_at(step: int, steps: int) -> float:
    """Share of the learning rate at update `step` of `steps`, from 0."""
    warmup = max(1, math.ceil(WARMUP * steps))
    return min((step + 1) / warmup, (steps - step) / max(1, steps - warmup + 1))


def _add_adapters(trunk: Tunable, probe: ProbeConfig) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    if not trunk.linear_names:
        raise NotSupported("no linear layers are named for LoRA; use probe.protocol=full")
    names = list(trunk.linear_names)
    # Alpha twice the rank: the update's scale does not depend on the rank chosen.
    adapters = LoraConfig(r=probe.lora_rank, lora_alpha=2 * probe.lora_rank, target_modules=names, lora_dropout=0.0)
    inject_adapter_in_model(adapters, trunk.module)


def _tune(
    tuning: Tuning,
    train: Sequence[Record],
    validation: Sequence[Record],
    probe: ProbeConfig,
    judge: Judge,
    seed: int,
) -> tuple[int, int, float]:
    """Leaves the best epoch's weights; returns its number, the last one's and its metric on validation."""
    parameters = tuning.tuned()
    ours = [p for name, p in parameters.items() if name.startswith("head.")]
    theirs = [p for name, p in parameters.items() if name.startswith("trunk.")]
    optimizer = torch.optim.AdamW(
        [{"params": ours, "lr": probe.learning_rate}, {"params": theirs, "lr": probe.trunk_learning_rate}],
        weight_decay=probe.weight_decay,
        fused=True,
    )
    steps = probe.epochs * math.ceil(len(train) / probe.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, steps))
    order = np.random.default_rng(seed)
    kept: dict[str, Tensor] = {}
    best, best_epoch, epoch = (-math.inf, -math.inf), 0, 0
    for epoch in range(1, probe.epochs + 1):
        tuning.train()
        shuffled = [train[i] for i in order.permutation(len(train)).tolist()]
        for start in range(0, len(shuffled), probe.batch_size):
            _accumulate(tuning, shuffled[start : start + probe.batch_size])
            nn.utils.clip_grad_norm_(parameters.values(), GRADIENT_CLIP)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        quality = judge(tuning.scores(validation)) if validation else (math.nan, 0.0)
        if not kept or quality > best or not validation:
            best, best_epoch = quality, epoch
            kept = {name: parameter.detach().cpu().clone() for name, parameter in parameters.items()}
        elif epoch - best_epoch >= probe.patience:
            break
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(kept[name])
    return best_epoch, epoch, best[0]


def _accumulate(tuning: Tuning, records: Sequence[Record]) -> None:
    """Gradients of the mean loss over all rows of the records."""
    loss: Loss = LOSSES[tuning.target]
    total = sum(rows_in(record, tuning.target) for record in records)
    for batch in tuning.batches(records):
        part = [records[i] for i in batch]
        labels = labels_of(part, tuning.target, _width_of(tuning)).to(tuning.device)
        if loss == "squared":
            labels = ((labels - tuning.centre) / tuning.spread).float()
        (mean_loss(loss, tuning.outputs(part), labels) * (len(labels) / total)).backward()


def _width_of(tuning: Tuning) -> int:
    return tuning.head[-1].out_features
