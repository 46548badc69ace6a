"""Every BinaryCIF encoding, alone and chained, against the values that biotite encoded."""

import numpy as np
import pytest
from biotite.structure.io import pdbx

from data_pipeline.structure.bcif import Category

INTEGERS = np.array([0, 1, 1, 1, 127, 128, 255, 256, -1, -128, -129, 70_000, -70_000, 5, 5], dtype=np.int32)
DECIMALS = np.array([0.125, -1.5, 300.25, 300.25, -70.125])
WORDS = ["CA", "N", "CA", "", "a word with blanks", "ü"]
CHAINS = {
    "ByteArray": (INTEGERS, [pdbx.ByteArrayEncoding()]),
    "IntegerPacking to one byte": (INTEGERS, [pdbx.IntegerPackingEncoding(1), pdbx.ByteArrayEncoding()]),
    "IntegerPacking to two unsigned bytes": (
        np.abs(INTEGERS),
        [pdbx.IntegerPackingEncoding(2, is_unsigned=True), pdbx.ByteArrayEncoding()],
    ),
    "Delta": (INTEGERS, [pdbx.DeltaEncoding(), pdbx.ByteArrayEncoding()]),
    "RunLength": (INTEGERS, [pdbx.RunLengthEncoding(), pdbx.ByteArrayEncoding()]),
    "Delta, RunLength, IntegerPacking": (
        INTEGERS,
        [
            pdbx.DeltaEncoding(),
            pdbx.RunLengthEncoding(),
            pdbx.IntegerPackingEncoding(1),
            pdbx.ByteArrayEncoding(),
        ],
    ),
    "FixedPoint": (DECIMALS, [pdbx.FixedPointEncoding(1000), pdbx.DeltaEncoding(), pdbx.ByteArrayEncoding()]),
    "float64": (DECIMALS, [pdbx.ByteArrayEncoding()]),
}


def category(array: np.ndarray, encodings: list | None) -> Category:
    data = pdbx.BinaryCIFData(array, encodings)
    column = pdbx.BinaryCIFColumn(data).serialize()
    return Category({"rowCount": len(array), "columns": [{"name": "x", **column}]}, max_rows=len(array))


@pytest.mark.parametrize("kind", CHAINS)
def test_numbers_come_back_as_they_were(kind: str) -> None:
    array, encodings = CHAINS[kind]
    np.testing.assert_array_equal(category(array, encodings).values("x"), array)


def test_interval_quantization_comes_back_within_a_step() -> None:
    array = np.linspace(-1.0, 1.0, 50)
    encodings = [pdbx.IntervalQuantizationEncoding(-1.0, 1.0, 101), pdbx.ByteArrayEncoding()]
    np.testing.assert_allclose(category(array, encodings).values("x"), array, atol=0.0201)


def test_strings_come_back_as_they_were() -> None:
    assert category(np.array(WORDS), None).strings("x") == WORDS


@pytest.mark.parametrize("claimed", [-1, 14, 16, 10**12])
def test_another_number_of_rows_than_claimed_is_an_error(claimed: int) -> None:
    data = pdbx.BinaryCIFColumn(pdbx.BinaryCIFData(INTEGERS, [pdbx.ByteArrayEncoding()])).serialize()
    with pytest.raises(ValueError, match="rows"):
        Category({"rowCount": claimed, "columns": [{"name": "x", **data}]}, max_rows=10**6).values("x")
