"""What structure alignment adds to a training step of the MLM alone, on the same packs of real chains.

A 35M ESM-2 trunk (random weights) takes whole steps, from reading the shards to the update of the weights, in one
thread and float32:

* `mlm`: the masked language model alone;
* `dual`: three losses, a precomputed teacher of 64 features, residue loss selection with its report, and the frozen
  reference model itself (8M, a quarter of the trunk's size);
* `derived`: the same with the reference's derived column instead of the model.

`dual_task_over_mlm` and `precomputed_over_mlm` are ratios of CPU time for a pool of 4,096 residues; the same with
`_16384` for one of 16,384; wall times follow.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from configs.loading import dump_config
from configs.train import TrainConfig
from data_pipeline.derived import DerivedWriter
from data_pipeline.reader import ShardReader
from pretrain.batch import Batch
from pretrain.checkpoints import Share, save
from pretrain.collate import Item, collate
from pretrain.derive import derive_reference
from pretrain.derive_forms import one_thread
from pretrain.losses.alignment import alignment_terms
from pretrain.losses.selection import selection_ratio
from pretrain.model.alignment import AlignmentModel
from pretrain.model.parameter_groups import param_groups
from pretrain.model.shape import trunk_shape
from pretrain.run_folder import run_path
from pretrain.sampler import plan_epoch
from pretrain.stages.embeddings import open_embeddings
from pretrain.stages.reference import Reference, open_reference
from tests.benchmarks._timing import Timing, interleaved, report
from tests.benchmarks._training import real_config, write_real_shards

TEACHER_WIDTH = 64
TEACHER = {"teacher__column": "narrow"}
NUM_CHAINS = 120
PACK_TOKENS = 2128
"""Of which about 2,048 are residues: packs are full to 98 %, and chains have two special tokens."""


def write_task(folder: Path) -> None:
    """Shards, a teacher column of random rows (values change no time), a reference of random weights, its column."""
    shards = write_real_shards(folder, NUM_CHAINS)
    random = np.random.default_rng(0)
    with ShardReader(shards) as reader, DerivedWriter(reader, "narrow", {"width": TEACHER_WIDTH}) as writer:
        for i, length in enumerate(reader.index("train").residues.tolist()):
            rows = random.standard_normal((length, TEACHER_WIDTH), dtype=np.float32)
            writer.write("train", i, {"embedding": rows.astype(np.float16)})
    reference = real_config(folder, stage="reference", name="reference", trunk__model="esm2_t6_8M_UR50D", **TEACHER)
    model = AlignmentModel(trunk_shape(reference.trunk), reference.losses, (TEACHER_WIDTH,))
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    weights = {name: tensor.detach() for name, tensor in tensors.items()}
    save(run_path(reference), 1, dump_config(reference), {"step": 1}, Share(weights, {}))
    derive_reference(selecting(folder, 2, "derived", derive__masks=1, derive__num_workers=1), shards)


def selecting(folder: Path, packs: int, column: str | None, **overrides: Any) -> TrainConfig:
    selection = {"mode": "large", "reference": str(folder / "runs" / "reference"), "column": column}
    return real_config(
        folder, selection=selection, data__packs_per_pool=packs, data__pack_tokens=PACK_TOKENS, **TEACHER, **overrides
    )


class Trainer:
    """Steps of one 35M trunk: every contestant trains the same weights, so that they fit into memory once."""

    def __init__(self, folder: Path) -> None:
        config = selecting(folder, 2, None)
        self._reader = ShardReader(folder / "shards")
        torch.manual_seed(0)
        self.aligned = AlignmentModel(trunk_shape(config.trunk), config.losses, (TEACHER_WIDTH,))
        alone = config.losses.model_copy(update={"structure": 0.0, "contrast": 0.0})
        self.alone = AlignmentModel(trunk_shape(config.trunk), alone)
        self.alone.trunk = self.aligned.trunk
        self._optimizer = torch.optim.AdamW(param_groups(self.aligned, config.optimizer), fused=True)

    def step(self, config: TrainConfig, model: AlignmentModel, reference: Reference | None) -> Callable[[], float]:
        """One whole step on the first pool; gives its loss."""
        teacher = open_embeddings(config, self._reader)
        residues = np.asarray(self._reader.index("train").residues, dtype=np.int64)
        crops = [crop for pack in plan_epoch(residues, 0, 0, config.data)[0] for crop in pack]

        def batch() -> Batch:
            items = []
            for crop in crops:
                sample = self._reader.sample("train", crop.sample)
                rows = teacher(crop.sample, sample)[0] if teacher else None
                known = reference.arrays(crop.sample) if reference else None
                items.append(Item(crop, sample, crop.sample, rows, (), known))
            alphabet = model.trunk.shape.alphabet
            return collate(items, alphabet, config.data.mask_fraction, 0, 0, describe=reference is not None)

        def step() -> float:
            pool = batch()
            outputs = model(pool)
            known = reference.losses(pool) if reference else None
            ratio = selection_ratio(1, config.selection)
            terms = alignment_terms(outputs, pool, model.losses, config.selection, known, ratio=ratio)
            terms.total().backward()
            nn.utils.clip_grad_norm_(self.aligned.parameters(), config.optimizer.clip)
            self._optimizer.step()
            self._optimizer.zero_grad()
            return terms.logged()["loss"]

        return step


def measure(folder: Path, packs: int, rounds: int) -> dict[str, Timing]:
    trainer = Trainer(folder)
    online, derived = selecting(folder, packs, None), selecting(folder, packs, "derived")
    alone = real_config(folder, losses__structure=0.0, losses__contrast=0.0, data=online.data.model_dump(mode="json"))
    with ShardReader(folder / "shards") as reader:
        contestants = {
            "mlm": trainer.step(alone, trainer.alone, None),
            "dual": trainer.step(online, trainer.aligned, open_reference(online, reader, (TEACHER_WIDTH,))),
            "derived": trainer.step(derived, trainer.aligned, open_reference(derived, reader, (TEACHER_WIDTH,))),
        }
        return interleaved(contestants, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="for 4,096 residues")
    parser.add_argument("--large-rounds", type=int, default=1, help="for 16,384 residues; 0 leaves them out")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name, one_thread():
        write_task(Path(name))
        for packs, rounds, suffix in ((2, arguments.rounds, ""), (8, arguments.large_rounds, "_16384")):
            if not rounds:
                continue
            timings = measure(Path(name), packs, rounds)
            mlm, dual, derived = (timings[key] for key in ("mlm", "dual", "derived"))
            figures |= {
                f"dual_task_over_mlm{suffix}": dual.cpu_seconds / mlm.cpu_seconds,
                f"precomputed_over_mlm{suffix}": derived.cpu_seconds / mlm.cpu_seconds,
                f"dual_task_over_mlm_wall{suffix}": dual.wall_seconds / mlm.wall_seconds,
                f"precomputed_over_mlm_wall{suffix}": derived.wall_seconds / mlm.wall_seconds,
                f"mlm_cpu_seconds{suffix}": mlm.cpu_seconds,
            }
            print(figures, flush=True)
    report("align_overhead", figures)


if __name__ == "__main__":
    main()
