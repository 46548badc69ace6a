"""Chains as tasks see them."""

from pathlib import Path

import numpy as np
import pytest

from configs.errors import UserError
from configs.evaluate import EvalDataConfig
from data_pipeline.reader import ShardReader
from data_pipeline.shards import write_shards
from data_pipeline.structure.secondary import secondary_structure
from eval.data import example_of, load_data
from tests.unit.eval.makers import make_sample, write_test_shards


def test_a_crop_keeps_the_labels_that_the_whole_chain_gave() -> None:
    sample = make_sample("a_A", 3, seed=1, num_residues=60)
    example = example_of(sample, 25)
    whole = secondary_structure(sample.angstrom(), sample.sequence)
    assert len(example) == 25
    assert example.sequence == sample.sequence[:25]
    assert np.array_equal(example.secondary, whole[:25])
    assert np.array_equal(example.threedi, sample.threedi_states()[:25])
    assert example.threedi[0] == -1
    assert {0, 1} & set(whole.tolist()), "the made chain has secondary structure"


def test_a_limit_draws_the_same_chains_every_time(tmp_path: Path) -> None:
    write_test_shards(tmp_path)
    with ShardReader(tmp_path) as reader:
        config = EvalDataConfig(shards=tmp_path, max_fit_chains=5, max_test_chains=2)
        first, again, other = (load_data(reader, config, seed) for seed in (0, 0, 1))
    keys = [[example.key for example in data.fit] for data in (first, again, other)]
    assert keys[0] == keys[1] != keys[2]
    assert len(keys[0]) == 5
    assert keys[0] == sorted(keys[0])
    assert len(first.test) == 2


def test_probes_are_not_fitted_on_the_split_they_are_tested_on(tmp_path: Path) -> None:
    write_test_shards(tmp_path)
    with ShardReader(tmp_path) as reader, pytest.raises(UserError, match="another split"):
        load_data(reader, EvalDataConfig(shards=tmp_path, split="train"), 0)


def test_a_cluster_in_both_splits_is_refused(tmp_path: Path) -> None:
    splits = {"train": [make_sample("a_A", 7, 0)], "test": [make_sample("b_A", 7, 1)]}
    write_shards(tmp_path, splits, samples_per_shard=4)
    with ShardReader(tmp_path) as reader, pytest.raises(UserError, match="1 sequence clusters stand in both"):
        load_data(reader, EvalDataConfig(shards=tmp_path), 0)


def test_a_split_that_does_not_exist_is_named_with_those_that_do(tmp_path: Path) -> None:
    write_test_shards(tmp_path)
    with ShardReader(tmp_path) as reader, pytest.raises(UserError, match=r"'validation'.*allowed: .*test"):
        load_data(reader, EvalDataConfig(shards=tmp_path, split="validation"), 0)
