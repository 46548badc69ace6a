"""How derived columns store embeddings, and that readers need not know."""

from pathlib import Path

import numpy as np
import pytest

from configs.errors import UserError
from data_pipeline.audit import audit
from data_pipeline.derived import DerivedReader, DerivedWriter, decode_embedding, encode_embedding
from data_pipeline.reader import ShardReader
from tests.unit.data_pipeline.samples import write_small_shards


def make_embedding(num_residues: int, width: int = 24, seed: int = 0) -> np.ndarray:
    """Normal rows of sizes from a thousandth to a thousand; the third row is absent."""
    random = np.random.default_rng(seed)
    size = 10.0 ** random.uniform(-3, 3, size=(num_residues, 1))
    embedding = (random.normal(size=(num_residues, width)) * size).astype(np.float32)
    embedding[2] = 0
    return embedding


def test_float16_is_one_array_and_rounds_to_eleven_digits() -> None:
    embedding = make_embedding(50)
    arrays = encode_embedding(embedding, "float16")
    assert {name: array.dtype for name, array in arrays.items()} == {"embedding": np.float16}
    back = decode_embedding(arrays)
    assert back.dtype == np.float32
    # Below 6e-5 float16 has a fixed step of 6e-8.
    np.testing.assert_allclose(back, embedding, rtol=2**-11, atol=6e-8)


def test_int8_keeps_every_number_within_half_a_step_of_its_residue() -> None:
    embedding = make_embedding(50)
    arrays = encode_embedding(embedding, "int8")
    assert arrays["embedding_int8"].dtype == np.int8
    assert arrays["embedding_scale"].dtype == np.float32
    step = np.abs(embedding).max(axis=1, keepdims=True) / 127
    # A thousandth more than half a step: the division is float32's.
    assert (np.abs(decode_embedding(arrays) - embedding) <= 0.5005 * step).all()
    assert np.abs(arrays["embedding_int8"]).max() == 127, "the whole range is used, and it is symmetric"


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_rows_without_an_embedding_come_back_as_exact_zeros(dtype: str) -> None:
    back = decode_embedding(encode_embedding(make_embedding(5), dtype))
    assert not back[2].any()
    assert back[[0, 1, 3, 4]].any(axis=1).all()


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_chain_without_residues_can_be_stored(dtype: str) -> None:
    empty = np.zeros((0, 7), dtype=np.float32)
    assert decode_embedding(encode_embedding(empty, dtype)).shape == (0, 7)


@pytest.fixture
def base(tmp_path: Path) -> ShardReader:
    write_small_shards(tmp_path)
    return ShardReader(tmp_path)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_reader_gives_float32_whatever_the_form_and_the_audit_passes(base: ShardReader, dtype: str) -> None:
    chains = {
        (split, i): make_embedding(int(n), seed=i)
        for split in base.splits
        for i, n in enumerate(base.index(split).residues)
    }
    with DerivedWriter(base, "teacher", {}) as writer:
        for (split, i), embedding in chains.items():
            writer.write(split, i, encode_embedding(embedding, dtype))
    with DerivedReader(base, "teacher") as column:
        for (split, i), embedding in chains.items():
            got = column.embedding(split, i)
            assert got.dtype == np.float32
            np.testing.assert_array_equal(got, decode_embedding(encode_embedding(embedding, dtype)))
    assert not audit(base.folder).damage


def test_a_column_of_other_arrays_is_no_embedding(base: ShardReader) -> None:
    with DerivedWriter(base, "losses", {}) as writer:
        for split in base.splits:
            for i in range(len(base.index(split))):
                writer.write(split, i, {"loss": np.zeros(3, dtype=np.float32)})
    with DerivedReader(base, "losses") as column, pytest.raises(UserError, match="holds loss, no embedding"):
        column.embedding("train", 0)
