"""The shards are standard WebDataset tars: its own reader finds the same samples."""

from pathlib import Path

import pytest

from data_pipeline.reader import ShardReader
from data_pipeline.schema import decode_sample
from tests.unit.data_pipeline.samples import write_small_shards


def test_webdataset_reads_the_same_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without it webdataset may run pickles and shell pipes named by its input.
    monkeypatch.setenv("WDS_SECURE", "1")
    import webdataset

    manifest = write_small_shards(tmp_path)
    paths = [str(tmp_path / shard.name) for shard in manifest.splits["train"].shards]
    samples = list(webdataset.WebDataset(paths, shardshuffle=False))
    with ShardReader(tmp_path) as reader:
        assert [s["__key__"] for s in samples] == [reader.key("train", i) for i in range(len(reader.index("train")))]
        for i, sample in enumerate(samples):
            assert decode_sample(sample["json"], sample["safetensors"]).sequence == reader.sample("train", i).sequence
