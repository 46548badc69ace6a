"""Every layout of datasets of labelled residues, on files with the publishers' own columns; counts of the real ones."""

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.benchmarks import BenchmarksConfig
from configs.errors import UserError
from eval.datasets.binding import KINDS, LIGANDS
from eval.datasets.files import open_files
from eval.datasets.records import Dataset
from eval.datasets.residue_properties import TOPOLOGY
from eval.datasets.residues import LAYOUTS
from eval.datasets.secondary import EIGHT, THREE
from eval.datasets.store import DatasetStore

WRITERS: dict[str, Callable[[Path], None]] = {}
"""Layout name -> writer of a small folder in that layout."""
MORE = ("YYWW", "WYWY", "VVWW", "TTYY", "LLMM", "PPGG", "RRKK", "DDEE")
"""Further training sequences, so that a tenth of them is one."""


def writes(*names: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    def register(function: Callable[[Path], None]) -> Callable[[Path], None]:
        WRITERS.update(dict.fromkeys(names, function))
        return function

    return register


def put(folder: Path, path: str, text: str) -> None:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text(text)


def zipped(folder: Path, path: str, members: dict[str, str]) -> None:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)


def flip_files(labels: str, letters: str) -> dict[str, str]:
    """Three entries of four residues in FLIP's FASTA files; the masks hide the first residue."""
    sets = ("SET=train VALIDATION=False", "SET=train VALIDATION=True", "SET=test VALIDATION=False")
    sequences = ("ACDE", "FGHI", "KLMN")
    return {
        "sequences.fasta": "".join(f">p{i}\n{sequence}\n" for i, sequence in enumerate(sequences)),
        labels: "".join(f">p{i} {words}\n{letters}\n" for i, words in enumerate(sets)),
        "mask.fasta": "".join(f">p{i}\n0111\n" for i in range(3)),
    }


@writes("FLIP secondary_structure", "FLIP conservation", "FLIP bind")
def flip(folder: Path) -> None:
    files = flip_files("sampled.fasta", "CHEC")
    zipped(folder, "splits.zip", {f"splits/{name}": text for name, text in files.items()})


@writes("FLIP secondary_structure, unpacked")
def flip_unpacked(folder: Path) -> None:
    for name, text in flip_files("sampled.fasta", "CHEC").items():
        put(folder, f"splits/{name}", text)


def csv_line(sequence: str, three: str, eight: str, disorder: str, mask: str) -> str:
    return f"{sequence},{three},{eight},{disorder},{mask}\n"


@writes("PBC compilation of FLIP and CASP")
def pbc_compilation(folder: Path) -> None:
    flip(folder / "J-SNACKKB+FLIP/splits/secondary_structure")
    row = csv_line("QRST", "CHHC", "CHGS", "0.0 1.0 1.0 1.0", "1.0 1.0 1.0 1.0")
    put(
        folder,
        "Rostlab+pbc/supervised/secondary_structure/dataset_compilation/CASP12.csv",
        "input,dssp3,dssp8,disorder,cb513_mask\n" + row,
    )


@writes("PBC secondary_structure")
def pbc_secondary(folder: Path) -> None:
    rows = ((0, "train"), (1, "val"), (2, "test"))
    text = "".join(f">p{i} SET={name} TARGET=CHEC MASK=0111\n{'ACDE'[i:]}{'ACDE'[:i]}\n" for i, name in rows)
    put(folder, "secondary_structure.fasta", text)


@writes("hf://datasets/proteinea/secondary_structure_prediction")
def proteinea(folder: Path) -> None:
    head = "input,dssp3,dssp8,disorder,cb513_mask\n"
    train = "".join(
        csv_line(s, "CHEC", "CHET", '"[0.0, 1.0, 1.0, 1.0]"', "1.0 1.0 1.0 1.0") for s in ("ACDE", "FGHI", *MORE)
    )
    put(folder, "training_hhblits.csv", head + train)
    put(folder, "CB513.csv", head + csv_line("KLMN", "CHEC", "CHET", "1.0 1.0 1.0 1.0", "0.0 1.0 1.0 1.0"))
    # CASP13's table has coordinates instead of CB513's mask.
    put(
        folder,
        "CASP13.csv",
        "input,dssp3,dssp8,disorder,xyz_coordinates\n" + csv_line("QRST", "CHEC", "CHET", "", '"[]"'),
    )


@writes("hf://datasets/proteinglm/ssp_q3", "hf://datasets/proteinglm/ssp_q8")
def proteinglm(folder: Path) -> None:
    (folder / "data").mkdir(parents=True)
    for split, sequences in (("train", ["ACDE", "FGHI", "YYWW"]), ("test", ["KLMN"])):
        table = pa.table({"seq": sequences, "label": [[-100, 0, 1, 2]] * len(sequences)})
        pq.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet")


@writes("S-PLM SS_data")
def splm(folder: Path) -> None:
    put(folder, "train.csv", "sequence label\nACDE 2012\nFGHI 2012\n")
    put(folder, "valid.csv", "sequence label\nYYWW 2012\n")
    put(folder, "test.csv", "sequence label\nKLMN 2012\n")


@writes("PBC CASP12 and CASP13")
def casp_only(folder: Path) -> None:
    head = "input,dssp3,dssp8,disorder\n"
    put(folder, "CASP12.csv", head + "ACDE,CHEC,CHET,1.0 1.0 1.0 1.0\nFGHI,CHEC,CHET,1.0 1.0 1.0 1.0\n")
    put(folder, "CASP13.csv", head + "KLMN,CHEC,C-ET,1.0 1.0 1.0 1.0\n")


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Archives are unpacked once for this module, and not into the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAPLM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def read(name: str, layout: str, folder: Path) -> Dataset:
    """As the layout gives it."""
    found = next(each for each in LAYOUTS[name] if each.name == layout)
    return found.read(open_files(folder), "")


def stored(name: str, folder: Path) -> Dataset:
    """As tasks get it."""
    return DatasetStore(BenchmarksConfig(sources={name: str(folder)}), 0, LAYOUTS).get(name)


@pytest.mark.parametrize("layout", [layout.name for layout in LAYOUTS["ss3"]])
def test_three_states_are_read_from_every_layout(layout: str, tmp_path: Path) -> None:
    WRITERS[layout](tmp_path / "data")
    dataset = read("ss3", layout, tmp_path / "data")
    assert dataset.target == "residue_class"
    assert dataset.classes == THREE
    by_sequence = {r.sequences[0]: r.label for records in dataset.splits.values() for r in records}
    assert len(by_sequence) >= 3
    assert len(dataset.splits["train"]) >= 1
    assert len(dataset.splits["test"]) >= 1
    label = by_sequence["ACDE"]
    assert label.dtype == np.int64
    # Coil, helix, strand, coil; masks of FLIP, PBC, proteinea and negative labels of proteinglm hide the first.
    expected = [2, 0, 1, 2] if layout == "S-PLM SS_data" else [-1, 0, 1, 2]
    assert label.tolist() == expected


@pytest.mark.parametrize("layout", [layout.name for layout in LAYOUTS["ss8"]])
def test_eight_states_are_read_from_every_layout(layout: str, tmp_path: Path) -> None:
    WRITERS[layout](tmp_path / "data")
    dataset = read("ss8", layout, tmp_path / "data")
    (record,) = (r for r in dataset.splits["test"] if r.sequences == ("KLMN",))
    if "proteinglm" in layout:
        assert dataset.classes == tuple("01234567")
        assert record.label.tolist() == [-1, 0, 1, 2]
    else:
        assert dataset.classes == EIGHT
        first = "C" if "CASP12" in layout else None
        second = "C" if "CASP12" in layout else "H"
        assert [None if i < 0 else EIGHT[i] for i in record.label] == [first, second, "E", "T"]


def test_test_sets_of_a_benchmark_are_groups(tmp_path: Path) -> None:
    proteinea(tmp_path / "data")
    dataset = stored("ss3", tmp_path / "data")
    assert {name: part.tolist() for name, part in dataset.groups.items()} == {
        "CB513": [True, False],
        "CASP13": [False, True],
    }
    assert sum(len(records) for records in dataset.splits.values()) == 4 + len(MORE)
    assert len(dataset.splits["validation"]) == 1


def test_a_table_without_its_columns_is_named(tmp_path: Path) -> None:
    proteinea(tmp_path / "data")
    put(tmp_path / "data", "CB513.csv", "sequence,states\nACDE,CHEC\n")
    with pytest.raises(UserError, match=r"CB513.csv.*'input' and 'dssp3'"):
        read("ss3", "hf://datasets/proteinea/secondary_structure_prediction", tmp_path / "data")


def bind_predict(folder: Path) -> None:
    put(folder, "all.fasta", ">P1\nACD\nEFG\n>P2\nHIKLM\n>P3\nNPQRS\n>P4\nTVWYA\n")
    put(folder, "uniprot_test.txt", "P3\n")
    put(folder, "ids_split1.txt", "P1\nP4\n")
    put(folder, "ids_split5.txt", "P2\n")
    for kind in KINDS:
        put(folder, f"binding_residues_2.5_{kind}.txt", "P1\t6,1\nP3\t2\n")


@pytest.mark.parametrize("kind", KINDS)
def test_binding_residues_are_counted_from_one(kind: str, tmp_path: Path) -> None:
    bind_predict(tmp_path)
    dataset = read(f"binding_{kind}", "bindPredict development set", tmp_path)
    labels = {r.sequences[0]: r.label.tolist() for records in dataset.splits.values() for r in records}
    assert labels["ACDEFG"] == [1, 0, 0, 0, 0, 1]
    assert labels["NPQRS"] == [0, 1, 0, 0, 0]
    assert labels["HIKLM"] == [0, 0, 0, 0, 0]
    assert {split: [r.sequences[0] for r in records] for split, records in dataset.splits.items()} == {
        "train": ["ACDEFG", "TVWYA"],
        "validation": ["HIKLM"],
        "test": ["NPQRS"],
    }


def test_a_binding_residue_that_cannot_be_is_named(tmp_path: Path) -> None:
    bind_predict(tmp_path)
    put(tmp_path, "binding_residues_2.5_metal.txt", "P1\t0\n")
    with pytest.raises(UserError, match="counted from 1; got 0"):
        read("binding_metal", "bindPredict development set", tmp_path)
    put(tmp_path, "binding_residues_2.5_metal.txt", "P1\tsix\n")
    with pytest.raises(UserError, match="number,number"):
        read("binding_metal", "bindPredict development set", tmp_path)


@pytest.mark.parametrize(
    ("kind", "expected"), [("small", [0, 0, 1, 1]), ("nuclear", [0, 1, 0, 1]), ("metal", [1, 0, 1, 1])]
)
def test_flip_numbers_ligands_by_bits(kind: str, expected: list[int], tmp_path: Path) -> None:
    files = flip_files("from_publication.fasta", "1257")
    del files["mask.fasta"]
    zipped(tmp_path, "splits.zip", {f"splits/{name}": text for name, text in files.items()})
    for name, text in files.items():
        put(tmp_path / "unpacked", f"splits/{name}", text)
    for layout, folder in (("FLIP bind", tmp_path), ("FLIP bind, unpacked", tmp_path / "unpacked")):
        dataset = read(f"binding_{kind}", layout, folder)
        assert dataset.splits["test"][0].label.tolist() == expected


@pytest.mark.parametrize("ligand", LIGANDS)
def test_gpsite_has_a_dataset_for_each_ligand(ligand: str, tmp_path: Path) -> None:
    put(tmp_path, f"{ligand}_train.txt", ">1abc_A\nACDE\n0110\n>2abc_B\nFGHI\n1000\n")
    put(tmp_path, f"{ligand}_test.txt", ">3abc_A\nKLMN\n0001\n")
    dataset = read(f"binding_{ligand.lower()}", "GPSite", tmp_path)
    assert [r.label.tolist() for r in dataset.splits["train"]] == [[0, 1, 1, 0], [1, 0, 0, 0]]
    assert [r.label.tolist() for r in dataset.splits["test"]] == [[0, 0, 0, 1]]
    put(tmp_path, f"{ligand}_train.txt", ">1abc_A\nACDE\n")
    with pytest.raises(UserError, match="1abc_A has 1 lines"):
        read(f"binding_{ligand.lower()}", "GPSite", tmp_path)


def test_without_a_test_file_the_test_split_is_taken_by_cluster(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    parents = ["".join(random.choice(list("ACDEFGHIKLMNPQRSTVWY"), 80)) for _ in range(20)]
    # Two copies of each that differ in one residue: relatives must not be parted.
    sequences = [parent[:40] + letter + parent[41:] for parent in parents for letter in "AC"]
    text = "".join(f">p{i}\n{sequence}\n{'01' * 40}\n" for i, sequence in enumerate(dict.fromkeys(sequences)))
    put(tmp_path / "data", "ZN_train.txt", text)
    dataset = stored("binding_zn", tmp_path / "data")
    families = {split: {r.sequences[0][:40] for r in records} for split, records in dataset.splits.items()}
    assert len(dataset.splits["test"]) >= 4
    assert not families["test"] & (families["train"] | families["validation"])
    assert not families["validation"] & families["train"]
    assert any("split here by sequence cluster" in note for note in dataset.notes)


def test_disorder_scores_of_999_are_missing(tmp_path: Path) -> None:
    rows = ((0, "train"), (1, "val"), (2, "test"))
    text = "".join(
        f">{i} SET={name} TARGET=999.0;-0.5;12.25;999.0 MASK=0110\n{'ACDE'[i:]}{'ACDE'[:i]}\n" for i, name in rows
    )
    put(tmp_path, "disorder.fasta", text)
    put(tmp_path, "disorder_chezod.fasta", text)
    for layout in ("PBC disorder", "PBC disorder_chezod"):
        dataset = read("disorder", layout, tmp_path)
        assert dataset.target == "residue_value"
        np.testing.assert_array_equal(dataset.splits["test"][0].label, [np.nan, -0.5, 12.25, np.nan])
        assert {split: len(records) for split, records in dataset.splits.items()} == dict.fromkeys(dataset.splits, 1)


def test_chezod_tables_of_seth_are_read(tmp_path: Path) -> None:
    for stem in ("CheZOD1174_training_set", "CheZOD117_test_set"):
        put(tmp_path, f"{stem}_sequences.fasta", ">26672\nACDE\n>26654\nFGHI\n")
        put(tmp_path, f"{stem}_CheZOD_scores.txt", "26672:\t999, -2.865, 2.73, 16.1\n26654:\t1, 2\n")
    dataset = read("disorder", "SETH CheZOD", tmp_path)
    np.testing.assert_array_equal(dataset.splits["test"][0].label, [np.nan, -2.865, 2.73, 16.1])
    assert [len(dataset.splits[split]) for split in ("train", "validation", "test")] == [1, 0, 1]
    assert dataset.notes == ("2 sequences whose labels have another length were left out",)


def test_conservation_has_nine_classes(tmp_path: Path) -> None:
    files = flip_files("sampled.fasta", "1x59")
    del files["mask.fasta"]
    zipped(tmp_path, "splits.zip", {f"splits/{name}": text for name, text in files.items()})
    for name, text in files.items():
        put(tmp_path / "unpacked", f"splits/{name}", text)
    put(tmp_path / "pbc", "conservation.fasta", ">a SET=train TARGET=1159\nACDE\n>b SET=test TARGET=1x59\nFGHI\n")
    places = {"FLIP conservation": "", "FLIP conservation, unpacked": "unpacked", "PBC conservation": "pbc"}
    assert set(places) == {layout.name for layout in LAYOUTS["conservation"]}
    for layout, place in places.items():
        dataset = read("conservation", layout, tmp_path / place)
        assert dataset.splits["test"][0].label.tolist() == [0, -1, 4, 8]
        assert len(dataset.classes) == 9


def test_topology_joins_both_directions_and_leaves_unknown_sides_out(tmp_path: Path) -> None:
    put(tmp_path, "alpha.fasta", ">1afo_A|P02724|GLPA_HUMAN\nMYGKIIF\nSU2Hh1U\n")
    put(tmp_path, "beta.fasta", ">1a0s_P|P22340|SCRY_SALTM\nMYRKS\n1Bb2U\n")
    dataset = read("membrane_topology", "TMbed", tmp_path)
    names = [[None if i < 0 else TOPOLOGY[i] for i in r.label] for r in dataset.splits["train"]]
    assert names[0] == ["signal peptide", None, "outside", "helix", "helix", "inside", None]
    assert names[1] == ["inside", "strand", "strand", "outside", None]


REAL = {
    # data/README.md: secondary structure 11,156 chains; PBC adds CASP12 (20) and CASP13 (12) to FLIP's 364 test chains.
    "ss3": (9712, 1080, 396),
    # bindPredict: 1,014 development proteins in five parts of about 203, and TestSet300.
    "binding_metal": (812, 202, 300),
    "binding_nuclear": (812, 202, 300),
    "binding_small": (812, 202, 300),
    # PBC's README: 1,050 + 118 of CheZOD1174 without its three duplicates, and CheZOD117.
    "disorder": (1050, 118, 117),
    # FLIP's README: 9,392, 555 and 519.
    "conservation": (9392, 555, 519),
}


@pytest.mark.data
@pytest.mark.parametrize("name", sorted(REAL))
def test_real_datasets_have_the_published_counts(name: str, real_data: Path) -> None:
    files = open_files(real_data / "benchmarks")
    layout = next(each for each in LAYOUTS[name] if all(files.has(f"{each.prefix}/{n}".strip("/")) for n in each.needs))
    dataset = layout.read(files, layout.prefix)
    assert tuple(len(dataset.splits[split]) for split in ("train", "validation", "test")) == REAL[name]
    assert all(len(r.label) == len(r.sequences[0]) for records in dataset.splits.values() for r in records)


@pytest.mark.data
def test_the_real_layouts_without_a_test_file_are_whole(real_data: Path) -> None:
    files = open_files(real_data / "benchmarks")
    counts = {}
    for name, layout_name in (
        ("ss3", "S-PLM SS_data"),
        ("ss3", "FLIP secondary_structure"),
        ("ss8", "PBC CASP12 and CASP13"),
        ("binding_zn", "GPSite"),
        ("membrane_topology", "TMbed"),
    ):
        layout = next(each for each in LAYOUTS[name] if each.name == layout_name)
        dataset = layout.read(files, layout.prefix)
        counts[layout_name] = sum(len(records) for records in dataset.splits.values())
    # data/README.md: 2,170 validation chains of S-PLM, 11,156 chains of FLIP; TMbed 593 alpha and 65 beta.
    assert counts == {
        "S-PLM SS_data": 2170,
        "FLIP secondary_structure": 11156,
        "PBC CASP12 and CASP13": 32,
        "GPSite": 1646,
        "TMbed": 658,
    }
