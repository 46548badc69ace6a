"""Real entries that exist in several formats, read from each."""

from pathlib import Path

import numpy as np
import pytest

from data_pipeline.sources import open_source, read_entry
from data_pipeline.structure.chain import Chain, StructureError
from data_pipeline.structure.parse import parse_structure

DECIMALS = {"resolution": 2, "r_free": 3}
"""PDB files round what mmCIF files state in full."""


def read(data: bytes, name: str) -> list[Chain] | str:
    try:
        return parse_structure(data, name)
    except StructureError as error:
        return error.reason


@pytest.mark.data
def test_pdb_mmcif_and_binarycif_of_one_entry_give_the_same_chains(real_data: Path, tmp_path: Path) -> None:
    source = open_source(real_data / "structures" / "mixed_formats.tar.xz", cache=tmp_path)
    entries: dict[str, dict[str, list[Chain] | str]] = {}
    for entry in source.entries():
        path = Path(entry.name)
        if path.parent.name == "pdb":
            entries.setdefault(path.stem, {})[path.suffix] = read(read_entry(entry), entry.name)
    complete = {name: formats for name, formats in entries.items() if len(formats) == 3}
    assert len(complete) == 18
    assert sum(isinstance(formats[".cif"], list) for formats in complete.values()) == 16, "two hold RNA only"
    for formats in complete.values():
        for suffix in (".pdb", ".bcif"):
            assert_same(formats[".cif"], formats[suffix])


def assert_same(expected: list[Chain] | str, found: list[Chain] | str) -> None:
    if isinstance(expected, str) or isinstance(found, str):
        assert found == expected
        return
    assert [chain.key for chain in found] == [chain.key for chain in expected]
    for one, other in zip(expected, found, strict=True):
        assert (other.sequence, other.notes) == (one.sequence, one.notes)
        np.testing.assert_array_equal(other.coordinates, one.coordinates)
        np.testing.assert_array_equal(other.bfactor, one.bfactor)
        for name in ("entry", "chain_author", "method", "deposition_date", "assemblies"):
            assert getattr(other.facts, name) == getattr(one.facts, name)
        for name, decimals in DECIMALS.items():
            values = [getattr(facts, name) for facts in (one.facts, other.facts)]
            assert [value is None for value in values] in ([True, True], [False, False])
            if values[0] is not None:
                assert abs(values[0] - values[1]) <= 0.5000001 * 10**-decimals
