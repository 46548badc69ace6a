"""Remote shards: fetched into a bounded cache, checked on arrival, retried, shared between processes."""

import fcntl
import hashlib
import multiprocessing
import os
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from tenacity import wait_none

from configs.errors import UserError
from configs.training_data import CacheConfig
from data_pipeline import shard_cache
from data_pipeline.derived import DerivedReader, DerivedWriter
from data_pipeline.manifest import Manifest
from data_pipeline.reader import DamagedShard, ShardReader
from data_pipeline.shard_cache import ShardCache, default_folder, is_url
from tests.unit.data_pipeline.remote_shards import URL, Failing, cache_config, cached_bytes, read_all, sequences, upload
from tests.unit.data_pipeline.samples import write_small_shards


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_cache, "RETRY_WAIT", wait_none())
    monkeypatch.setattr(shard_cache, "PATIENCE_SECONDS", 0.2)


@pytest.fixture
def manifest(tmp_path: Path) -> Iterator[Manifest]:
    """Small shards in fsspec's memory file system; the local copy stays in tmp_path/local."""
    found = write_small_shards(tmp_path / "local")
    upload(tmp_path / "local")
    yield found
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


def test_remote_shards_read_like_local_ones(manifest: Manifest, tmp_path: Path) -> None:
    with ShardReader(tmp_path / "local") as local, ShardReader(URL, cache=cache_config(tmp_path)) as remote:
        assert (remote.splits, remote.manifest_sha256) == (local.splits, local.manifest_sha256)
        for split in local.splits:
            for i in range(len(local.index(split))):
                one, other = local.sample(split, i), remote.sample(split, i)
                assert (one.key, one.sequence, one.facts) == (other.key, other.sequence, other.facts)
                np.testing.assert_array_equal(one.coordinates, other.coordinates)


class QuietHandler(SimpleHTTPRequestHandler):
    """Python's own web server, which gives whole files only."""

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize("scheme", ["file", "http"])
def test_other_kinds_of_address_are_read_alike(tmp_path: Path, scheme: str) -> None:
    write_small_shards(tmp_path / "local")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(tmp_path / "local")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"file://{tmp_path / 'local'}" if scheme == "file" else f"http://127.0.0.1:{server.server_address[1]}"
    try:
        with ShardReader(url, cache=cache_config(tmp_path)) as reader:
            assert read_all(reader) == sequences()
    finally:
        server.shutdown()
        server.server_close()
    if scheme == "http":
        with pytest.raises(UserError, match="cannot be read after 2 attempts"):
            ShardReader(url, cache=cache_config(tmp_path, attempts=2))


def test_a_second_reader_downloads_nothing(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Failing(monkeypatch, 0, None)
    for _ in range(2):
        with ShardReader(URL, cache=cache_config(tmp_path)) as reader:
            assert read_all(reader) == sequences()
    assert counting.opened == len(manifest.splits["train"].shards)


def test_a_failing_storage_is_asked_again(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Failing(monkeypatch, 3, ConnectionResetError("reset by peer"))
    with ShardReader(URL, cache=cache_config(tmp_path)) as reader:
        assert read_all(reader) == sequences()


def test_a_storage_that_stays_away_is_one_clear_error_and_leaves_nothing(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Failing(monkeypatch, 1000, ConnectionResetError("reset by peer"))
    message = r"train-000000\.tar: cannot be read after 4 attempts .*reset by peer"
    with ShardReader(URL, cache=cache_config(tmp_path, attempts=4)) as reader, pytest.raises(UserError, match=message):
        reader.sample("train", 0)
    assert failing.opened == 4
    assert cached_bytes(tmp_path) == 0


def test_other_bytes_than_the_manifest_s_are_fetched_again_and_never_used(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Failing(monkeypatch, 1, None)
    with ShardReader(URL, cache=cache_config(tmp_path)) as reader:
        assert read_all(reader) == sequences()
    shutil.rmtree(tmp_path / "cache")
    Failing(monkeypatch, 1000, None)
    with ShardReader(URL, cache=cache_config(tmp_path)) as reader, pytest.raises(UserError, match="not those"):
        reader.sample("train", 0)
    assert cached_bytes(tmp_path) == 0


def test_a_flipped_bit_on_storage_is_detected(manifest: Manifest, tmp_path: Path) -> None:
    path = "/bucket/shards/train-000001.tar"
    memory = fsspec.filesystem("memory")
    whole = bytearray(memory.cat_file(path))
    whole[len(whole) // 2] ^= 1
    memory.pipe_file(path, bytes(whole))
    with ShardReader(URL, verify=False, cache=cache_config(tmp_path)) as reader:
        reader.sample("train", 0)
        with pytest.raises(UserError, match=r"train-000001\.tar"):
            reader.sample("train", 4)


def test_a_copy_that_was_damaged_in_the_cache_is_replaced(manifest: Manifest, tmp_path: Path) -> None:
    with ShardReader(URL, cache=cache_config(tmp_path)) as reader:
        read_all(reader)
    for path in (tmp_path / "cache").glob("*.tar"):
        whole = bytearray(path.read_bytes())
        whole[700] ^= 4
        path.write_bytes(bytes(whole))
    with ShardReader(URL, cache=cache_config(tmp_path)) as reader:
        assert read_all(reader) == sequences()
    for path in (tmp_path / "cache").glob("*.tar"):
        if path.stem in {shard.sha256 for shard in manifest.splits["train"].shards}:
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem


def test_a_shard_that_is_gone_names_the_file(manifest: Manifest, tmp_path: Path) -> None:
    fsspec.filesystem("memory").rm("/bucket/shards/test-000000.tar")
    with (
        ShardReader(URL, cache=cache_config(tmp_path)) as reader,
        pytest.raises(DamagedShard, match=r"test-000000\.tar"),
    ):
        reader.sample("test", 0)


def test_an_address_without_shards_and_one_of_unknown_kind_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no manifest\.json"):
        ShardReader("memory://bucket/nothing", cache=cache_config(tmp_path))
    with pytest.raises(UserError, match="gopher"):
        ShardReader("gopher://bucket/nothing", cache=cache_config(tmp_path))


def two_shards(manifest: Manifest) -> float:
    """Gigabytes that hold any two of the three training shards, not all."""
    return (sum(shard.bytes for shard in manifest.splits["train"].shards) - 1000) / 1e9


def test_the_cache_stays_below_its_limit_and_forgets_the_least_recently_used(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = two_shards(manifest)
    counting = Failing(monkeypatch, 0, None)
    with ShardReader(URL, cache=cache_config(tmp_path, gigabytes=limit)) as reader:
        first = [reader.sample("train", i).sequence for i in (0, 4, 8)]
        assert cached_bytes(tmp_path) <= limit * 1e9
        assert counting.opened == 3
        again = [reader.sample("train", i).sequence for i in (4, 8, 0)]
        assert counting.opened == 4, "only the shard that was used longest ago had to go"
        assert cached_bytes(tmp_path) <= limit * 1e9
    assert [again[2], again[0], again[1]] == first == [sequences()[i] for i in (0, 4, 8)]


def test_a_sample_stays_readable_after_its_shard_left_the_cache(manifest: Manifest, tmp_path: Path) -> None:
    with ShardReader(URL, cache=cache_config(tmp_path, gigabytes=two_shards(manifest))) as reader:
        early = [reader.sample("train", 0)]
        coordinates = early[0].coordinates
        del early[0]
        copy = coordinates.copy()
        for i in (4, 8, 4, 8):
            reader.sample("train", i)
        np.testing.assert_array_equal(coordinates, copy)


def hold(folder: str, name: str, ready: Any, stop: Any) -> None:
    with (Path(folder) / name).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        ready.set()
        stop.wait(60)


def test_a_shard_that_another_process_uses_is_never_removed(manifest: Manifest, tmp_path: Path) -> None:
    config = cache_config(tmp_path, gigabytes=two_shards(manifest))
    shards = manifest.splits["train"].shards
    with ShardReader(URL, cache=config) as reader:
        reader.sample("train", 0)
    context = multiprocessing.get_context("fork")
    ready, stop = context.Event(), context.Event()
    other = context.Process(target=hold, args=(str(config.folder), f"{shards[0].sha256}.tar", ready, stop))
    other.start()
    try:
        assert ready.wait(30)
        with ShardReader(URL, cache=config) as reader:
            for i in (4, 8, 4, 8):
                reader.sample("train", i)
            assert (tmp_path / "cache" / f"{shards[0].sha256}.tar").exists()
        small = config.model_copy(update={"gigabytes": 1.5 * shards[0].bytes / 1e9})
        with ShardReader(URL, cache=small) as reader, pytest.raises(UserError, match=r"in use.*data\.cache\.gigabytes"):
            reader.sample("train", 4)
    finally:
        stop.set()
        other.join()


def test_a_shard_larger_than_the_cache_is_an_error_that_names_the_setting(manifest: Manifest, tmp_path: Path) -> None:
    small = cache_config(tmp_path, gigabytes=1e-6)
    with ShardReader(URL, cache=small) as reader, pytest.raises(UserError, match=r"data\.cache\.gigabytes"):
        reader.sample("train", 0)


def test_what_a_killed_download_left_is_taken_over(manifest: Manifest, tmp_path: Path) -> None:
    shards = manifest.splits["train"].shards
    (tmp_path / "cache").mkdir()
    for shard in shards[:2]:
        (tmp_path / "cache" / f"{shard.sha256}.part").write_bytes(b"half of it")
    limit = two_shards(manifest)
    with ShardReader(URL, cache=cache_config(tmp_path, gigabytes=limit)) as reader:
        assert reader.sample("train", 8).sequence == sequences()[8]
        assert reader.sample("train", 0).sequence == sequences()[0]
        assert cached_bytes(tmp_path) <= limit * 1e9
    assert not (tmp_path / "cache" / f"{shards[0].sha256}.part").exists()


def read_in_process(folder: str, local: str, limit: float, seed: int, failures: Any) -> None:
    try:
        with ShardReader(f"file://{local}", cache=CacheConfig(folder=Path(folder), gigabytes=limit)) as reader:
            wanted = sequences()
            for i in np.random.default_rng(seed).integers(0, len(wanted), 60).tolist():
                assert reader.sample("train", i).sequence == wanted[i]
    except BaseException as error:
        failures.put(repr(error))
        raise


def test_processes_that_share_a_small_cache_read_the_right_samples(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Waiting for room that others hold is part of this.
    monkeypatch.setattr(shard_cache, "PATIENCE_SECONDS", 60.0)
    context = multiprocessing.get_context("fork")
    failures = context.SimpleQueue()
    arguments = (str(tmp_path / "cache"), str(tmp_path / "local"), two_shards(manifest))
    workers = [context.Process(target=read_in_process, args=(*arguments, seed, failures)) for seed in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert failures.empty(), failures.get()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert cached_bytes(tmp_path) <= two_shards(manifest) * 1e9
    assert not list((tmp_path / "cache").glob("*.part"))


def test_threads_that_want_the_same_shard_download_it_once(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Failing(monkeypatch, 0, None)
    with ShardReader(URL, cache=cache_config(tmp_path)) as reader:
        file = reader.files("train")[0]
        threads = [threading.Thread(target=file.fetch) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert counting.opened == 1


def test_prefetch_brings_shards_in_order_of_use_before_they_are_read(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Failing(monkeypatch, 0, None)
    with ShardReader(URL, cache=cache_config(tmp_path)) as reader:
        assert reader.prefetch("train", [9, 1, 8, 0]) == 2
        for download in list(reader._under_way.values()):
            download.result(30)
        assert counting.opened == 2
        assert reader.prefetch("train", [9, 1]) == 0
        for i in (9, 1, 8, 0):
            assert reader.sample("train", i).sequence == sequences()[i]
        assert counting.opened == 2


def test_a_process_keeps_only_a_part_of_the_cache_open(manifest: Manifest, tmp_path: Path) -> None:
    largest = max(shard.bytes for shard in manifest.splits["train"].shards)
    with ShardReader(URL, cache=cache_config(tmp_path, gigabytes=16 * 2.1 * largest / 1e9)) as reader:
        for _ in range(2):
            assert read_all(reader) == sequences()
        assert [file.opened is not None for file in reader.files("train")] == [False, True, True]
    with ShardReader(URL, cache=cache_config(tmp_path, gigabytes=1.0)) as reader:
        read_all(reader)
        assert all(file.opened is not None for file in reader.files("train"))


def test_prefetch_of_a_local_folder_does_nothing(tmp_path: Path) -> None:
    write_small_shards(tmp_path)
    with ShardReader(tmp_path) as reader:
        assert (reader.prefetch("train", [0]), reader.shards_ahead) == (0, 0)


def test_shards_ahead_take_no_more_than_a_third_of_the_cache(manifest: Manifest, tmp_path: Path) -> None:
    largest = max(shard.bytes for shard in manifest.splits["train"].shards)
    config = cache_config(tmp_path, gigabytes=9.5 * largest / 1e9)
    with ShardReader(URL, cache=config) as reader:
        assert reader.shards_ahead == 3
    with ShardReader(URL, cache=config.model_copy(update={"shards_ahead": 2})) as reader:
        assert reader.shards_ahead == 2


def test_derived_columns_of_remote_shards_are_read_through_the_cache(manifest: Manifest, tmp_path: Path) -> None:
    with ShardReader(tmp_path / "local") as base, DerivedWriter(base, "teacher", {"width": 2}) as writer:
        for i, n in enumerate(base.index("train").residues.tolist()):
            writer.write("train", i, {"embedding": np.full((n, 2), i, dtype=np.float16)})
    with ShardReader(URL, cache=cache_config(tmp_path)) as remote:
        with pytest.raises(UserError, match="derived column 'teacher'"):
            DerivedReader(remote, "teacher")
        fsspec.filesystem("memory").put(str(tmp_path / "local" / "derived"), "/bucket/shards/derived", recursive=True)
        with DerivedReader(remote, "teacher") as column:
            assert [column.arrays("train", i)["embedding"][0, 0] for i in range(10)] == list(range(10))


def test_nothing_is_written_to_remote_storage(manifest: Manifest, tmp_path: Path) -> None:
    with ShardReader(URL, cache=cache_config(tmp_path)) as remote:
        writer = DerivedWriter(remote, "teacher", {})
        with pytest.raises(UserError, match="read only"):
            writer.write("train", 0, {"embedding": np.zeros((1, 1))})


def test_a_full_disk_is_a_clear_error(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "posix_fallocate", full)
    message = r"no space left.*data\.cache\.folder"
    with ShardReader(URL, cache=cache_config(tmp_path)) as reader, pytest.raises(UserError, match=message):
        reader.sample("train", 0)


def test_the_default_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "saplm" / "shards"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache" / "saplm" / "shards"


def test_a_file_removed_between_asking_and_opening_is_noticed(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 1000)
    assert cache.open("0" * 64) is None
    assert not cache.holds("0" * 64)
    cache.add("0" * 64, 3, lambda file: file.write(b"abc") and None)
    file = cache.open("0" * 64)
    assert file is not None
    with file:
        assert file.read() == b"abc"


def test_urls_are_told_from_paths() -> None:
    assert is_url("s3://bucket/shards")
    assert is_url("file:///data/shards")
    assert not is_url("data/shards")
    assert not is_url(Path("data"))
