"""The dry run: what a sample says of the whole, against the build itself."""

import pytest

from configs.build import BuildConfig, FilterConfig
from configs.errors import UserError
from configs.source import SourceConfig, SyntheticConfig
from configs.splits import SplitConfig
from data_pipeline.build import run_build
from data_pipeline.estimate import START_SECONDS, dry_run, predict, spread
from data_pipeline.inputs import read_inputs
from data_pipeline.report import print_dry_run
from data_pipeline.synthetic.entries import write_synthetic

STRUCTURES = SyntheticConfig(num_folds=3, families_per_fold=2, members_per_family=4, max_residues=100)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> BuildConfig:
    folder = tmp_path_factory.mktemp("estimate")
    write_synthetic(STRUCTURES, folder / "structures")
    source = SourceConfig(kind="files", path=str(folder / "structures"))
    return BuildConfig(source=source, split=SplitConfig(method="kmers"), output=folder / "shards")


def test_a_dry_run_writes_nothing_and_names_what_the_build_then_makes(config: BuildConfig, ray_cluster: str) -> None:
    found = dry_run(config, workers=2)
    assert not config.output.exists()
    manifest = run_build(config).manifest
    residues = sum(split.residues for split in manifest.splits.values())
    shard_bytes = sum(shard.bytes for split in manifest.splits.values() for shard in split.shards)
    assert found.sampled == manifest.source.entries
    # Every entry was sampled, so only duplicates, which a sample cannot know, and the tars' ends differ.
    assert found.prediction.chains == pytest.approx(manifest.kept, rel=0.1)
    assert found.prediction.residues == pytest.approx(residues, rel=0.1)
    assert found.prediction.shard_bytes == pytest.approx(shard_bytes, rel=0.15)
    assert found.prediction.core_hours > 0


def test_a_prediction_is_linear_in_entries_and_shared_by_workers(config: BuildConfig) -> None:
    costs = dry_run(config, workers=1, sampled=6).costs
    one, ten = predict(costs, 1000, 1), predict(costs, 10_000, 10)
    assert ten.core_hours == pytest.approx(10 * one.core_hours)
    # Ray starts once in either case.
    assert ten.hours == pytest.approx(one.hours)
    assert one.hours * 3600 > START_SECONDS
    assert ten.shard_bytes == pytest.approx(10 * one.shard_bytes)
    assert ten.driver_bytes == pytest.approx(10 * one.driver_bytes)


def test_a_sample_is_spread_evenly_and_never_repeats(config: BuildConfig) -> None:
    inputs = read_inputs(config)
    few = spread(inputs, 5)
    assert len({entry.name for entry in few.entries}) == 5
    assert few.entries[0] == inputs.entries[0]
    assert spread(inputs, 10**6).entries == inputs.entries


def test_a_source_without_a_usable_chain_is_told_before_the_build(config: BuildConfig) -> None:
    nothing = config.model_copy(update={"filters": FilterConfig(min_residues=4000)})
    with pytest.raises(UserError, match=r"none of 24 sampled entries .* too_short"):
        dry_run(nothing, workers=2)


def test_the_table_tells_time_disk_and_memory(config: BuildConfig, capsys: pytest.CaptureFixture[str]) -> None:
    print_dry_run(dry_run(config, workers=2, sampled=4))
    printed = capsys.readouterr().out
    for words in ("4 of 24 entries", "time with 2 workers", "shards", "memory of the driver", "microseconds per"):
        assert words in printed
