"""Pools: deterministic, complete, tight, and the same at any world size."""

import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.training_data import DataConfig
from pretrain.sampler import SPECIAL_TOKENS, Plan, Position, keyed_uniform, plan_epoch, rank_crops


def data_config(
    max_residues: int = 510, pack_tokens: int = 2048, packs_per_pool: int = 4, window: int | None = None
) -> DataConfig:
    return DataConfig(
        shards=Path("shards"),
        max_residues=max_residues,
        pack_tokens=pack_tokens,
        packs_per_pool=packs_per_pool,
        shuffle_window_shards=window,
    )


def real_mix(num_chains: int) -> np.ndarray:
    """Lengths spread like those of protein chains: log-normal around 200, from 30 to 3000."""
    return np.clip(np.random.default_rng(7).lognormal(5.3, 0.6, num_chains), 30, 3000).astype(np.int64)


def pack_sizes(plan: Plan) -> np.ndarray:
    return np.add.reduceat(plan.lengths + SPECIAL_TOKENS, plan.packs[:-1])


def test_packs_fill_their_budget_on_a_real_mix_of_lengths() -> None:
    for max_residues, budget in ((510, 2048), (2046, 2048), (1022, 4096)):
        plan = plan_epoch(real_mix(10_000), 0, 0, data_config(max_residues, budget))
        assert pack_sizes(plan).sum() / (len(plan.packs) - 1) / budget >= 0.98


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 900), min_size=1, max_size=60),
    packs_per_pool=st.integers(1, 5),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 1000),
)
def test_every_chain_is_seen_once_within_the_budget(
    lengths: list[int], packs_per_pool: int, seed: int, epoch: int
) -> None:
    config = data_config(packs_per_pool=packs_per_pool)
    plan = plan_epoch(np.array(lengths), seed, epoch, config)
    pools = list(plan)
    assert all(len(pool) == packs_per_pool and all(pool) for pool in pools), "a pool is whole, no pack is empty"
    seen = [crop.sample for pool in pools for pack in pool for crop in pack]
    assert set(seen) == set(range(len(lengths)))
    if len(lengths) >= packs_per_pool:
        assert len(seen) == len(lengths)
    for crop in (crop for pool in pools for pack in pool for crop in pack):
        assert crop.length == min(lengths[crop.sample], config.max_residues)
        assert 0 <= crop.start <= lengths[crop.sample] - crop.length
    assert pack_sizes(plan).max() <= config.pack_tokens


def test_chains_meet_others_in_the_next_epoch() -> None:
    """By falling length alone all pairs of a pack met again in every epoch of less than 4,096 chains."""

    def pairs(epoch: int) -> set[tuple[int, int]]:
        plan = plan_epoch(real_mix(1000), 0, epoch, data_config(2046, 2048))
        packs = np.split(plan.samples, plan.packs[1:-1])
        return {pair for pack in packs for pair in itertools.combinations(sorted(pack.tolist()), 2)}

    first, second = pairs(0), pairs(1)
    # 0.01 would be chance; 0.1 is what full packs cost.
    assert len(first & second) / len(first) < 0.2


def test_the_same_seed_and_epoch_give_the_same_pools_and_others_give_others() -> None:
    lengths, config = real_mix(300), data_config()
    first = list(plan_epoch(lengths, 3, 5, config))
    assert first == list(plan_epoch(lengths, 3, 5, config))
    assert first != list(plan_epoch(lengths, 3, 6, config))
    assert first != list(plan_epoch(lengths, 4, 5, config))


def test_ranks_share_a_pool_without_overlap_at_any_world_size() -> None:
    pool = plan_epoch(real_mix(300), 0, 0, data_config())[0]
    whole = sorted(crop for pack in pool for crop in pack)
    for world_size in (1, 2, 4):
        shares = [rank_crops(pool, rank, world_size) for rank in range(world_size)]
        assert all(shares)
        assert sorted(crop for share in shares for crop in share) == whole


def test_a_subset_keeps_the_numbers_and_crops_of_its_chains() -> None:
    lengths, config = real_mix(400), data_config(max_residues=100)
    starts = {crop.sample: crop.start for pool in plan_epoch(lengths, 1, 2, config) for pack in pool for crop in pack}
    subset = np.arange(0, 400, 3)
    for pool in plan_epoch(lengths[subset], 1, 2, config, subset):
        for crop in (crop for pack in pool for crop in pack):
            assert crop.start == starts[crop.sample]
    assert len(set(starts.values())) > 50, "crops start at random places"


def test_chains_fewer_than_packs_repeat_so_that_no_rank_is_empty() -> None:
    (pool,) = plan_epoch(np.array([50, 60]), 0, 0, data_config(packs_per_pool=4))
    assert [len(pack) for pack in pool] == [1, 1, 1, 1]


FROZEN_PLAN = "26b18eaf565b44463433800dd9142bb743c3ef23be142856a23e37b6f169aa28"
"""500 chains, epoch 3, seed 5, as the first version made it: a run that is resumed must see the same pools."""


def test_a_plan_stays_what_unfinished_runs_continue_with() -> None:
    plan = plan_epoch(real_mix(9000)[:500], 5, 3, data_config(2046, 2048, 3))
    columns = (plan.samples, plan.starts, plan.lengths, plan.packs)
    assert hashlib.sha256(b"".join(column.tobytes() for column in columns)).hexdigest() == FROZEN_PLAN


def test_windows_of_shards_see_every_chain_once_and_few_shards_at_a_time() -> None:
    lengths, shards = real_mix(9000), np.arange(9000) // 256
    plan = plan_epoch(lengths, 0, 0, data_config(window=3), shards=shards)
    assert sorted(plan.samples.tolist()) == list(range(9000))
    assert pack_sizes(plan).sum() / (len(plan.packs) - 1) / 2048 >= 0.98
    order = shards[plan.samples]
    first = {shard: int(np.argmax(order == shard)) for shard in range(36)}
    windows = [set(group) for group in np.array_split(sorted(first, key=first.get), 12)]
    for number, window in enumerate(windows):
        places = np.flatnonzero(np.isin(order, list(window)))
        # Chains that would leave a pack ill filled go on to the next window, none further.
        assert set(order[places[0] : places[-1] + 1]) <= set().union(*windows[max(number - 1, 0) : number + 2])
    assert sorted(first, key=first.get) != list(range(36)), "shards come in shuffled order"
    within = plan.samples[order == 5]
    assert within.tolist() != sorted(within.tolist()), "chains of a shard come in shuffled order"


def test_windows_differ_by_epoch_and_not_by_anything_else() -> None:
    lengths, shards, config = real_mix(900), np.arange(900) // 64, data_config(window=2)
    first = list(plan_epoch(lengths, 3, 5, config, shards=shards))
    assert first == list(plan_epoch(lengths, 3, 5, config, shards=shards))
    assert first != list(plan_epoch(lengths, 3, 6, config, shards=shards))


def test_one_window_over_all_shards_mixes_like_the_global_shuffle() -> None:
    lengths, shards = real_mix(3000), np.arange(3000) // 256
    window, everything = (
        plan_epoch(lengths, 0, 0, data_config(window=width), shards=shards) for width in (len(shards), None)
    )
    same, wanted = (np.mean(np.diff(shards[plan.samples]) == 0) for plan in (window, everything))
    # Two fractions of 3000 neighbours each, about 0.26: five standard errors of their difference.
    assert same == pytest.approx(wanted, abs=5 * np.sqrt(2 * 0.26 * 0.74 / 3000))


def test_position_moves_to_the_next_epoch_after_the_last_pool() -> None:
    assert Position(2, 0).after(2) == Position(2, 1)
    assert Position(2, 1).after(2) == Position(3, 0)


def test_keyed_noise_is_uniform_and_depends_on_every_key() -> None:
    noise = keyed_uniform(1, 2, np.arange(100_000))
    # The mean of 1e5 uniforms has a standard error of 9e-4; a lag correlation one of 3e-3: five of each.
    assert noise.mean() == pytest.approx(0.5, abs=5e-3)
    assert np.corrcoef(noise[:-1], noise[1:])[0, 1] == pytest.approx(0, abs=2e-2)
    keys = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    values = {float(keyed_uniform(a, b, np.array([c]), d)[0]) for a, b, c, d in keys}
    assert len(values) == len(keys)
