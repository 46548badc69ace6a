import pytest

from data_pipeline.sources import Entry, mark_superseded, read_entry
from data_pipeline.sources.versions import accession_of, model_of
from data_pipeline.structure.chain import StructureError


def superseded(*names: str) -> list[str]:
    """Those that refuse to be read."""
    marked = mark_superseded([Entry(name, f"/nowhere/{name}") for name in names])
    assert [entry.name for entry in marked] == list(names)
    refused = []
    for entry in marked:
        with pytest.raises(StructureError) as caught:
            read_entry(entry)
        refused += [entry.name] if caught.value.reason == "superseded" else []
    return refused


@pytest.mark.parametrize(
    ("name", "model", "version"),
    [
        ("AF-P12345-F1-model_v6.cif.gz", "AF-P12345-F1", (6, 0)),
        ("UP1.tar/AF-P12345-F1-model_v10.pdb", "AF-P12345-F1", (10, 0)),
        ("AF-P12345-2-F1-model_v6.bcif", "AF-P12345-2-F1", (6, 0)),
        ("AF-A0A009DWB8-F12-model_v4", "AF-A0A009DWB8-F12", (4, 0)),
        ("MA-ABC-0001-model_v1.cif", "MA-ABC-0001", (1, 0)),
        ("ab/pdb_00001abc_xyz_v1-2.cif.gz", "pdb_00001abc_xyz", (1, 2)),
    ],
)
def test_model_and_version_are_read_from_the_name(name: str, model: str, version: tuple[int, int]) -> None:
    assert model_of(name) == (model, version)


@pytest.mark.parametrize("name", ["1abc.cif.gz", "AF-P12345-F1.cif", "xAF-P12345-F1-model_v6.cif", "v6/1abc.pdb"])
def test_names_without_a_version_tell_none(name: str) -> None:
    assert model_of(name) is None


def test_accessions_are_read_from_models() -> None:
    models = ["AF-P12345-F1", "AF-P12345-2-F1", "AF-A0A009DWB8-F12", "MA-ABC-0001", "pdb_00001abc_xyz"]
    assert [accession_of(model) for model in models] == ["P12345", "P12345-2", "A0A009DWB8", None, None]


def test_the_highest_version_wins_as_a_number() -> None:
    names = [f"AF-P12345-F1-model_v{version}.cif.gz" for version in (10, 2, 9)]
    assert superseded(*names) == names[1:]
    assert superseded(*names[::-1]) == names[:0:-1]
    pdb = ["pdb_00001abc_xyz_v1-10.cif.gz", "pdb_00001abc_xyz_v1-9.cif.gz", "pdb_00001abc_xyz_v2-0.cif.gz"]
    assert superseded(*pdb) == pdb[:2]


def test_at_one_version_mmcif_wins_then_the_first_by_name() -> None:
    forms = ["a/AF-P12345-F1-model_v4.bcif", "a/AF-P12345-F1-model_v4.cif.gz", "a/AF-P12345-F1-model_v4.pdb.gz"]
    assert superseded(*forms) == [forms[0], forms[2]]
    places = [f"{place}/AF-P12345-F1-model_v4.cif" for place in "ab"]
    assert superseded(*places) == places[1:]


def test_an_older_mmcif_loses_to_a_newer_pdb_file() -> None:
    names = ["AF-P12345-F1-model_v4.cif", "AF-P12345-F1-model_v6.pdb"]
    assert superseded(*names) == names[:1]


def test_other_fragments_isoforms_and_unversioned_files_stay() -> None:
    names = ["AF-P12345-F1-model_v4.cif", "AF-P12345-F2-model_v6.cif", "AF-P12345-2-F1-model_v6.cif"]
    assert superseded(*names, "AF-P12345-F1.cif", "a/1abc.cif", "b/1abc.cif") == []


def test_a_superseded_file_names_its_winner() -> None:
    entries = [Entry(f"AF-P12345-F1-model_v{version}.cif", "") for version in (4, 6)]
    with pytest.raises(StructureError) as caught:
        read_entry(mark_superseded(entries)[0])
    assert "AF-P12345-F1-model_v6.cif" in caught.value.detail
