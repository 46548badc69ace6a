"""A build over all the real chains as a user would run it: files on disk, the shipped configuration, its tables.

`python -m tests.benchmarks.real_build [FOLDER]` keeps the structure files and the shards in FOLDER (default: a
temporary one) and also audits what it has built.
"""

import sys
import tempfile
import time
from pathlib import Path

from configs.build import BuildConfig
from configs.loading import load_config
from data_pipeline.audit import audit
from data_pipeline.build import run_build
from data_pipeline.report import print_audit, print_build
from tests.benchmarks._files import pdb_files
from tests.benchmarks._timing import report

CONFIG = Path(__file__).parents[2] / "configs" / "data" / "files.yaml"


def run(folder: Path) -> None:
    structures, shards = folder / "structures", folder / "shards"
    structures.mkdir(parents=True, exist_ok=True)
    for name, data in pdb_files():
        (structures / name).write_bytes(data)
    config = load_config(BuildConfig, CONFIG, [f"source.path={structures}", f"output={shards}"])
    outcome = run_build(config)
    print_build(outcome, shards)
    start = time.perf_counter()
    checked = audit(shards)
    seconds = time.perf_counter() - start
    print_audit(checked, shards)
    residues = sum(split.residues for split in outcome.manifest.splits.values())
    report(
        "real_build",
        {
            "chains": outcome.manifest.chains,
            "kept": outcome.manifest.kept,
            "dropped": outcome.manifest.dropped,
            "residues": residues,
            "seconds": outcome.seconds,
            "chains_per_second": outcome.manifest.chains / outcome.seconds,
            "stage_seconds": {name: round(value, 1) for name, value in outcome.stage_seconds.items()},
            "audit_seconds": seconds,
            "damaged": len(checked.damage),
            "largest_cluster": outcome.manifest.leakage.clustering["largest_cluster"],
        },
    )


def main() -> None:
    if len(sys.argv) > 1:
        run(Path(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder))


if __name__ == "__main__":
    main()
