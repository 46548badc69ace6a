"""The feed: what a run reads after a restart is what it would have read."""

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from configs.errors import UserError
from configs.training_data import DataConfig
from data_pipeline.reader import ShardReader
from pretrain.collate import Item, collate
from pretrain.feed import FetchAhead, chosen_chains, epoch_planner, open_shards, pool_stream, prefetch
from pretrain.sampler import Crop, Position, rank_crops
from pretrain.vocab import alphabet
from tests.unit.pretrain.training import make_chain, make_config, write_task


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("feed")
    write_task(folder)
    return folder


def stream(config: DataConfig, position: Position, rank: int = 0, world_size: int = 1) -> Iterator:
    reader = ShardReader(config.shards)

    def make(crops: list[Crop], epoch: int) -> tuple:
        return epoch, tuple(crops)

    return pool_stream(epoch_planner(reader, config, 5), make, position, rank, world_size)


def test_a_stream_from_a_saved_position_continues_the_first_one(task: Path) -> None:
    config = make_config(task).data
    whole = list(itertools.islice(stream(config, Position()), 15))
    assert whole[-1].position.epoch >= 1, "the test must cross an epoch"
    for k, fed in enumerate(whole[:-1]):
        following = next(stream(config, fed.position))
        assert following == whole[k + 1]


def test_ranks_together_read_what_one_rank_reads_and_know_the_pool_s_tokens(task: Path) -> None:
    config = make_config(task).data
    alone = next(stream(config, Position()))
    shares = [next(stream(config, Position(), rank, 2)) for rank in range(2)]
    assert sorted(crop for share in shares for crop in share.batch[1]) == sorted(alone.batch[1])
    assert {share.num_tokens for share in shares} == {alone.num_tokens}
    assert alone.num_tokens == sum(crop.length + 2 for crop in alone.batch[1])


def test_the_high_quality_subset_holds_only_its_chains(task: Path) -> None:
    config = make_config(task, data__high_quality_only=True).data
    numbers, residues = chosen_chains(ShardReader(config.shards), config)
    assert numbers.tolist() == list(range(0, 24, 2))
    assert residues.tolist() == [ShardReader(config.shards).index("train").residues[i] for i in numbers]


def test_a_split_that_is_not_there_is_named(task: Path) -> None:
    config = make_config(task, data__split="validatoin").data
    with pytest.raises(UserError, match=r"'validatoin'.*allowed: train"):
        chosen_chains(ShardReader(config.shards), config)


def test_prefetch_keeps_order_and_ends() -> None:
    assert list(prefetch(iter(range(50)))) == list(range(50))


def test_prefetch_raises_what_the_source_raised_after_the_values_before_it() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise UserError("shard is damaged")

    feed = prefetch(source())
    assert next(feed) == 1
    with pytest.raises(UserError, match="shard is damaged"):
        next(feed)


def test_closing_a_prefetch_ends_its_thread() -> None:
    feed = prefetch(itertools.count())
    assert next(feed) == 0
    feed.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_shapes_of_the_planner_are_integers(task: Path) -> None:
    config = make_config(task).data
    plan = epoch_planner(ShardReader(config.shards), config, 0)(0)
    assert {plan.samples.dtype, plan.starts.dtype, plan.lengths.dtype, plan.packs.dtype} == {np.dtype(np.int64)}


def remote_config(task: Path, cache: Path, **overrides: object) -> DataConfig:
    """The task's shards by URL, through a cache that holds two of the three at a time."""
    sizes = [path.stat().st_size for path in (task / "shards").glob("*.tar")]
    settings = {
        "data__shards": f"file://{task / 'shards'}",
        "data__cache": {"folder": str(cache), "gigabytes": (sum(sizes) - 1000) / 1e9},
    }
    return make_config(task, **settings, **overrides).data


def batches(config: DataConfig, position: Position, rank: int, world_size: int) -> Iterator:
    reader = open_shards(config)
    clusters = reader.index("train").cluster

    def make(crops: list[Crop], epoch: int) -> dict:
        items = [Item(c, reader.sample("train", c.sample), int(clusters[c.sample]), None) for c in crops]
        batch = collate(items, alphabet("esm2"), 0.15, 5, epoch)
        return {c.sample: batch.packed.tokens[batch.residue_index[batch.protein == c.sample]].tolist() for c in crops}

    return pool_stream(epoch_planner(reader, config, 5), make, position, rank, world_size)


@pytest.mark.parametrize("window", [None, 1])
def test_remote_shards_resume_exactly_at_any_position_and_world_size(
    task: Path, tmp_path: Path, window: int | None
) -> None:
    local = make_config(task, data__shuffle_window_shards=window).data
    remote = remote_config(task, tmp_path / "cache", data__shuffle_window_shards=window)
    whole = list(itertools.islice(batches(local, Position(), 0, 1), 12))
    assert whole[-1].position.epoch >= 1, "the test must cross an epoch"
    for k in (0, 3, 7, 10):
        shares = [next(batches(remote, whole[k].position, rank, 2)) for rank in range(2)]
        assert shares[0].batch | shares[1].batch == whole[k + 1].batch
        assert {share.position for share in shares} == {whole[k + 1].position}


def test_windows_of_shards_need_the_planner_to_know_the_shards(task: Path) -> None:
    config = make_config(task, data__shuffle_window_shards=1).data
    reader = ShardReader(config.shards)
    plan = epoch_planner(reader, config, 5)(0)
    shards = reader.index("train").shard[plan.samples]
    # Three shards of ten, ten and four chains: apart from what goes on to the next window, one after another.
    assert (np.diff(shards) != 0).sum() < len(shards) / 2
    assert sorted(plan.samples.tolist()) == list(range(24))


class CountingReader:
    """Stands for a reader of remote shards of one chain each; remembers what it was asked for."""

    def __init__(self, shards_ahead: int) -> None:
        self.shards_ahead = shards_ahead
        self.asked: list[int] = []

    def prefetch(self, split: str, numbers: list[int]) -> int:
        new = [number for number in numbers if number not in self.asked]
        self.asked += new
        return len(new)


def test_shards_are_asked_for_in_order_of_use_and_not_too_many_at_a_time(task: Path) -> None:
    config = make_config(task).data
    plan = epoch_planner(ShardReader(config.shards), config, 5)(0)
    used = [[crop.sample for crop in rank_crops(pool, 0, 1)] for pool in plan]
    reader = CountingReader(shards_ahead=6)
    ahead = FetchAhead(reader, "train", plan, 1, 0, 1)
    for pool in range(1, len(plan)):
        ahead.before(pool)
        due = [number for numbers in used[1 : pool + 1] for number in numbers]
        assert reader.asked[: len(due)] == due, "what is due was asked for"
        waiting = len(reader.asked) - len(due) + len(used[pool])
        assert waiting >= 6 or len(reader.asked) == sum(map(len, used[1:]))
        assert waiting < 6 + max(map(len, used))


def test_a_url_stays_a_url_and_a_folder_becomes_a_path(tmp_path: Path) -> None:
    config = make_config(tmp_path, data__shards="s3://bucket/some/shards").data
    assert config.shards == "s3://bucket/some/shards"
    assert make_config(tmp_path, data__shards="data/shards").data.shards == Path("data/shards")
    with pytest.raises(ValueError, match="loses a slash"):
        DataConfig(shards=Path("s3://bucket/shards"))


def test_a_chain_s_crop_reads_the_same_from_shards_as_from_memory(task: Path) -> None:
    with open_shards(make_config(task).data) as reader:
        for number in range(3):
            sample = make_chain(number)
            stored = [Item(Crop(number, 2, 15), each, 0, None) for each in (sample, reader.sample("train", number))]
            one, other = (collate([item], alphabet("esm2"), 0.15, 0, 0) for item in stored)
            assert one.packed.tokens.tolist() == other.packed.tokens.tolist()
            assert one.threedi.tolist() == other.threedi.tolist()
            assert one.structure_valid.tolist() == other.structure_valid.tolist()
