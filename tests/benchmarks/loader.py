"""Reading shards against webdataset, how full packs are, and collation against transformers.

All readers take the same tars of real chains with everything a default build stores, from the page cache. Each gives
sequence, 3Di letters and mask, coordinates, backbone mask, B-factors and one graph of every sample:

* `speedup_vs_webdataset`: webdataset with our decoder, which checks each sample's header, against our reader in steady
  state, that is on shards it has touched before, as in all epochs but the first;
* `speedup_vs_webdataset_plain`: against webdataset with the customary `.decode()` and safetensors;
* `speedup_vs_webdataset_undecoded`: against webdataset that hands out bytes and decodes nothing;
* `samples_per_second_shuffled`: the same in random order, which webdataset has not;
* `first_pass_microseconds`: per sample when a shard is touched for the first time, its sha256 checked (`verified`) or
  not; webdataset checks nothing.

Our arrays are views of the file, so no byte is copied before a batch is made; `speedup_vs_webdataset_copied` lets both
copy every array that is handed out.
"""

import os
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from configs.build import BuildConfig
from configs.training_data import DataConfig
from data_pipeline.parse_task import build_graphs
from data_pipeline.reader import ShardReader
from data_pipeline.schema import Sample, to_milli_angstrom
from data_pipeline.shards import write_shards
from data_pipeline.stored import sample_of_members
from data_pipeline.structure.threedi import encode_3di_many
from pretrain.collate import Item, collate
from pretrain.sampler import SPECIAL_TOKENS, Plan, plan_epoch, rank_crops
from pretrain.vocab import ESM2_TOKENS, alphabet
from tests.benchmarks._chains import real_chains
from tests.benchmarks._timing import interleaved, report

NUM_CHAINS = 1000
PACK_TOKENS = 2048
CROP_RESIDUES = 510
MASK_FRACTION = 0.15
GRAPH = "radius10"
COLLATED_PACKS = 4
"""Packs of one batch: 8,192 tokens, as one forward pass of a large model takes them."""
COLLATE_REPEATS = 10
"""Ours runs so often in a round, so that a round takes as long as to be steady."""


def make_samples() -> list[Sample]:
    """Real chains as a default build stores them; dihedrals and frames have the right size only."""
    chains = real_chains(NUM_CHAINS)
    tokens = encode_3di_many([coordinates for _, coordinates in chains])
    graphs = BuildConfig(output=Path("unused")).graphs
    values = np.random.default_rng(0)
    samples = []
    for i, ((sequence, coordinates), (letters, has_state)) in enumerate(zip(chains, tokens, strict=True)):
        n = len(sequence)
        valid = np.isfinite(coordinates[:, :3]).all(axis=(1, 2))
        sample = Sample(
            key=f"{i:04d}_A",
            sequence=sequence,
            threedi=letters,
            coordinates=to_milli_angstrom(coordinates),
            bfactor=values.uniform(5, 90, n).astype(np.float32),
            valid=valid,
            threedi_valid=has_state,
            graphs=build_graphs(coordinates[:, 1], graphs),
            facts={
                "source": f"mirror/{i:04d}.cif.gz",
                "entry": f"{i:04d}",
                "chain_label": "A",
                "chain_author": "A",
                "method": "x-ray diffraction",
                "resolution": 1.85,
                "r_free": 0.213,
                "deposition_date": "2011-03-04",
                "model_version": None,
                "notes": ["altloc", "modified_residue:MSE"],
                "missing_fraction": 0.01,
                "unknown_fraction": 0.0,
                "geometry_outlier_fraction": 0.003,
                "mean_bfactor": 31.25,
            },
            cluster=i,
            high_quality=True,
            reliable=valid,
            dihedrals=values.integers(-32767, 32767, (n, 3)).astype(np.int16),
            frames=values.integers(-32767, 32767, (n, 4)).astype(np.int16),
        )
        samples.append(sample)
    return samples


def fields(sample: Sample) -> tuple[Any, ...]:
    """What every contestant has to give of a sample."""
    graph = sample.graphs[GRAPH]
    arrays = (sample.threedi_valid, sample.coordinates, sample.valid, sample.bfactor, graph.indptr, graph.index)
    return (sample.sequence, sample.threedi, *arrays)


def count(given: Iterable[tuple[Any, ...]]) -> int:
    """Letters and rows, so that no contestant can leave a field out."""
    return sum(len(field) for sample in given for field in sample)


def copied(given: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    for sequence, threedi, *arrays in given:
        yield sequence, threedi, *(array.copy() for array in arrays)


def ours(reader: ShardReader, order: Iterable[int]) -> Iterator[tuple[Any, ...]]:
    for i in order:
        yield fields(reader.sample("train", i))


def first_pass(folder: Path, verify: bool) -> int:
    with ShardReader(folder, verify) as reader:
        return count(ours(reader, range(len(reader.index("train")))))


def webdataset_stream(tars: list[str]) -> Any:
    import webdataset

    return webdataset.WebDataset(tars, shardshuffle=False)


def webdataset_ours(tars: list[str]) -> Iterator[tuple[Any, ...]]:
    """webdataset's samples through the decoder of our reader."""
    for row in webdataset_stream(tars):
        yield fields(sample_of_members(row["json"], row["safetensors"]))


def webdataset_plain(tars: list[str]) -> Iterator[tuple[Any, ...]]:
    """webdataset as its manual has it: `.decode()`, with safetensors' own reader for its members."""

    def arrays(key: str, data: bytes) -> Any:
        return safetensors.numpy.load(data) if key.endswith(".safetensors") else None

    names = ("threedi_valid", "coordinates", "valid", "bfactor", f"graph.{GRAPH}.indptr", f"graph.{GRAPH}.index")
    for row in webdataset_stream(tars).decode(arrays):
        tensors = row["safetensors"]
        yield (row["json"]["sequence"], row["json"]["threedi"], *(tensors[name] for name in names))


def reading(folder: Path, samples: list[Sample]) -> dict[str, float]:
    tars = [str(path) for path in sorted(folder.glob("train-*.tar"))]
    order = list(range(len(samples)))
    shuffled = random.Random(0).sample(order, len(order))
    expected = count(fields(sample) for sample in samples)
    with ShardReader(folder, verify=False) as reader:
        contestants: dict[str, Callable[[], int]] = {
            "ours": lambda: count(ours(reader, order)),
            "shuffled": lambda: count(ours(reader, shuffled)),
            "copied": lambda: count(copied(ours(reader, order))),
            "first_pass": lambda: first_pass(folder, verify=False),
            "verified": lambda: first_pass(folder, verify=True),
            "webdataset": lambda: count(webdataset_ours(tars)),
            "webdataset_copied": lambda: count(copied(webdataset_ours(tars))),
            "plain": lambda: count(webdataset_plain(tars)),
        }
        assert {name: run() for name, run in contestants.items()} == dict.fromkeys(contestants, expected)
        contestants["undecoded"] = lambda: sum(1 for _ in webdataset_stream(tars))
        seconds = {name: timing.cpu_seconds for name, timing in interleaved(contestants, rounds=7).items()}
    return {
        "samples": len(samples),
        "kilobytes_per_sample": sum(Path(tar).stat().st_size for tar in tars) / 1e3 / len(samples),
        "samples_per_second": len(samples) / seconds["ours"],
        "samples_per_second_shuffled": len(samples) / seconds["shuffled"],
        "samples_per_second_webdataset": len(samples) / seconds["webdataset"],
        "speedup_vs_webdataset": seconds["webdataset"] / seconds["ours"],
        "speedup_vs_webdataset_plain": seconds["plain"] / seconds["ours"],
        "speedup_vs_webdataset_undecoded": seconds["undecoded"] / seconds["ours"],
        "speedup_vs_webdataset_copied": seconds["webdataset_copied"] / seconds["copied"],
        "first_pass_microseconds": seconds["first_pass"] / len(samples) * 1e6,
        "first_pass_microseconds_verified": seconds["verified"] / len(samples) * 1e6,
    }


def make_plan(samples: list[Sample], max_residues: int, packs_per_pool: int = 1) -> Plan:
    config = DataConfig(
        shards="unused", max_residues=max_residues, pack_tokens=PACK_TOKENS, packs_per_pool=packs_per_pool
    )
    return plan_epoch(np.array([len(sample) for sample in samples]), seed=0, epoch=0, config=config)


def packing(samples: list[Sample]) -> dict[str, float]:
    plan = make_plan(samples, PACK_TOKENS - SPECIAL_TOKENS)
    tokens = int((plan.lengths + SPECIAL_TOKENS).sum())
    return {"packing_efficiency": tokens / ((len(plan.packs) - 1) * PACK_TOKENS)}


def collation(folder: Path, samples: list[Sample]) -> dict[str, float]:
    """Tokenise, mask and collate the same chains, cut to the same length, pool by pool; ours adds all other targets."""
    from transformers import DataCollatorForLanguageModeling, EsmTokenizer

    (folder / "vocab.txt").write_text("\n".join(ESM2_TOKENS))
    tokenizer = EsmTokenizer(str(folder / "vocab.txt"))
    collator = DataCollatorForLanguageModeling(
        tokenizer, mlm_probability=MASK_FRACTION, mask_replace_prob=1.0, random_replace_prob=0.0
    )
    plan = make_plan(samples, CROP_RESIDUES, COLLATED_PACKS)
    # Both start at the first residue, where transformers' truncation starts.
    pools = [[crop._replace(start=0) for crop in rank_crops(plan[k], 0, 1)] for k in range(len(plan))]
    items = [[Item(crop, samples[crop.sample], crop.sample, None) for crop in pool] for pool in pools]
    sequences = [[samples[crop.sample].sequence for crop in pool] for pool in pools]
    residues = sum(crop.length for pool in pools for crop in pool)
    esm2 = alphabet("esm2")

    def collate_ours() -> list[int]:
        batches = [collate(pool, esm2, MASK_FRACTION, 0, 0) for pool in items]
        return [sum(len(batch.masked_index) for batch in batches), sum(len(b.packed.tokens) for b in batches)]

    def collate_theirs() -> list[int]:
        masked = tokens = 0
        for pool in sequences:
            features = tokenizer(pool, truncation=True, max_length=CROP_RESIDUES + SPECIAL_TOKENS)
            batch = collator([{"input_ids": ids} for ids in features["input_ids"]])
            masked += int((batch["input_ids"] == tokenizer.mask_token_id).sum())
            tokens += int((batch["input_ids"] != tokenizer.pad_token_id).sum())
        return [masked, tokens]

    (our_masked, our_tokens), (their_masked, their_tokens) = collate_ours(), collate_theirs()
    assert our_tokens == their_tokens, "both see the same residues"
    contestants = {"ours": lambda: [collate_ours() for _ in range(COLLATE_REPEATS)], "transformers": collate_theirs}
    timings = interleaved(contestants, rounds=5)
    our_seconds = timings["ours"].cpu_seconds / COLLATE_REPEATS
    their_seconds = timings["transformers"].cpu_seconds
    return {
        "collate_speedup_vs_transformers": their_seconds / our_seconds,
        "collate_nanoseconds_per_residue": our_seconds / residues * 1e9,
        "collate_nanoseconds_per_residue_transformers": their_seconds / residues * 1e9,
        "masked_fraction": our_masked / residues,
        "masked_fraction_transformers": their_masked / residues,
    }


def main() -> None:
    # webdataset would otherwise be free to run shell commands and pickles that a tar asks for.
    os.environ["WDS_SECURE"] = "1"
    samples = make_samples()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder, {"train": samples}, 256)
        report("loader", {**reading(folder, samples), **packing(samples), **collation(folder, samples)})


if __name__ == "__main__":
    main()
