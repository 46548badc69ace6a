"""Small chains as shards hold them, for the tests of teachers."""

import numpy as np

from data_pipeline.schema import Graph, Sample, to_milli_angstrom
from data_pipeline.structure.chain import AMINO_ACIDS
from data_pipeline.structure.graphs import knn_graph, radius_graph


def make_chain(num_residues: int, seed: int, missing: tuple[int, ...] = (), stored: bool = True) -> Sample:
    """A compact random walk of CA atoms with plausible backbone atoms around each; `missing` residues have none."""
    rng = np.random.default_rng(seed)
    ca = np.zeros((num_residues, 3))
    for i in range(1, num_residues):
        # A pull towards the centre keeps the walk as compact as a protein.
        step = rng.normal(size=3) - 0.08 * ca[i - 1]
        ca[i] = ca[i - 1] + 3.8 * step / np.linalg.norm(step)
    around = rng.normal(size=(num_residues, 5, 3))
    around *= 1.5 / np.linalg.norm(around, axis=-1, keepdims=True)
    around[:, 1] = 0
    coordinates = ca[:, None] + around
    coordinates[list(missing)] = np.nan
    ca = coordinates[:, 1]
    graphs = {}
    if stored:
        graphs = {"radius10": Graph(*radius_graph(ca, 10.0, 5)), "knn10": Graph(*knn_graph(ca, 10, 5))}
    sequence = "".join(rng.choice(list(AMINO_ACIDS + "X"), num_residues))
    valid = np.isfinite(coordinates[:, :3]).all(axis=(1, 2))
    return Sample(
        key=f"chain{seed}_A",
        sequence=sequence,
        threedi="D" * num_residues,
        coordinates=to_milli_angstrom(coordinates),
        bfactor=np.full(num_residues, 20.0, dtype=np.float32),
        valid=valid,
        threedi_valid=valid,
        graphs=graphs,
        facts={},
        cluster=seed,
        high_quality=True,
    )
