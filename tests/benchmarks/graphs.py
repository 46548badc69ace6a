"""Graphs and backbone features of the shards: stored against recomputed when a sample is loaded.

Loading means to turn the bytes of a sample's safetensors member into arrays; its share for one array is what the member
takes longer to decode with the array in it than without. Recomputing starts from decoded coordinates.
`speedup_vs_separate` compares the shared search for all default graphs with a k-d tree per graph and sorted pairs.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from configs.build import BuildConfig
from data_pipeline.schema import Graph, Sample, decode_sample, encode_arrays, encode_facts, to_milli_angstrom
from data_pipeline.structure.frames import backbone_features
from data_pipeline.structure.geometry import CA
from data_pipeline.structure.graphs import GraphRequest, residue_graphs
from tests.benchmarks._chains import real_chains
from tests.benchmarks._timing import interleaved, report

EVERY = 23
"""One real chain of so many is taken, spread over the file."""
REPEATS = 5
"""Passes over the chains per timing of decoding, which is short."""


def requests() -> dict[str, GraphRequest]:
    """The default graphs of a build."""
    return {
        graph.name: GraphRequest(graph.kind, graph.radius, graph.neighbours, graph.min_separation)
        for graph in BuildConfig(output=Path("unused")).graphs
    }


def full_sample(sequence: str, coordinates: np.ndarray) -> Sample:
    """A sample with everything that a build stores by default."""
    wanted = requests()
    graphs = residue_graphs(coordinates[:, CA], list(wanted.values()))
    angles, frames = backbone_features(coordinates)
    return Sample(
        key="chain",
        sequence=sequence,
        threedi="D" * len(sequence),
        coordinates=to_milli_angstrom(coordinates),
        bfactor=np.zeros(len(sequence), dtype=np.float32),
        valid=np.isfinite(coordinates[:, :3]).all(axis=(1, 2)),
        threedi_valid=np.zeros(len(sequence), dtype=bool),
        graphs={name: Graph(*graph) for name, graph in zip(wanted, graphs, strict=True)},
        facts={},
        cluster=0,
        high_quality=True,
        reliable=np.ones(len(sequence), dtype=bool),
        dihedrals=angles,
        frames=frames,
    )


def separate(ca: np.ndarray, request: GraphRequest) -> tuple[np.ndarray, np.ndarray]:
    """One graph the plain way: a k-d tree of its own, its pairs sorted."""
    rows = np.flatnonzero(np.isfinite(ca).all(axis=1))
    tree = cKDTree(ca[rows])
    if request.kind == "radius":
        pairs = rows[tree.query_pairs(request.radius, output_type="ndarray")]
        residue, neighbour = np.concatenate([pairs, pairs[:, ::-1]]).T
        distance = np.zeros(len(residue))
    else:
        wanted = min(len(rows), request.neighbours + 2 * request.min_separation - 1)
        distance, index = tree.query(ca[rows], k=wanted)
        residue, neighbour, distance = np.repeat(rows, wanted), rows[index.ravel()], distance.ravel()
    apart = np.abs(residue - neighbour) >= request.min_separation
    residue, neighbour, distance = residue[apart], neighbour[apart], distance[apart]
    order = np.lexsort((neighbour, distance, residue))
    residue, neighbour = residue[order], neighbour[order]
    counts = np.bincount(residue, minlength=len(ca))
    if request.kind == "knn":
        nearest = np.arange(len(residue)) - np.repeat(np.cumsum(counts) - counts, counts) < request.neighbours
        neighbour, counts = neighbour[nearest], np.minimum(counts, request.neighbours)
    return np.concatenate([[0], np.cumsum(counts)]), neighbour


def without(sample: Sample, part: str) -> Sample:
    """The sample with one graph, or its backbone features, left out."""
    if part == "features":
        return replace(sample, dihedrals=None, frames=None)
    return replace(sample, graphs={name: graph for name, graph in sample.graphs.items() if name != part})


def main() -> None:
    wanted = requests()
    parts = [*wanted, "features"]
    chains = real_chains()[::EVERY]
    samples = [full_sample(*chain) for chain in chains]
    coordinates = [sample.angstrom() for sample in samples]
    residues = sum(len(sample) for sample in samples)
    members = {"all": [(encode_facts(s), encode_arrays(s)) for s in samples]}
    members |= {part: [(encode_facts(s), encode_arrays(without(s, part))) for s in samples] for part in parts}
    bare = [replace(sample, graphs={}, dihedrals=None, frames=None) for sample in samples]
    members["none"] = [(encode_facts(sample), encode_arrays(sample)) for sample in bare]

    def loading(name: str) -> int:
        return sum(len(decode_sample(*member)) for _ in range(REPEATS) for member in members[name])

    requested = list(wanted.values())
    contestants = {f"load_{name}": lambda name=name: loading(name) for name in members}
    contestants |= {
        f"compute_{name}": lambda request=request: [residue_graphs(x[:, CA], [request]) for x in coordinates]
        for name, request in wanted.items()
    }
    contestants["compute_features"] = lambda: [backbone_features(x) for x in coordinates]
    contestants["compute_graphs"] = lambda: [residue_graphs(x[:, CA], requested) for x in coordinates]
    contestants["separate"] = lambda: [[separate(x[:, CA], request) for request in requested] for x in coordinates]
    # Milliseconds per 1,000 residues of CPU time.
    cost = {name: timing.cpu_seconds / residues * 1e6 for name, timing in interleaved(contestants).items()}
    load = {name: cost[f"load_{name}"] / REPEATS for name in members}
    total = sum(len(arrays) + len(facts) for facts, arrays in members["all"])
    figures: dict[str, float | int] = {"residues": residues, "bytes_per_residue": total / residues}
    for part in parts:
        stored = total - sum(len(arrays) + len(facts) for facts, arrays in members[part])
        figures[f"bytes_per_residue_{part}"] = stored / residues
        figures[f"share_of_bytes_{part}"] = stored / total
        figures[f"recompute_ms_per_1000_{part}"] = cost[f"compute_{part}"]
        figures[f"load_ms_per_1000_{part}"] = load["all"] - load[part]
    together = cost["compute_graphs"] + cost["compute_features"]
    report(
        "graphs",
        {
            **figures,
            "recompute_ms_per_1000": together,
            "load_ms_per_1000": load["all"] - load["none"],
            "load_ms_per_1000_whole_sample": load["all"],
            "recompute_over_load": together / (load["all"] - load["none"]),
            "speedup_vs_separate": cost["separate"] / cost["compute_graphs"],
        },
    )


if __name__ == "__main__":
    main()
