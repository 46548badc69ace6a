"""Teacher columns with the pretrained MPNN encoder on real chains: speed, bytes and error of each form.

`speedup_vs_plain` is over the same formulas on whole tensors with concatenations, as they are written down;
`gemm_floor_ratio` compares with bare matrix products of the sizes that remain once everything linear is pulled out of
the sums. Both are in CPU time with one thread. `relative_error_*` and `cosine_*` are those that the columns' manifests
state, over all residues. `throughput_2_over_1` is the residues per second of two Ray actors over those of one, which
on a machine that does other work as well says little.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configs.teacher import DeriveConfig, TeacherConfig
from configs.train import TrainConfig
from configs.training_data import DataConfig
from data_pipeline.derived import DerivedReader
from data_pipeline.reader import ShardReader
from data_pipeline.schema import Sample, to_milli_angstrom
from data_pipeline.shards import write_shards
from pretrain.derive import derive_teacher
from pretrain.derive_forms import one_thread
from pretrain.teachers.mpnn import EDGES_AT_ONCE, NUM_NEIGHBOURS, MpnnTeacher, load_mpnn
from tests.benchmarks._chains import data_folder, real_chains
from tests.benchmarks._timing import interleaved, report
from tests.unit.pretrain.test_derive_mpnn import plain_embedding

TIMED_CHAINS = 12
COLUMN_CHAINS = 160
CHAINS_PER_SHARD = 10
FORMS: dict[str, dict[str, Any]] = {
    "float16": {"form": "float16"},
    "int8": {"form": "int8"},
    "pca": {"form": "pca", "pca_width": 32},
    "pca_int8": {"form": "pca", "pca_width": 32, "pca_storage": "int8"},
}


def samples(step: int, limit: int) -> list[Sample]:
    """Real chains from all over the file."""
    chosen = real_chains()[::step][:limit]
    return [make_sample(number, *chain) for number, chain in enumerate(chosen)]


def make_sample(number: int, sequence: str, coordinates: np.ndarray) -> Sample:
    n, valid = len(sequence), np.isfinite(coordinates[:, :3]).all(axis=(1, 2))
    unknown = np.zeros(n, dtype=np.float32)
    stored = to_milli_angstrom(coordinates)
    return Sample(f"c{number:05d}_A", sequence, "D" * n, stored, unknown, valid, valid, {}, {}, number, True)


def whole(sample: Sample) -> Sample:
    """The residues with a backbone alone: what the plain formulas take."""
    keep = sample.valid
    sequence = "".join(letter for letter, kept in zip(sample.sequence, keep, strict=True) if kept)
    parts = {name: getattr(sample, name)[keep] for name in ("coordinates", "bfactor", "valid", "threedi_valid")}
    return replace(sample, sequence=sequence, threedi="D" * len(sequence), **parts)


def bare_products(num_residues: int, width: int = 64, layers: int = 3) -> None:
    """The encoder's matrix products for so many residues, in the blocks that the teacher uses, and nothing else."""
    rows, inputs = EDGES_AT_ONCE["cpu"], 25 * 16
    radial, edges = torch.ones(rows, inputs), torch.ones(rows, width)
    into, square, out = torch.ones(inputs, width), torch.ones(width, width), torch.empty(rows, width)
    # W_e; two maps of each node message (the third is applied to the sums); three of all edge messages but the last.
    maps = 1 + 2 * layers + 3 * (layers - 1)
    for _ in range(num_residues * NUM_NEIGHBOURS // rows):
        torch.mm(radial, into, out=out)
        for _ in range(maps):
            torch.mm(edges, square, out=out)


def speed(teacher: MpnnTeacher) -> dict[str, float]:
    chains = [whole(sample) for sample in samples(371, TIMED_CHAINS)]
    residues = sum(map(len, chains))
    with one_thread():
        timings = interleaved(
            {
                "ours": lambda: teacher.embed_many(chains),
                "plain": lambda: [plain_embedding(teacher._encoder, chain) for chain in chains],
                "floor": lambda: bare_products(residues),
            },
            rounds=3,
        )
    seconds = {name: timing.cpu_seconds for name, timing in timings.items()}
    return {
        "residues_timed": residues,
        "microseconds_per_residue": seconds["ours"] / residues * 1e6,
        "microseconds_per_residue_plain": seconds["plain"] / residues * 1e6,
        "speedup_vs_plain": seconds["plain"] / seconds["ours"],
        "gemm_floor_ratio": seconds["ours"] / seconds["floor"],
    }


def configured(shards: Path, column: str, derive: dict[str, Any]) -> TrainConfig:
    teacher = TeacherConfig(kind="mpnn", weights=data_folder() / "teachers" / "mpnn_encoder_64d.npz", column=column)
    trunk = {"layers": 1, "width": 8, "heads": 1}
    data, settings = DataConfig(shards=shards), DeriveConfig(**derive)
    return TrainConfig(stage="align", name="x", data=data, teacher=teacher, derive=settings, trunk=trunk)


def forms(shards: Path) -> dict[str, float]:
    """Bytes and error of each form, as its finished column has them."""
    figures: dict[str, float] = {}
    for name, derive in FORMS.items():
        derive_teacher(configured(shards, name, {**derive, "num_workers": 1}), shards)
        with ShardReader(shards) as reader, DerivedReader(reader, name) as column:
            stored = [shard for split in column.manifest.splits.values() for shard in split]
            error = column.facts["error"]
        figures |= {
            f"bytes_per_residue_{name}": sum(s.bytes for s in stored) / sum(s.residues for s in stored),
            f"relative_error_{name}": error["relative_rms"],
            f"cosine_min_{name}": error["cosine_min"],
            f"cosine_mean_{name}": error["cosine_mean"],
        }
    return figures | {"residues_in_columns": error["residues"]}


def two_over_one(shards: Path) -> float:
    """Throughput of two actors over one's, from the first result to the last."""
    import ray

    from pretrain.derive_pool import Pool, PoolSize

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    rates = {}
    tasks = list(range(16))
    for actors in (1, 2):
        with Pool(open_embedder, shards, PoolSize(actors), str) as pool:
            list(pool.run(list(range(actors))))
            began = time.perf_counter()
            residues = sum(pool.run(tasks))
            rates[actors] = residues / (time.perf_counter() - began)
    ray.shutdown()
    return rates[2] / rates[1]


def open_embedder(shards: Path):
    """A worker that embeds the chains of one base shard and returns how many residues they have."""
    teacher, reader = load_mpnn(data_folder() / "teachers" / "mpnn_encoder_64d.npz"), ShardReader(shards)

    def embed(number: int) -> int:
        with one_thread():
            chosen = [reader.sample("train", number * CHAINS_PER_SHARD + row) for row in range(CHAINS_PER_SHARD)]
            return sum(map(len, teacher.embed_many(chosen)))

    return embed


def main() -> None:
    teacher = load_mpnn(data_folder() / "teachers" / "mpnn_encoder_64d.npz")
    figures: dict[str, Any] = speed(teacher)
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder) / "shards"
        write_shards(shards, {"train": samples(28, COLUMN_CHAINS)}, samples_per_shard=CHAINS_PER_SHARD)
        figures |= forms(shards)
        figures["throughput_2_over_1"] = two_over_one(shards)
    report("derive", figures)


if __name__ == "__main__":
    main()
