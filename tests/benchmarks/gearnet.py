"""A GearNet trained by Multiview Contrast on the real chains, and how often it knows two views of unseen proteins.

`python -m tests.benchmarks.gearnet [FOLDER] [key=value ...]` builds the shards of all real chains in FOLDER (default: a
temporary one), trains `configs/pretrain/teacher_small.yaml` on the train split, and evaluates on the proteins of the
other splits, whose sequence clusters it has not seen. What FOLDER holds already is kept: shards, and a run, which is
continued or, where it is finished, only evaluated. A key=value overrides the configuration.

`top1_among_256`: first views of 256 random unseen proteins, each of another held-out cluster, whose own second view is
the most similar of all 256; views as published (50 residues or a 15 A ball, every other one without 15 % of its edges),
from fixed seeds, mean of `DRAWS` draws; the interval is a bootstrap over sequence clusters. A protein is hard to tell
from its homologs by a view, so `top1_homologs_among_them`, where the 256 are drawn from all unseen proteins, stands
beside it. `..._3mers`: by the cosine of rarity-weighted 3-mer counts, which learns nothing; `top1_untrained`: by the
same network before training. Speeds are CPU seconds of one thread.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from configs.build import BuildConfig
from configs.loading import load_config
from configs.teacher import GearNetConfig, MultiviewConfig
from configs.train import TrainConfig
from data_pipeline.build import run_build
from data_pipeline.reader import ShardReader
from data_pipeline.schema import Sample
from pretrain.canonical import load_weights
from pretrain.checkpoints import open_checkpoint
from pretrain.launch import train
from pretrain.run_folder import run_path
from pretrain.teachers.gearnet import GearNet, GearNetTeacher
from pretrain.teachers.multiview import MultiviewModel, Views, draw_views, make_views
from pretrain.teachers.residue_graph import NUM_RESIDUE_TYPES, ProteinGraph
from tests.benchmarks._files import pdb_files
from tests.benchmarks._timing import report

CONFIGS = Path(__file__).parents[2] / "configs"
CANDIDATES, DRAWS = 256, 10
RESAMPLES = 1000
VIEW_BATCH = 128
SPEED_RESIDUES = 2000
Embedder = Callable[[list[Sample], list[np.random.Generator]], tuple[np.ndarray, np.ndarray]]
"""Unit vectors of the first and of the second views."""


@dataclass(frozen=True)
class Retrieval:
    """Top-1 over all draws."""

    accuracy: float
    low: float
    high: float
    """95 % interval over clusters."""


def build_shards(folder: Path) -> Path:
    """Shards of all real chains as files.yaml makes them; train, validation and test share no sequence cluster."""
    structures, shards = folder / "structures", folder / "shards"
    if (shards / "manifest.json").exists():
        return shards
    structures.mkdir(parents=True, exist_ok=True)
    for name, data in pdb_files():
        (structures / name).write_bytes(data)
    run_build(load_config(BuildConfig, CONFIGS / "data/files.yaml", [f"source.path={structures}", f"output={shards}"]))
    return shards


def unseen_proteins(reader: ShardReader) -> list[Sample]:
    """All proteins outside the train split."""
    return [reader.sample(split, n) for split in ("validation", "test") for n in range(len(reader.index(split)))]


def retrieval(embed: Embedder, proteins: list[Sample], one_per_cluster: bool) -> Retrieval:
    """How often a first view's most similar second view, of 256 unseen proteins, is its own."""
    hits: dict[int, list[float]] = {}
    for draw in range(DRAWS):
        chosen = draw_proteins(proteins, np.random.default_rng([draw]), one_per_cluster)
        first, second = embed([proteins[n] for n in chosen], [np.random.default_rng([draw, n]) for n in chosen])
        found = (first @ second.T).argmax(axis=1) == np.arange(len(chosen))
        for number, hit in zip(chosen, found.tolist(), strict=True):
            hits.setdefault(proteins[number].cluster, []).append(hit)
    sums = np.array([[sum(each), len(each)] for each in hits.values()], dtype=float)
    picks = np.random.default_rng(0).integers(len(sums), size=(RESAMPLES, len(sums)))
    resampled = sums[picks].sum(axis=1)
    low, high = np.quantile(resampled[:, 0] / resampled[:, 1], [0.025, 0.975])
    return Retrieval(float(sums[:, 0].sum() / sums[:, 1].sum()), float(low), float(high))


def draw_proteins(proteins: list[Sample], rng: np.random.Generator, one_per_cluster: bool) -> list[int]:
    """256 random numbers of proteins."""
    order = rng.permutation(len(proteins)).tolist()
    if one_per_cluster:
        order = list({proteins[number].cluster: number for number in reversed(order)}.values())
        order = rng.permutation(order).tolist()
    assert len(order) >= CANDIDATES, f"{len(order)} unseen proteins or clusters; {CANDIDATES} are needed"
    return order[:CANDIDATES]


def by_network(model: MultiviewModel, config: TrainConfig) -> Embedder:
    """The views' vectors of a network with running statistics."""
    model.eval()

    def embed(proteins: list[Sample], generators: list[np.random.Generator]) -> tuple[np.ndarray, np.ndarray]:
        parts = []
        for views in view_batches(proteins, generators, config):
            with torch.inference_mode():
                parts.append(model(views).float().numpy())
        halves = [np.split(part, 2) for part in parts]
        return np.concatenate([half[0] for half in halves]), np.concatenate([half[1] for half in halves])

    return embed


def view_batches(proteins: list[Sample], generators: list[np.random.Generator], config: TrainConfig) -> Iterator[Views]:
    teacher = config.teacher
    for at in range(0, len(proteins), VIEW_BATCH):
        part = slice(at, at + VIEW_BATCH)
        yield make_views(proteins[part], teacher.multiview, generators[part], teacher.kind == "gearnet_edge")


def by_3mers(config: TrainConfig) -> Embedder:
    """Counts of three residues in a row, each divided by the root of the number of views that have it."""

    def counts(view: ProteinGraph) -> np.ndarray:
        types, residues = view.types, view.residues
        in_a_row = residues[2:] - residues[:-2] == 2
        codes = (types[:-2] * NUM_RESIDUE_TYPES + types[1:-1]) * NUM_RESIDUE_TYPES + types[2:]
        return np.bincount(codes[in_a_row], minlength=NUM_RESIDUE_TYPES**3).astype(np.float32)

    def embed(proteins: list[Sample], generators: list[np.random.Generator]) -> tuple[np.ndarray, np.ndarray]:
        drawn = [
            draw_views(sample, config.teacher.multiview, rng) for sample, rng in zip(proteins, generators, strict=True)
        ]
        first, second = (np.stack([counts(pair[side]) for pair in drawn]) for side in (0, 1))
        rarity = 1 / np.sqrt(1 + (first > 0).sum(axis=0))
        return unit(first * rarity), unit(second * rarity)

    return embed


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def embedding_speed(proteins: list[Sample], edge_messages: bool) -> float:
    """Residues per CPU second of a GearNet of the published size."""
    teacher = GearNetTeacher(GearNet(GearNetConfig(), edge_messages), "")
    residues = np.cumsum([len(protein) for protein in proteins])
    chosen = proteins[: int(np.searchsorted(residues, SPEED_RESIDUES)) + 1]
    teacher.embed(chosen[0])
    begun = time.process_time()
    teacher.embed_many(chosen)
    return sum(map(len, chosen)) / (time.process_time() - begun)


def drawing_freely(config: TrainConfig) -> TrainConfig:
    """The same with the published views of Multiview Contrast, whatever training drew."""
    views = MultiviewConfig(overlapping=False)
    return config.model_copy(update={"teacher": config.teacher.model_copy(update={"multiview": views})})


def run(folder: Path, overrides: list[str]) -> None:
    torch.set_num_threads(1)
    shards = build_shards(folder)
    given = [f"data.shards={shards}", f"runs={folder / 'runs'}", *overrides]
    config = load_config(TrainConfig, CONFIGS / "pretrain/teacher_small.yaml", given)
    begun = time.process_time()
    if train(config):
        raise SystemExit("the training was stopped")
    train_cpu_seconds = time.process_time() - begun
    checkpoint = open_checkpoint(run_path(config))
    config = drawing_freely(config)
    untrained, model = MultiviewModel(config.teacher), MultiviewModel(config.teacher)
    load_weights(model, checkpoint)
    with ShardReader(shards) as reader:
        proteins = unseen_proteins(reader)
    among, apart = (retrieval(by_network(model, config), proteins, each) for each in (False, True))
    figures = {
        "top1_among_256": apart.accuracy,
        "top1_interval": [round(apart.low, 4), round(apart.high, 4)],
        "top1_homologs_among_them": among.accuracy,
        "top1_homologs_among_them_interval": [round(among.low, 4), round(among.high, 4)],
        "top1_3mers": retrieval(by_3mers(config), proteins, True).accuracy,
        "top1_homologs_among_them_3mers": retrieval(by_3mers(config), proteins, False).accuracy,
        "top1_untrained": retrieval(by_network(untrained, config), proteins, True).accuracy,
        "unseen_proteins": len(proteins),
        "unseen_clusters": len({protein.cluster for protein in proteins}),
        "parameters": sum(each.numel() for each in model.gearnet.parameters()),
        "steps": checkpoint.state["step"],
        "seconds": checkpoint.state["seconds"],
        "residues_trained": checkpoint.state["tokens"],
        "train_cpu_seconds_of_this_call": train_cpu_seconds,
        "edge_parameters": sum(each.numel() for each in GearNet(GearNetConfig(), True).parameters()),
        "gearnet_residues_per_cpu_second": embedding_speed(proteins, False),
        "gearnet_edge_residues_per_cpu_second": embedding_speed(proteins, True),
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    report("gearnet", figures)


def main() -> None:
    folder, overrides = None, sys.argv[1:]
    if overrides and "=" not in overrides[0]:
        folder, overrides = Path(overrides[0]), overrides[1:]
    if folder is not None:
        run(folder, overrides)
        return
    with tempfile.TemporaryDirectory() as temporary:
        run(Path(temporary), overrides)


if __name__ == "__main__":
    main()
