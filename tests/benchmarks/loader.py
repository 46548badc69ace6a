"""Reading shards: our mmap reader against webdataset on the same tars, and how full the packs of an epoch are.

Both decode every sample to the same arrays; webdataset parses the JSON and the safetensors bytes that it hands out.
"""

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import safetensors.numpy

from configs.train import DataConfig
from data_pipeline.reader import ShardReader
from data_pipeline.schema import Sample, decode_sample, to_milli_angstrom
from data_pipeline.shards import write_shards
from data_pipeline.structure.threedi import encode_3di_many
from pretrain.sampler import SPECIAL_TOKENS, plan_epoch
from tests.benchmarks._chains import real_chains
from tests.benchmarks._timing import interleaved, report

NUM_CHAINS = 1000
PACK_TOKENS = 2048


def samples() -> list[Sample]:
    """Real chains as samples, without graphs."""
    chains = real_chains(NUM_CHAINS)
    tokens = encode_3di_many([coordinates for _, coordinates in chains])
    return [
        Sample(
            key=f"chain{i:05d}",
            sequence=sequence,
            threedi=letters,
            coordinates=to_milli_angstrom(coordinates),
            bfactor=np.zeros(len(sequence), dtype=np.float32),
            valid=np.isfinite(coordinates[:, :3]).all(axis=(1, 2)),
            threedi_valid=valid,
            graphs={},
            facts={},
            cluster=i,
            high_quality=True,
        )
        for i, ((sequence, coordinates), (letters, valid)) in enumerate(zip(chains, tokens, strict=True))
    ]


def read_ours(folder: Path) -> int:
    with ShardReader(folder, verify=False) as reader:
        return sum(len(reader.sample("train", i)) for i in range(len(reader.index("train"))))


def read_webdataset(tars: list[str]) -> int:
    """The same samples through webdataset, decoded by the same function."""
    import webdataset

    stream = webdataset.WebDataset(tars, shardshuffle=False)
    return sum(len(decode_sample(row["json"], row["safetensors"])) for row in stream)


def read_webdataset_raw(tars: list[str]) -> int:
    """webdataset with the plainest decoding there is: one JSON and one safetensors call."""
    import webdataset

    stream = webdataset.WebDataset(tars, shardshuffle=False)
    total = 0
    for row in stream:
        safetensors.numpy.load(row["safetensors"])
        total += len(json.loads(row["json"])["sequence"])
    return total


def main() -> None:
    # webdataset would otherwise be free to run shell commands and pickles that a tar asks for.
    os.environ["WDS_SECURE"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        chains = samples()
        write_shards(folder, {"train": chains}, 256)
        tars = [str(path) for path in sorted(folder.glob("train-*.tar"))]
        expected = sum(len(sample) for sample in chains)
        assert read_ours(folder) == read_webdataset(tars) == expected
        timings = interleaved(
            {
                "ours": lambda: read_ours(folder),
                "webdataset": lambda: read_webdataset(tars),
                "webdataset_raw": lambda: read_webdataset_raw(tars),
            }
        )
    residues = np.array([len(sample) for sample in chains])
    config = DataConfig(shards=Path("unused"), max_residues=PACK_TOKENS - 2, pack_tokens=PACK_TOKENS)
    plan = plan_epoch(residues, seed=0, epoch=0, config=config)
    tokens = int(np.minimum(residues, config.max_residues).sum()) + SPECIAL_TOKENS * len(residues)
    report(
        "loader",
        {
            "samples": len(chains),
            "samples_per_second": len(chains) / timings["ours"].cpu_seconds,
            "speedup_vs_webdataset": timings["webdataset"].cpu_seconds / timings["ours"].cpu_seconds,
            "speedup_vs_webdataset_plain_decoding": timings["webdataset_raw"].cpu_seconds / timings["ours"].cpu_seconds,
            "packing_efficiency": tokens / ((len(plan.packs) - 1) * PACK_TOKENS),
        },
    )


if __name__ == "__main__":
    main()
