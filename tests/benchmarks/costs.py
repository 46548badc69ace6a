"""What the large databases cost, computed from per-residue costs measured here on predicted all-atom models.

The models (ProteinGym's, made by AlphaFold2) are written as gzipped mmCIF first, which is how AlphaFoldDB ships them.
Prints a Markdown table; its rows are predictions, linear in residues, not builds that were run.
"""

import gzip
import lzma
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import gemmi

from configs.build import BuildConfig
from configs.source import SourceConfig
from data_pipeline.estimate import UnitCosts, dry_run, predict
from data_pipeline.inputs import read_inputs
from data_pipeline.parse_task import parse_batch
from data_pipeline.schema import Sample, decode_sample
from data_pipeline.spool import cut_batches
from pretrain.teachers.mpnn import load_mpnn
from tests.benchmarks._chains import data_folder
from tests.benchmarks._timing import report

MODELS = Path("benchmarks", "proteingym_single_sites.tar.xz")
WEIGHTS = Path("teachers", "mpnn_encoder_64d.npz")
CORES = 64
EMBEDDED_MODELS = 12


@dataclass(frozen=True)
class Database:
    name: str
    entries: int
    residues: float
    """Assumed mean length."""


DATABASES = (
    Database("AlphaFoldDB Swiss-Prot", 542_378, 361),
    Database("AlphaFoldDB cluster representatives", 2_302_908, 350),
    Database("AlphaFoldDB, all", 214_683_829, 350),
)


def models() -> Iterator[tuple[str, bytes]]:
    """Name and gzipped mmCIF of every predicted model."""
    with lzma.open(data_folder() / MODELS) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            if member.name.endswith(".pdb"):
                file = tar.extractfile(member)
                assert file is not None
                structure = gemmi.read_pdb_string(file.read())
                structure.setup_entities()
                stem = Path(member.name).stem.replace("_", "-")
                structure.name = f"AF-{stem}-F1"
                text = structure.make_mmcif_document().as_string()
                yield f"AF-{stem}-F1-model_v4.cif.gz", gzip.compress(text.encode(), 6, mtime=0)


def embedding_seconds(samples: list[Sample]) -> tuple[float, int]:
    """CPU seconds per residue of the structure-only teacher, and its width."""
    teacher = load_mpnn(data_folder() / WEIGHTS)
    teacher.embed_many(samples[:1])
    start = time.process_time()
    teacher.embed_many(samples)
    return (time.process_time() - start) / sum(map(len, samples)), teacher.width


def sampled(config: BuildConfig, folder: Path) -> list[Sample]:
    """Samples of the first models, as parsing makes them."""
    inputs = read_inputs(config)
    task = next(cut_batches(inputs.entries[:EMBEDDED_MODELS], inputs.fingerprints, config, folder))
    rows, data = parse_batch(task).chains.to_pylist(), task.tar.read_bytes()

    def member(row: dict, name: str) -> bytes:
        return data[row[f"{name}_offset"] :][: row[f"{name}_length"]]

    return [decode_sample(member(row, "facts"), member(row, "arrays")) for row in rows]


def table(costs: UnitCosts, teacher_seconds: float, width: int) -> str:
    """Markdown: one row for each database."""
    lines = [
        f"| database | structures | mean length (assumed) | build, core hours | build on {CORES} cores | shards | "
        f"memory of the driver's lists | teacher column, core hours | {width} x float16 | {width} x int8 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for database in DATABASES:
        scaled = replace(costs, residues_per_entry=database.residues, chains_per_entry=1.0)
        whole = predict(scaled, database.entries, CORES)
        hours = f"{whole.hours * 60:.0f} min" if whole.hours < 2 else f"{whole.hours:.1f} h"
        cells = (
            database.name,
            f"{database.entries:,}",
            f"{database.residues:.0f}",
            f"{whole.core_hours:,.1f}",
            hours,
            f"{whole.shard_bytes / 1e12:.2f} TB",
            f"{whole.driver_bytes / 1e9:.1f} GB",
            f"{whole.residues * teacher_seconds / 3600:,.0f}",
            f"{whole.residues * 2 * width / 1e12:.2f} TB",
            f"{whole.residues * (width + 2) / 1e12:.2f} TB",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        structures = folder / "models"
        structures.mkdir()
        for file, data in models():
            (structures / file).write_bytes(data)
        config = BuildConfig(source=SourceConfig(kind="files", path=str(structures)), output=folder / "shards")
        found = dry_run(config, CORES)
        (folder / "parsed").mkdir()
        samples = sampled(config, folder / "parsed")
    seconds, width = embedding_seconds(samples)
    print(table(found.costs, seconds, width))
    report(
        "costs",
        {
            "models": found.sampled,
            "parse_microseconds_per_residue": found.costs.parse_seconds * 1e6,
            "shard_microseconds_per_residue": found.costs.shard_seconds * 1e6,
            "shard_bytes_per_residue": found.costs.shard_bytes,
            "driver_bytes_per_entry": found.costs.driver_bytes,
            "teacher_microseconds_per_residue": seconds * 1e6,
            "teacher_width": width,
        },
    )


if __name__ == "__main__":
    main()
