"""Hand-made samples for tests: random but valid in every length."""

from pathlib import Path

import numpy as np

from data_pipeline.manifest import Manifest
from data_pipeline.schema import Graph, Sample, to_milli_angstrom
from data_pipeline.shards import write_shards
from data_pipeline.structure.chain import AMINO_ACIDS, THREEDI_STATES


def make_sample(key: str, num_residues: int, cluster: int = 0, high_quality: bool = False, seed: int = 0) -> Sample:
    random = np.random.default_rng(seed)
    n = num_residues
    coordinates = random.normal(scale=10.0, size=(n, 5, 3))
    coordinates[0, 4] = np.nan
    neighbours = np.array([i for i in range(n) for _ in range(2)], dtype=np.uint16)
    return Sample(
        key=key,
        sequence="".join(random.choice(list(AMINO_ACIDS), size=n)),
        threedi="".join(random.choice(list(THREEDI_STATES), size=n)),
        coordinates=to_milli_angstrom(coordinates),
        bfactor=random.uniform(0, 90, size=n).astype(np.float32),
        valid=np.ones(n, dtype=bool),
        threedi_valid=np.arange(n) > 0,
        graphs={"knn2": Graph(np.arange(0, 2 * n + 1, 2, dtype=np.uint32), neighbours)},
        facts={"source": f"{key}.pdb", "resolution": 1.5, "notes": ["altloc"]},
        cluster=cluster,
        high_quality=high_quality,
    )


def small_splits() -> dict[str, list[Sample]]:
    """Ten training, three validation and two test samples of different lengths."""
    train = [make_sample(f"t{i:02d}_A", 30 + i, cluster=i // 2, high_quality=i % 3 == 0, seed=i) for i in range(10)]
    validation = [make_sample(f"v{i:02d}_A", 50 + i, cluster=10 + i, seed=20 + i) for i in range(3)]
    test = [make_sample(f"x{i:02d}_A", 40 + i, cluster=20 + i, seed=40 + i) for i in range(2)]
    return {"train": train, "validation": validation, "test": test}


def write_small_shards(folder: Path) -> Manifest:
    """Shards of `small_splits`, four samples each."""
    return write_shards(folder, small_splits(), samples_per_shard=4)
