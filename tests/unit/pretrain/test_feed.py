"""The feed: what a run reads after a restart is what it would have read."""

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from configs.errors import UserError
from configs.train import DataConfig
from data_pipeline.reader import ShardReader
from pretrain.feed import chosen_chains, epoch_planner, pool_stream, prefetch
from pretrain.sampler import Crop, Position
from tests.unit.pretrain.training import make_config, write_task


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
