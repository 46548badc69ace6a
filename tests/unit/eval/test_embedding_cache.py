"""The cache on disk: many writers, sudden death, damage, precision, and size."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from eval.embedding_cache import EmbeddingCache, digest, map_safetensors

WIDTH = 8


def cache_in(folder: Path, precision: str = "float32") -> EmbeddingCache:
    return EmbeddingCache(folder, "ab" * 32, "last", precision)


def states_of(sequence: str, scale: float = 1.0) -> np.ndarray:
    """float32 [N, WIDTH] that depend on the sequence alone."""
    seed = int.from_bytes(digest(sequence)[:4], "little")
    return scale * np.random.default_rng(seed).normal(size=(len(sequence), WIDTH)).astype(np.float32)


def fill(cache: EmbeddingCache, sequences: list[str], with_states: bool = True, scale: float = 1.0) -> None:
    states = [states_of(sequence, scale) for sequence in sequences]
    with cache.locked():
        cache.write(sequences, np.stack([s.mean(0) for s in states]), states if with_states else None)


def test_what_was_written_is_read_by_sequence(tmp_path: Path) -> None:
    fill(cache_in(tmp_path), ["MKT", "A", "WWWW"])
    again = cache_in(tmp_path)
    assert again.missing(["A", "C", "A", "MKT"], with_states=True) == ["C"]
    # float16 keeps 11 bits: half of the last one, relative to each value.
    np.testing.assert_allclose(again.residues("WWWW"), states_of("WWWW"), rtol=2**-11, atol=1e-7)
    np.testing.assert_array_equal(again.mean("MKT"), states_of("MKT").mean(0))
    assert again.residues("WWWW").dtype == np.float16
    assert again.mean("MKT").dtype == np.float32


def test_states_beyond_float16_are_kept_in_float32(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    fill(cache, ["MKT"], scale=1e6)
    np.testing.assert_array_equal(cache.residues("MKT"), states_of("MKT", 1e6))


def test_means_alone_do_not_answer_for_states(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    fill(cache, ["MKT"], with_states=False)
    assert cache.missing(["MKT"], with_states=False) == []
    assert cache.missing(["MKT"], with_states=True) == ["MKT"]


def test_caches_of_other_settings_are_apart(tmp_path: Path) -> None:
    fill(cache_in(tmp_path), ["MKT"])
    assert cache_in(tmp_path, "bfloat16").missing(["MKT"], with_states=False) == ["MKT"]
    assert EmbeddingCache(tmp_path, "cd" * 32, "last", "float32").missing(["MKT"], with_states=False) == ["MKT"]


def test_a_second_process_sees_what_the_first_adds(tmp_path: Path) -> None:
    first, second = cache_in(tmp_path), cache_in(tmp_path)
    fill(first, ["MKT"])
    assert second.missing(["MKT"], with_states=True) == []
    np.testing.assert_array_equal(first.residues("MKT"), second.residues("MKT"))


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_damaged_chunk_costs_only_itself(tmp_path: Path, kept: int) -> None:
    cache = cache_in(tmp_path)
    fill(cache, ["MKT"])
    (whole,) = cache.folder.glob("chunk-*")
    fill(cache, ["WWW"])
    data = whole.read_bytes()
    whole.unlink()
    whole.write_bytes(data[:kept])
    again = cache_in(tmp_path)
    assert again.missing(["MKT", "WWW"], with_states=True) == ["MKT"]
    fill(again, ["MKT"])
    assert cache_in(tmp_path).missing(["MKT", "WWW"], with_states=True) == []


def _write_until_killed(folder: str) -> None:
    cache = cache_in(Path(folder))
    for number in range(10**6):
        fill(cache, [f"M{'ACDEFGHIKL'[number % 10] * (number % 50 + 1)}{'W' * (number // 500)}"])


def test_a_killed_writer_leaves_the_lock_and_whole_chunks(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    for number in range(3):
        writer = context.Process(target=_write_until_killed, args=(str(tmp_path),))
        writer.start()
        before, deadline = len(list(tmp_path.glob("*/chunk-*.safetensors"))), time.monotonic() + 60
        while len(list(tmp_path.glob("*/chunk-*.safetensors"))) < before + 3 + number:
            assert time.monotonic() < deadline, "the writer writes"
            time.sleep(0.002)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        cache = cache_in(tmp_path)
        with cache.locked():
            assert not list(cache.folder.glob("*.part")), "what was unfinished is removed"
        assert all(map_safetensors(path) is not None for path in cache.folder.glob("chunk-*.safetensors"))
        assert len(cache) >= 3


def _embed_all(folder: str, order: int) -> int:
    """Embed 29 sequences in groups of one; returns how many fell to this process."""
    from eval import features
    from tests.unit.eval.makers import make_features, train_config

    features.GROUP_BYTES = 1
    mine = make_features(train_config(Path("runs"), Path("shards")), batch_tokens=1, folder=Path(folder))
    mine.means(["MKT" * n for n in range(1, 30)][::order])
    return mine.num_embedded


def test_two_processes_embed_each_sequence_once_between_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from eval import features

    monkeypatch.setattr(features, "GROUP_BYTES", 1)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        other = pool.apply_async(_embed_all, (str(tmp_path), -1))
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("*/chunk-*.safetensors")):
            assert time.monotonic() < deadline, "the other process embeds"
            time.sleep(0.001)
        mine = _embed_all(str(tmp_path), 1)
        assert mine + other.get(timeout=120) == 29


@pytest.mark.long
def test_five_million_residues_are_read_without_holding_them(tmp_path: Path) -> None:
    import resource

    cache, width, residues = EmbeddingCache(tmp_path, "ab" * 32, "last", "float32"), 320, 5_000_000
    sequences = [f"{'ACDEFGHIKLMNPQRSTVWY'[i % 20]}{i}" for i in range(residues // 500)]
    for begin in range(0, len(sequences), 200):
        part = sequences[begin : begin + 200]
        rows = [np.full((500, width), begin % 7, dtype=np.float32)] * len(part)
        with cache.locked():
            cache.write(part, np.zeros((len(part), width), dtype=np.float32), rows)
    disk = sum(file.stat().st_size for file in cache.folder.iterdir())
    assert disk < 3.3e9, "float16, and little else"
    again = EmbeddingCache(tmp_path, "ab" * 32, "last", "float32")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert float(sum(again.residues(s)[::100].astype(np.float64).sum() for s in sequences[::50])) > 0
    # Mapped pages count while they are in memory; the 3.2 GB that were not asked for never are.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000
