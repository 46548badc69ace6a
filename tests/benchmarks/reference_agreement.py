"""How well selection by the derived column of the reference model agrees with selection by the model itself.

A small reference model and a larger model are trained for a while on real chains with 3Di states and embeddings of the
real MPNN teacher. Then, on pools with masks that neither has seen, the residues kept by excess loss (ratio 0.8, mode
`large`) are found twice: with the online reference, and with its derived column of K fixed masks. Reported per loss:
`kept_*`, the fraction of the exactly kept residues that the approximation keeps too (0.8 by chance), and `dropped_*`,
the same of the dropped ones (0.2 by chance); `loss_correlation_*` is Pearson's, of the reference's losses.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from configs.loading import dump_config
from configs.train import TrainConfig
from data_pipeline.reader import ShardReader
from pretrain.batch import Batch
from pretrain.checkpoints import Share, save
from pretrain.collate import Item, collate
from pretrain.derive import derive_reference, derive_teacher
from pretrain.derive_forms import one_thread
from pretrain.losses.alignment import alignment_terms
from pretrain.losses.reference import ReferenceLosses, online_reference
from pretrain.losses.selection import keep_mask
from pretrain.model.alignment import AlignmentModel, Outputs
from pretrain.model.parameter_groups import param_groups
from pretrain.model.shape import trunk_shape
from pretrain.run_folder import run_path
from pretrain.sampler import Plan, plan_epoch
from pretrain.stages.embeddings import open_embeddings
from pretrain.stages.reference import Reference, open_reference
from tests.benchmarks._chains import data_folder
from tests.benchmarks._timing import report
from tests.benchmarks._training import real_config, write_real_shards

NUM_CHAINS = 300
DATA = {"pack_tokens": 1024, "packs_per_pool": 2, "max_residues": 1022}
POOLS = 10
UNSEEN_EPOCH = 1000
MASKS = (1, 4)
SMALL = {"model": "custom", "layers": 2, "width": 96, "heads": 6}
LARGE = {"model": "custom", "layers": 4, "width": 128, "heads": 8}
NAMES = ("structure", "sequence_to_structure", "structure_to_sequence")


def configured(folder: Path, **overrides: Any) -> TrainConfig:
    teacher = {
        "kind": "mpnn",
        "weights": str(data_folder() / "teachers" / "mpnn_encoder_64d.npz"),
        "column": "mpnn",
    }
    tree = {"teacher": teacher, "optimizer": {"trunk_lr": 4e-3, "head_lr": 4e-3}, "trunk": LARGE}
    tree |= {f"data__{name}": value for name, value in DATA.items()}
    return real_config(folder, **{**tree, "derive__num_workers": 1, **overrides})


class Pools:
    """Pools of the shards by epoch and number."""

    def __init__(self, config: TrainConfig, reader: ShardReader) -> None:
        self._config, self._reader = config, reader
        self._embeddings = open_embeddings(config, reader)
        self._residues = np.asarray(reader.index("train").residues, dtype=np.int64)
        self._alphabet = trunk_shape(config.trunk).alphabet

    def plan(self, epoch: int) -> Plan:
        return plan_epoch(self._residues, 0, epoch, self._config.data)

    def batch(self, epoch: int, number: int, reference: Reference | None = None) -> Batch:
        items = []
        for crop in (crop for pack in self.plan(epoch)[number] for crop in pack):
            sample = self._reader.sample("train", crop.sample)
            rows = self._embeddings(crop.sample, sample)[0]
            known = reference.arrays(crop.sample) if reference else None
            items.append(Item(crop, sample, crop.sample, rows, (), known))
        return collate(items, self._alphabet, self._config.data.mask_fraction, 0, epoch)


def trained(config: TrainConfig, pools: Pools, steps: int) -> AlignmentModel:
    """A model after so many steps, without selection."""
    torch.manual_seed(0)
    model = AlignmentModel(trunk_shape(config.trunk), config.losses, (64,))
    optimizer = torch.optim.AdamW(param_groups(model, config.optimizer), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.optimizer.trunk_lr, steps + 1)
    step, epoch = 0, 0
    while step < steps:
        for number in range(min(len(pools.plan(epoch)), steps - step)):
            batch = pools.batch(epoch, number)
            terms = alignment_terms(model(batch), batch, config.losses, config.selection)
            terms.total().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            step += 1
            if step % 50 == 0:
                print(config.name, step, {k: round(v, 3) for k, v in terms.logged().items()}, flush=True)
        epoch += 1
    return model.eval()


def write(config: TrainConfig, model: AlignmentModel) -> None:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    weights = {name: tensor.detach() for name, tensor in tensors.items()}
    save(run_path(config), 1, dump_config(config), {"step": 1}, Share(weights, {}))


def rows_of(losses: ReferenceLosses) -> dict[str, Tensor]:
    return dict(zip(NAMES, (losses.structure, *losses.contrast[0]), strict=True))


def agreement(excess: dict[str, Tensor], exact: dict[str, Tensor], found: dict[str, Tensor]) -> dict[str, float]:
    """Of one pool: overlaps of the kept and of the dropped, and the correlation of the reference's losses."""
    figures = {}
    for name in NAMES:
        ours, theirs = (keep_mask(excess[name] - known[name], 0.8, "large") for known in (found, exact))
        figures[f"kept_{name}"] = float((ours & theirs).sum() / theirs.sum())
        figures[f"dropped_{name}"] = float((~ours & ~theirs).sum() / (~theirs).sum())
        figures[f"loss_correlation_{name}"] = float(torch.corrcoef(torch.stack([found[name], exact[name]]))[0, 1])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200, help="of either model")
    steps = parser.parse_args().steps
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name, one_thread():
        folder = Path(name)
        shards = write_real_shards(folder, NUM_CHAINS)
        reference = configured(folder, stage="reference", name="reference", trunk=SMALL)
        derive_teacher(reference, shards)
        with ShardReader(shards) as reader:
            pools = Pools(reference, reader)
            write(reference, trained(reference, pools, steps))
            model = trained(configured(folder), pools, steps)
        selection = {"mode": "large", "reference": str(run_path(reference))}
        for masks in MASKS:
            config = configured(folder, selection={**selection, "column": f"known{masks}"}, derive__masks=masks)
            derive_reference(config, shards)
            figures |= compared(config, configured(folder, selection=selection), model, f"_{masks}_masks")
    report("reference_agreement", {"steps": steps, **figures})


@torch.no_grad()
def compared(config: TrainConfig, online: TrainConfig, model: AlignmentModel, suffix: str) -> dict[str, float]:
    """Means over pools."""
    found: list[dict[str, float]] = []
    with ShardReader(config.data.shards) as reader:
        pools = Pools(config, reader)
        column, exact = open_reference(config, reader, (64,)), open_reference(online, reader, (64,))
        for number in range(POOLS):
            batch = pools.batch(UNSEEN_EPOCH, number, column)
            outputs: Outputs = model(batch)
            ours = rows_of(online_reference(outputs, batch, config.losses))
            found.append(agreement(ours, rows_of(exact.losses(batch)), rows_of(column.losses(batch))))
    return {f"{name}{suffix}": float(np.mean([each[name] for each in found])) for name in found[0]}


if __name__ == "__main__":
    main()
