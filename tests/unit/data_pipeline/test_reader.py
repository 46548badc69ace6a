"""Random access to verified shards."""

import json
import pickle
import random
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from configs.errors import UserError
from data_pipeline import shard_file
from data_pipeline.manifest import MANIFEST_NAME, read_manifest, write_sealed
from data_pipeline.reader import COLUMN, DamagedShard, ShardReader
from data_pipeline.schema import Graph, Sample, decode_sample, encode_arrays, encode_facts
from data_pipeline.shards import PackedSample, write_shard, write_shards
from data_pipeline.stored import StoredSample, sample_of_members
from tests.unit.data_pipeline.samples import make_sample, small_splits, write_small_shards


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_small_shards(tmp_path)
    return tmp_path


def read_everything(folder: Path, verify: bool = True) -> None:
    with ShardReader(folder, verify) as reader:
        for split in reader.splits:
            for i in range(len(reader.index(split))):
                reader.sample(split, i)


def test_every_sample_comes_back_as_it_was_written(folder: Path) -> None:
    with ShardReader(folder) as reader:
        for split, samples in small_splits().items():
            assert len(reader.index(split)) == len(samples)
            for i, sample in enumerate(samples):
                back = reader.sample(split, i)
                assert (back.key, back.sequence, back.threedi, back.facts) == (
                    sample.key,
                    sample.sequence,
                    sample.threedi,
                    sample.facts,
                )
                np.testing.assert_array_equal(back.coordinates, sample.coordinates)
                np.testing.assert_array_equal(back.bfactor, sample.bfactor)
                np.testing.assert_array_equal(back.threedi_valid, sample.threedi_valid)
                np.testing.assert_array_equal(back.graphs["knn2"].edges(), sample.graphs["knn2"].edges())
                assert reader.key(split, i) == sample.key


def test_the_index_tells_lengths_clusters_and_quality(folder: Path) -> None:
    samples = small_splits()["train"]
    with ShardReader(folder) as reader:
        index = reader.index("train")
    assert index.residues.tolist() == [len(s) for s in samples]
    assert index.cluster.tolist() == [s.cluster for s in samples]
    assert index.high_quality.tolist() == [s.high_quality for s in samples]
    assert index.shard.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]


def test_an_unknown_split_names_those_that_exist(folder: Path) -> None:
    with ShardReader(folder) as reader, pytest.raises(UserError, match="allowed: train, validation, test"):
        reader.index("valid")


def test_a_folder_without_manifest_is_an_unfinished_build(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        ShardReader(tmp_path / "nothing")
    with pytest.raises(UserError, match="data_pipeline build"):
        ShardReader(tmp_path)


def test_another_major_schema_version_is_refused(folder: Path) -> None:
    manifest, _ = read_manifest(folder)
    write_sealed(folder / MANIFEST_NAME, manifest.model_copy(update={"schema_version": "2.0"}))
    with pytest.raises(UserError, match=r"schema version 2\.0"):
        ShardReader(folder)


def test_a_missing_shard_is_damage_that_names_the_file(folder: Path) -> None:
    (folder / "test-000000.tar").unlink()
    with ShardReader(folder) as reader, pytest.raises(DamagedShard, match=r"test-000000\.tar.*audit"):
        reader.sample("test", 0)


def test_every_single_bit_flip_is_detected_before_the_data_is_used(folder: Path) -> None:
    read_everything(folder)
    chosen = random.Random(7)
    files = sorted(folder.iterdir())
    for trial in range(150):
        path = files[trial % len(files)]
        whole = path.read_bytes()
        position, bit = chosen.randrange(len(whole)), chosen.randrange(8)
        path.write_bytes(whole[:position] + bytes([whole[position] ^ (1 << bit)]) + whole[position + 1 :])
        with pytest.raises(DamagedShard, match=path.name.split(".")[0]):
            read_everything(folder)
        path.write_bytes(whole)
    read_everything(folder)


def test_every_truncation_is_detected_even_without_hashing(folder: Path) -> None:
    chosen = random.Random(8)
    for path in sorted(folder.glob("*.tar")):
        whole = path.read_bytes()
        for _ in range(5):
            path.write_bytes(whole[: chosen.randrange(len(whole))])
            with pytest.raises(DamagedShard, match=path.name):
                read_everything(folder, verify=False)
        path.write_bytes(whole)


def assert_equal(one: Sample, other: Sample) -> None:
    for field in fields(Sample):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        if field.name == "graphs":
            assert sorted(mine) == sorted(theirs)
            for name in theirs:
                np.testing.assert_array_equal(mine[name].indptr, theirs[name].indptr)
                np.testing.assert_array_equal(mine[name].index, theirs[name].index)
                assert mine[name].index.dtype == theirs[name].index.dtype
        elif isinstance(theirs, np.ndarray):
            np.testing.assert_array_equal(mine, theirs)
            assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
        else:
            assert mine == theirs
    assert len(one) == len(other)
    np.testing.assert_array_equal(one.threedi_states(), other.threedi_states())


def full_sample(key: str, n: int, seed: int) -> Sample:
    """With all that schema 1.1 may hold, and graphs of different sizes, one of them empty."""
    values = np.random.default_rng(seed)
    counts = {name: values.integers(0, 5, n) for name in ("knn", "radius10", "radius8")}
    graphs = {
        name: Graph(
            np.concatenate([[0], np.cumsum(count)]).astype(np.uint32),
            values.integers(0, n, count.sum()).astype(np.uint16),
        )
        for name, count in counts.items()
    }
    graphs["empty"] = Graph(np.zeros(n + 1, dtype=np.uint32), np.zeros(0, dtype=np.uint16))
    return replace(
        make_sample(key, n, seed=seed),
        graphs=graphs,
        reliable=values.random(n) > 0.2,
        dihedrals=values.integers(-32768, 32767, (n, 3)).astype(np.int16),
        frames=values.integers(-32768, 32767, (n, 4)).astype(np.int16),
    )


def write_members(folder: Path, members: list[tuple[bytes, bytes]], sample: Sample) -> None:
    """A folder of shards whose single shard holds these members; the index says what `sample` says."""
    write_shards(folder, {"train": [sample] * len(members)})
    packed = [PackedSample(f"m{i}", f, a, len(sample), 0, False) for i, (f, a) in enumerate(members)]
    facts = write_shard(folder / "train-000000.tar", packed)
    manifest, _ = read_manifest(folder)
    split = manifest.splits["train"].model_copy(update={"shards": (facts,)})
    write_sealed(folder / MANIFEST_NAME, manifest.model_copy(update={"splits": {"train": split}}))


def test_lazy_samples_equal_those_that_safetensors_and_json_decode(tmp_path: Path) -> None:
    samples = [full_sample(f"f{i:02d}", 20 + 3 * i, i) for i in range(6)]
    # Older shards hold fewer arrays; both kinds in one shard have different layouts.
    samples += [make_sample(f"g{i:02d}", 25 + i, seed=i) for i in range(3)] + [full_sample("h", 31, 9)]
    write_shards(tmp_path, {"train": samples})
    with ShardReader(tmp_path) as reader:
        for _ in range(2):
            for i, sample in enumerate(samples):
                lazy = reader.sample("train", i)
                assert isinstance(lazy, StoredSample)
                assert_equal(lazy, decode_sample(encode_facts(sample), encode_arrays(sample)))
                assert_equal(reader.sample("train", i), sample)
                assert_equal(sample_of_members(encode_facts(sample), encode_arrays(sample)), sample)


def test_shards_of_schema_1_0_have_none_of_the_later_arrays(folder: Path) -> None:
    with ShardReader(folder) as reader:
        sample = reader.sample("train", 0)
        assert (sample.reliable, sample.dihedrals, sample.frames) == (None, None, None)


def test_arrays_in_another_order_of_another_minor_version_are_read_too(tmp_path: Path) -> None:
    sample = full_sample("a", 33, 1)
    tensors = safetensors.numpy.load(encode_arrays(sample))
    # U32 neighbours stand between the index pointers; `later` is an array that this version does not know.
    wide = {name: array.astype(np.uint32) if name.endswith(".index") else array for name, array in tensors.items()}
    later = {**tensors, "later": np.arange(7.0), "graph.radius8.weights": np.ones(5, dtype=np.float32)}
    spaced = json.dumps({**json.loads(encode_facts(sample)), "threedi_notes": "x"}).encode()
    members = [
        (spaced, safetensors.numpy.save(wide)),
        (encode_facts(sample), safetensors.numpy.save(later, metadata={"maker": "someone"})),
        (spaced, encode_arrays(sample)),
    ]
    write_members(tmp_path, members, sample)
    with ShardReader(tmp_path) as reader:
        for _ in range(2):
            for i in range(3):
                found = reader.sample("train", i)
                graphs = {name: Graph(g.indptr, g.index.astype(np.uint16)) for name, g in found.graphs.items()}
                assert_equal(replace(found, graphs=graphs), replace(sample, graphs=dict(sorted(sample.graphs.items()))))


def test_what_a_sample_gives_out_is_read_only_and_outlives_the_reader(folder: Path) -> None:
    wanted = small_splits()["train"][3]
    with ShardReader(folder) as reader:
        sample = reader.sample("train", 3)
        early = sample.coordinates
    np.testing.assert_array_equal(early, wanted.coordinates)
    assert_equal(sample, wanted)
    with pytest.raises(ValueError, match="read-only"):
        early[0] = 0


def test_stored_samples_pickle_and_are_replaced_as_plain_ones(folder: Path) -> None:
    with ShardReader(folder) as reader:
        sample = reader.sample("train", 2)
        copies = [pickle.loads(pickle.dumps(sample)), replace(sample, cluster=sample.cluster)]
    for copy in copies:
        assert type(copy) is Sample
        assert_equal(copy, small_splits()["train"][2])


def spoilt(sample: Sample) -> dict[str, tuple[bytes, bytes]]:
    """Members that do not fit together, as only a broken writer or damage with hashing off could give them."""
    facts, arrays = encode_facts(sample), encode_arrays(sample)
    tensors, content = safetensors.numpy.load(arrays), json.loads(facts)
    n = len(sample)

    def saved(**changes: Any) -> bytes:
        return safetensors.numpy.save({**tensors, **changes})

    def told(**changes: Any) -> bytes:
        return json.dumps({**content, **changes}, sort_keys=True, separators=(",", ":")).encode()

    size = int.from_bytes(arrays[:8], "little")
    return {
        "sequence too short": (told(sequence=content["sequence"][1:]), arrays),
        "3Di too long": (told(threedi=content["threedi"] + "A"), arrays),
        "no sequence": (json.dumps({"key": "k"}).encode(), arrays),
        "not JSON": (b"{" * 200, arrays),
        "coordinates too short": (facts, saved(coordinates=sample.coordinates[1:])),
        "coordinates of other atoms": (facts, saved(coordinates=sample.coordinates[:, :4].copy())),
        "coordinates as float": (facts, saved(coordinates=sample.coordinates.astype(np.float32))),
        "mask too long": (facts, saved(valid=np.ones(n + 1, dtype=np.uint8))),
        "reliability too short": (facts, saved(reliable=np.ones(n - 1, dtype=np.uint8))),
        "dihedrals of two angles": (facts, saved(dihedrals=np.zeros((n, 2), dtype=np.int16))),
        "graph of other residues": (facts, saved(**{"graph.knn2.indptr": np.zeros(n, dtype=np.uint32)})),
        "graph with other edges": (facts, saved(**{"graph.knn2.index": np.zeros(3, dtype=np.uint16)})),
        "graph without pointers": (facts, saved(**{"graph.x.index": np.zeros(3, dtype=np.uint16)})),
        "no B-factors": (facts, safetensors.numpy.save({k: v for k, v in tensors.items() if k != "bfactor"})),
        "header cut": (facts, arrays[: size // 2]),
        "header length beyond the member": (facts, (1 << 40).to_bytes(8, "little") + arrays[8:]),
        "arrays cut": (facts, arrays[:-10]),
        "bytes behind the arrays": (facts, arrays + b"12345678"),
        "header of garbage": (facts, arrays[:8] + b"x" * size + arrays[8 + size :]),
        "header that is a list": (facts, arrays[:8] + b"[]".ljust(size) + arrays[8 + size :]),
        "empty": (b"", b""),
    }


SPOILT = spoilt(make_sample("k", 30))


@pytest.mark.parametrize("name", SPOILT)
def test_members_that_do_not_fit_together_are_damage_before_they_are_used(tmp_path: Path, name: str) -> None:
    sample = make_sample("k", 30)
    write_members(tmp_path, [(encode_facts(sample), encode_arrays(sample)), SPOILT[name]], sample)
    with ShardReader(tmp_path) as reader:
        assert_equal(reader.sample("train", 0), sample)
        with pytest.raises(DamagedShard, match=r"train-000000\.tar"):
            # All of it, as the fields are decoded on use.
            assert_equal(reader.sample("train", 1), sample)


def test_a_quote_inside_the_letters_is_not_taken_for_their_end(tmp_path: Path) -> None:
    sample = make_sample("k", 30)
    text = encode_facts(sample)
    tail = b'","threedi":"' + sample.threedi.encode() + b'"}'
    assert text.endswith(tail)
    # The last 30 letters now are `AAAA","x":"...`: valid JSON whose own 3Di string is shorter.
    forged = text[: -len(tail)] + b'","threedi":"AAAA","x":"' + b"A" * 19 + b'"}'
    assert len(forged) == len(text)
    json.loads(forged)
    write_members(tmp_path, [(forged, encode_arrays(sample))], sample)
    with ShardReader(tmp_path) as reader, pytest.raises(DamagedShard, match="threedi of 4 letters"):
        len(reader.sample("train", 0).threedi)


def test_an_index_that_points_elsewhere_is_damage(folder: Path) -> None:
    with ShardReader(folder) as reader:
        reader.index("train")
        table = reader.files("train")[0].table
        for column, value in (("arrays_offset", 10**9), ("json_length", -4), ("residues", 7)):
            kept = table[1, COLUMN[column]]
            table[1, COLUMN[column]] = value
            with pytest.raises(DamagedShard, match=r"train-000000\.tar"):
                reader.sample("train", 1)
            table[1, COLUMN[column]] = kept
        assert_equal(reader.sample("train", 1), small_splits()["train"][1])


def test_few_maps_are_open_at_a_time_and_all_samples_stay_readable(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_file, "MAX_OPEN_SHARDS", 2)
    with ShardReader(folder) as reader:
        files = [file for split in reader.splits for file in reader.files(split)]
        samples = {(s, i): reader.sample(s, i) for s in reader.splits for i in range(len(reader.index(s)))}
        assert sum(file.opened is not None for file in files) <= 2 < len(files)
        for (split, i), sample in samples.items():
            assert_equal(sample, small_splits()[split][i])
            assert_equal(reader.sample(split, i), small_splits()[split][i])
