"""A whole build over real chains in steady state against a bare pool of processes that runs the same functions.

`ratio_to_pool` is the throughput of parsing and writing under Ray Data over that of two processes of
`multiprocessing` with the same tasks and the same bytes written; both from the first result to the last of each phase,
which leaves out the start of workers (`start_seconds`), and the pool runs before and after.
`memory_4000_over_1000` compares the peak memory (proportional set size) of all processes of a build of 4,000 chains
with that of one of 1,000.
"""

import hashlib
import io
import multiprocessing
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from configs.build import BuildConfig, FilterConfig, ShardConfig
from configs.loading import dump_config
from configs.source import SourceConfig
from configs.splits import SplitConfig
from data_pipeline.build import UNTIL_FIRST, gather, run_build
from data_pipeline.inputs import read_inputs
from data_pipeline.output_folder import work_folders
from data_pipeline.parse_task import count_parsed
from data_pipeline.placement import place_chains, plan_shards
from data_pipeline.shard_task import write_planned_shard
from data_pipeline.spool import cut_batches
from tests.benchmarks._files import pdb_files
from tests.benchmarks._timing import report
from tests.benchmarks._trees import peak_memory

WORKERS = 2
COPIES = 9
"""The real chains are taken so often, so that the steady state lasts a minute and more."""
WARM_CHAINS = 300
MEMORY_CHAINS = (1000, 4000)
TIMEOUT_SECONDS = 900


def write_source(place: Path, count: int | None, copies: int) -> int:
    """An uncompressed tar of gzipped PDB files; returns the number of files."""
    files = list(pdb_files(count))
    with tarfile.open(place, "w") as tar:
        for copy in range(copies):
            for name, data in files:
                member = tarfile.TarInfo(f"{copy}/{copy}{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return copies * len(files)


def configured(source: Path, output: Path) -> BuildConfig:
    """All chains kept, as copies of one chain are wanted here."""
    return BuildConfig(
        source=SourceConfig(kind="files", path=str(source)),
        filters=FilterConfig(drop_identical=False, min_residues=1, max_missing_fraction=1, max_unknown_fraction=1),
        split=SplitConfig(method="kmers"),
        shards=ShardConfig(),
        output=output,
        num_workers=WORKERS,
    )


def pool_build(config: BuildConfig, pool: "multiprocessing.pool.Pool") -> float:
    """Seconds that the pool takes to parse and to write what `run_build` parses and writes."""
    inputs = read_inputs(config)
    config.output.mkdir()
    parsed, scratch = work_folders(config.output, "pool")
    tasks = list(cut_batches(inputs.entries, inputs.fingerprints, config, parsed))
    seconds = steady(pool.imap_unordered(count_parsed, tasks))
    placement, _ = place_chains(gather(tasks, scratch)[0], config, scratch)
    shards = plan_shards(placement, config.shards.samples_per_shard, config.output, scratch, parsed)
    return seconds + steady(pool.imap_unordered(write_planned_shard, shards))


def steady(results: Iterable) -> float:
    """Seconds from the first result to the last."""
    start, first = time.perf_counter(), 0.0
    for number, _ in enumerate(results):
        if number == 0:
            first = time.perf_counter() - start
    return time.perf_counter() - start - first


def ray_build(config: BuildConfig) -> float:
    """The same by the pipeline, in a Ray that is running already."""
    stages = run_build(config).stage_seconds
    return sum(stages[name] - stages[f"{name}{UNTIL_FIRST}"] for name in ("parse", "write shards"))


def digests(folder: Path) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.tar"))]


def throughput(folder: Path) -> dict[str, float]:
    import ray

    chains = write_source(folder / "all.tar", None, COPIES)
    write_source(folder / "warm.tar", WARM_CHAINS, 1)
    ray.init("local", num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, object_store_memory=2**28)
    outputs = (folder / f"out{number}" for number in range(9))
    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        pool_build(configured(folder / "warm.tar", next(outputs)), pool)
        ray_build(configured(folder / "warm.tar", next(outputs)))
        seconds: dict[str, list[float]] = {"pool": [], "ray": []}
        written = []
        for name in ("pool", "ray", "pool"):
            config = configured(folder / "all.tar", next(outputs))
            seconds[name].append(pool_build(config, pool) if name == "pool" else ray_build(config))
            written.append(digests(config.output))
            shutil.rmtree(config.output)
    ray.shutdown()
    assert written[0] == written[1] == written[2], "the pool and the pipeline wrote different bytes"
    pool_seconds, ray_seconds = float(np.mean(seconds["pool"])), float(np.mean(seconds["ray"]))
    return {
        "chains": chains,
        "steady_seconds": ray_seconds,
        "chains_per_second": chains / ray_seconds,
        "pool_seconds_before": seconds["pool"][0],
        "pool_seconds_after": seconds["pool"][1],
        "ratio_to_pool": pool_seconds / ray_seconds,
    }


def memory(folder: Path) -> Iterator[tuple[str, float]]:
    """Peak memory of builds of different sizes, each in processes of its own."""
    peaks = []
    for count in MEMORY_CHAINS:
        source = folder / f"{count}.tar"
        write_source(source, count, 1)
        file = folder / f"{count}.yaml"
        file.write_text(dump_config(configured(source, folder / f"memory{count}")))
        peaks.append(peak_memory([sys.executable, "-m", "data_pipeline", "build", str(file)], TIMEOUT_SECONDS))
        yield f"peak_gib_{count}", peaks[-1] / 2**30
    yield "memory_4000_over_1000", peaks[1] / peaks[0]


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        figures = dict(memory(Path(name)))
        report("build", {**throughput(Path(name)), **figures})


if __name__ == "__main__":
    main()
