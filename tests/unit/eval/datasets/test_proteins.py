"""Every published layout of proteins, by its own column names, reads to the labels it means."""

import gzip
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from configs.errors import UserError
from eval.datasets.records import SPLITS
from eval.datasets.tabular import residues_of
from tests.unit.eval.datasets.writing import got, labels, protein, write, write_splits

PARQUET = ("data/train-00000-of-00001.parquet", "data/valid-00000-of-00001.parquet", "data/test-00000-of-00001.parquet")
CSV = ("train.csv", "validation.csv", "test.csv")

TABLES = [
    ("fold", PARQUET, lambda i: {"seq": protein(i), "label": 100 * i}, [800, 900, 1000, 1100]),
    (
        "fold",
        ("train.csv", "validation.csv", "test_fold_holdout.csv"),
        lambda i: {
            "primary": protein(i),
            "class_label": 0,
            "fold_label": i,
            "superfamily_label": 2 * i,
            "family_label": 3 * i,
            "id": f"d{i}a_",
        },
        [8, 9, 10, 11],
    ),
    (
        "fluorescence",
        ("fluorescence_train.csv", "fluorescence_valid.csv", "fluorescence_test.csv"),
        lambda i: {"primary": protein(i), "protein_length": 50, "log_fluorescence": f"[{i / 4}]", "num_mutations": 1},
        [2.0, 2.25, 2.5, 2.75],
    ),
    (
        "fluorescence",
        ("fluorescence_train.json", "fluorescence_valid.json", "fluorescence_test.json"),
        lambda i: {"primary": protein(i), "log_fluorescence": [i / 4], "num_mutations": 1, "id": str(i)},
        [2.0, 2.25, 2.5, 2.75],
    ),
    (
        "stability",
        ("stability_train.json", "stability_valid.json", "stability_test.json"),
        lambda i: {"primary": protein(i), "stability_score": [-i / 4], "topology": "HHH", "id": str(i)},
        [-2.0, -2.25, -2.5, -2.75],
    ),
    ("stability", PARQUET, lambda i: {"seq": protein(i), "label": i / 2}, [4.0, 4.5, 5.0, 5.5]),
    ("gb1", PARQUET, lambda i: {"seq": protein(i), "label": i / 2}, [4.0, 4.5, 5.0, 5.5]),
    ("catalytic_efficiency", PARQUET, lambda i: {"seq": protein(i), "label": i / 2}, [4.0, 4.5, 5.0, 5.5]),
    ("thermostability", CSV, lambda i: {"aa_seq": protein(i), "label": 40.5 + i}, [48.5, 49.5, 50.5, 51.5]),
    ("metal_ion", PARQUET, lambda i: {"seq": protein(i), "label": i % 2}, [0, 1, 0, 1]),
    ("metal_ion", CSV, lambda i: {"name": f"P{i}", "aa_seq": protein(i), "label": i % 2}, [0, 1, 0, 1]),
    ("localisation_10", PARQUET, lambda i: {"seq": protein(i), "label": i % 10}, [8, 9, 0, 1]),
    ("localisation_2", CSV, lambda i: {"aa_seq": protein(i), "label": i % 2}, [0, 1, 0, 1]),
    (
        "localisation_10",
        PARQUET,
        lambda i: {"prot_seq": " ".join(protein(i)), "localization": i % 10},
        [8, 9, 0, 1],
    ),
    (
        "localisation_2",
        PARQUET,
        lambda i: {"prot_seq": " ".join(protein(i)), "localization": i % 2},
        [0, 1, 0, 1],
    ),
    ("ec", CSV, lambda i: {"aa_seq": protein(i), "label": f"{i},{i + 1}"}, [[8, 9], [9, 10], [10, 11], [11, 12]]),
    ("go_mf", PARQUET, lambda i: {"aa_seq": protein(i), "label": [i, 0]}, [[0, 8], [0, 9], [0, 10], [0, 11]]),
    (
        "go_cc",
        ("train.jsonl", "valid.jsonl", "test.jsonl"),
        lambda i: {"seq": protein(i), "label": [i]},
        [[8], [9], [10], [11]],
    ),
    (
        "ppi_human",
        CSV,
        lambda i: {"seq_1": protein(i), "seq_2": protein(i + 50), "label": i % 2},
        [0, 1, 0, 1],
    ),
    (
        "ppi_yeast",
        ("yeast_ppi_train.jsonl", "yeast_ppi_valid.jsonl", "yeast_ppi_test.jsonl"),
        lambda i: {"primary_1": protein(i), "primary_2": protein(i + 50), "interaction": i % 2},
        [0, 1, 0, 1],
    ),
]


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(("name", "files", "row", "expected"), TABLES, ids=[f"{t[0]}-{t[1][0]}" for t in TABLES])
def test_tables_by_split_read_to_their_labels(
    name: str, files: tuple, row: Callable, expected: list, tmp_path: Path
) -> None:
    write_splits(tmp_path, files, row)
    dataset = got(name, tmp_path)
    assert labels(dataset) == expected
    assert [r.sequences[0] for r in dataset.splits["test"]] == [protein(i) for i in range(8, 12)]
    assert {split: len(part) for split, part in dataset.splits.items()} == dict.fromkeys(SPLITS, 4)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("localisation_10", ["Cell.membrane", "Nucleus", "Cell.membrane"]),
        ("localisation_2", ["membrane-bound", "soluble", "membrane-bound"]),
    ],
)
def test_deeploc_with_names_of_places_reads_to_classes(name: str, expected: list, tmp_path: Path) -> None:
    places = [("Cell.membrane", "M"), ("Nucleus", "S"), ("Cytoplasm-Nucleus", "U"), ("Cell.membrane", "M")]
    row = lambda i: {"input": protein(i), "loc": places[i % 4][0], "membrane": places[i % 4][1]}  # noqa: E731
    write_splits(tmp_path, ("deeploc_train.csv", "deeploc_valid.csv", "deeploc_test.csv"), row)
    dataset = got(name, tmp_path)
    assert [dataset.classes[label] for label in labels(dataset)] == expected


@pytest.mark.usefixtures("cache")
def test_a_table_of_multi_places_loses_the_state_that_stands_with_the_place(tmp_path: Path) -> None:
    places = ("Plastid,M", "Nucleus,S")
    row = lambda i: {"aa_seq": protein(i), "location": places[i % 2]}  # noqa: E731
    write_splits(tmp_path, ("train.jsonl", "validation.jsonl", "test.jsonl"), row)
    dataset = got("localisation_10", tmp_path)
    assert [dataset.classes[label] for label in labels(dataset)] == ["Plastid", "Nucleus", "Plastid", "Nucleus"]


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("as_file", [True, False])
def test_one_table_that_names_the_split_of_each_row_is_enough(as_file: bool, tmp_path: Path) -> None:
    stages = ["train"] * 4 + ["valid"] * 4 + ["test"] * 4
    write(tmp_path / "dataset.csv", [{"protein": protein(i), "label": i / 2, "stage": stages[i]} for i in range(12)])
    dataset = got("thermostability", tmp_path / "dataset.csv" if as_file else tmp_path)
    assert [labels(dataset, split) for split in SPLITS] == [[i / 2 + s for i in range(4)] for s in (0.0, 2.0, 4.0)]


@pytest.mark.usefixtures("cache")
def test_any_split_of_flip_can_be_named_as_a_source(tmp_path: Path) -> None:
    (tmp_path / "two_vs_rest.csv").write_text(flip_rows())
    dataset = got("gb1", tmp_path / "two_vs_rest.csv")
    assert [labels(dataset, split) for split in SPLITS] == [[i / 2 + s for i in range(4)] for s in (0.0, 2.0, 4.0)]


@pytest.mark.usefixtures("cache")
def test_deeploc_fasta_files_drop_what_is_no_class(tmp_path: Path) -> None:
    heads = ["Cell.membrane-M", "Cytoplasm-Nucleus-U", "Nucleus-U", "Lysosome/Vacuole-S"]
    for start, name in ((0, "val_set"), (10, "train_set"), (20, "test_set")):
        path = tmp_path / (f"deeploc_our_{name}.fasta" if start < 20 else "deeploc_test_set.fasta")
        tail = " test" if start == 20 else ""
        path.write_text("".join(f">Q{start + i} {h}{tail}\n{protein(start + i)}\n" for i, h in enumerate(heads)))
    ten, two = got("localisation_10", tmp_path), got("localisation_2", tmp_path)
    assert [ten.classes[label] for label in labels(ten)] == ["Cell.membrane", "Nucleus", "Lysosome/Vacuole"]
    assert [two.classes[label] for label in labels(two)] == ["membrane-bound", "soluble"]
    assert [r.key for r in ten.splits["test"]] == ["Q20", "Q22", "Q23"]
    assert "3 records without a label of this task left out" in ten.notes
    assert len(ten.classes) == 10


def tape(folder: Path) -> None:
    for name, start, number in (
        ("train", 0, 6),
        ("valid", 10, 3),
        ("test_fold_holdout", 20, 2),
        ("test_superfamily_holdout", 30, 3),
        ("test_family_holdout", 40, 4),
    ):
        rows = [
            {
                "primary": protein(start + i),
                "class_label": 0,
                "fold_label": i,
                "superfamily_label": i,
                "family_label": start,
                "id": f"d{start + i}",
            }
            for i in range(number)
        ]
        write(folder / f"remote_homology_{name}.json", rows)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(("name", "number"), [("fold", 2), ("superfamily", 3), ("family", 4)])
def test_each_holdout_of_tape_is_a_dataset(name: str, number: int, tmp_path: Path) -> None:
    tape(tmp_path)
    dataset = got(name, tmp_path)
    assert [len(dataset.splits[split]) for split in SPLITS] == [6, 3, number]
    assert len(dataset.classes) == 1195


@pytest.mark.usefixtures("cache")
def test_retrieval_knows_the_folds_superfamilies_and_families_of_tape(tmp_path: Path) -> None:
    tape(tmp_path)
    dataset = got("remote_homology", tmp_path)
    assert len(dataset.splits["test"]) == 5
    first = dataset.splits["test"][0]
    assert {dataset.classes[i] for i in first.label} == {"fold 0", "superfamily 0.0", "family 0.0.20"}


@pytest.mark.usefixtures("cache")
def test_a_table_without_the_columns_names_those_it_has(tmp_path: Path) -> None:
    write_splits(tmp_path, PARQUET, lambda i: {"peptide": protein(i), "label": 1.0})
    with pytest.raises(UserError, match=r"has columns peptide, label; one of seq, sequence,"):
        got("stability", tmp_path)


@pytest.mark.usefixtures("cache")
def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=r"train\.parquet: cannot be read as a table"):
        got("stability", tmp_path)


@pytest.mark.usefixtures("cache")
def test_numbers_that_are_missing_leave_and_words_are_refused(tmp_path: Path) -> None:
    write_splits(tmp_path, CSV, lambda i: {"seq": protein(i), "label": "" if i == 8 else "nan" if i == 9 else i})
    dataset = got("stability", tmp_path)
    assert labels(dataset) == [10.0, 11.0]
    assert "2 records without a label of this task left out" in dataset.notes
    write_splits(tmp_path, CSV, lambda i: {"seq": protein(i), "label": "high"})
    with pytest.raises(UserError, match="'high' is no label of a value task"):
        got("stability", tmp_path)


def test_plain_sequences_are_not_taken_for_structure_aware_ones() -> None:
    assert residues_of("MdEvK#") == "MEK"
    assert residues_of("MEK") == "MEK"
    assert residues_of("mek") == "mek"
    assert residues_of("") == ""


def deepfri(folder: Path, kind: str) -> None:
    ids = [f"{i}ABC-A" for i in range(12)]
    if kind == "EC":
        head = "### EC-numbers\n1.1.1.1\t2.2.2.-\t3.3.3.3\n### PDB-chain\tEC-numbers\n"
        rows = [f"{c}\t{'1.1.1.1,2.2.2.-' if i % 2 else '3.3.3.3'}" for i, c in enumerate(ids)]
    else:
        titles = ("molecular_function", "biological_process", "cellular_component")
        head = "".join(
            f"### GO-terms ({t})\nGO:{n}1\tGO:{n}2\n### GO-names ({t})\none\ttwo\n" for n, t in enumerate(titles)
        )
        head += "### PDB-chain\t" + "\t".join(f"GO-terms ({t})" for t in titles) + "\n"
        rows = [f"{c}\tGO:01,GO:02\t\tGO:2{1 + i % 2}" for i, c in enumerate(ids)]
    start = f"nrPDB-{kind}_2020.04_"
    (folder / f"{start}annot.tsv").write_text(head + "\n".join(rows) + "\n")
    for name, part in (("train", ids[:5]), ("valid", ids[5:8]), ("test", ids[8:])):
        (folder / f"{start}{name}.txt").write_text("\n".join(part) + "\n")
    (folder / f"{start}test.csv").write_text(
        "PDB-chain,<30%,<40%,<50%,<70%,<95%\n" + "".join(f"{c},0,{i % 2},1,1,1\n" for i, c in enumerate(ids[8:]))
    )
    # The last train chain has no sequence.
    text = "".join(f">{c} nrPDB\n{protein(i)[:25]}\n{protein(i)[25:]}\n" for i, c in enumerate(ids) if i != 4)
    (folder / f"{start}sequences.fasta").write_text(text)


@pytest.mark.usefixtures("cache")
def test_deepfris_ec_files_read_with_their_parts_by_identity(tmp_path: Path) -> None:
    deepfri(tmp_path, "EC")
    dataset = got("ec", tmp_path)
    assert dataset.classes == ("1.1.1.1", "2.2.2.-", "3.3.3.3")
    assert [len(dataset.splits[split]) for split in SPLITS] == [4, 3, 4]
    assert labels(dataset) == [[2], [0, 1], [2], [0, 1]]
    assert dataset.groups["below_40"].tolist() == [False, True, False, True]
    assert not dataset.groups["below_30"].any()
    assert "1 chains without a sequence in the files left out" in dataset.notes


@pytest.mark.usefixtures("cache")
def test_deepfris_go_files_read_one_branch(tmp_path: Path) -> None:
    deepfri(tmp_path, "GO")
    assert got("go_mf", tmp_path).classes == ("GO:01", "GO:02")
    component = got("go_cc", tmp_path)
    assert (component.classes, labels(component)) == (("GO:21", "GO:22"), [[0], [1], [0], [1]])
    with pytest.raises(UserError, match="no usable example"):
        got("go_bp", tmp_path)


@pytest.mark.usefixtures("cache")
def test_swissprot_terms_bring_their_ancestors_and_only_experimental_ones_count(tmp_path: Path) -> None:
    folder = tmp_path / "TurkuNLP+CAFA3" / "data"
    folder.mkdir(parents=True)
    parents = "parent_go_acc\tgo_id\nGO:0003674\tGO:1\nGO:1\tGO:2\nGO:0008150\tGO:3\n"
    (folder / "parent_term2term.txt.gz").write_bytes(gzip.compress(parents.encode()))
    evidence = "".join(f"P{i}_YEAST\tGO:2\tIDA\nP{i}_YEAST\tGO:3\tIMP\n" for i in range(60)) + "P60_YEAST\tGO:2\tIEA\n"
    (folder / "Swissprot_evidence.tsv.gz").write_bytes(gzip.compress(evidence.encode()))
    text = "".join(f">sp|A{i}|P{i}_YEAST Protein\n{protein(i)}\n" for i in range(61))
    (tmp_path / "yeast_swissprot.fasta.gz").write_bytes(gzip.compress(text.encode()))
    dataset = got("go_mf", tmp_path)
    assert dataset.classes == ("GO:1", "GO:2"), "the term and its parent; not the root, nor the other branch"
    assert sum(len(part) for part in dataset.splits.values()) == 60
    assert labels(dataset)[0] == [0, 1]


def flip_rows() -> str:
    return "sequence,target,set,validation\n" + "".join(
        f"{protein(i)},{i / 2},{'test' if i >= 8 else 'train'},{'True' if 4 <= i < 8 else ''}\n" for i in range(12)
    )


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("gb1", "splits/three_vs_rest.csv"),
        ("thermostability", "splits/human_cell.csv"),
        ("thermostability", "splits/mixed.csv"),
    ],
)
def test_flips_splits_read_with_their_validation_rows(name: str, path: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "splits.zip", "w") as archive:
        archive.writestr(path, flip_rows())
    dataset = got(name, tmp_path)
    assert [labels(dataset, split) for split in SPLITS] == [[i / 2 + s for i in range(4)] for s in (0.0, 2.0, 4.0)]
    assert Path(path).stem in dataset.source
    clusters = {record.cluster for record in dataset.splits["test"]}
    assert len(clusters) == 4


@pytest.mark.usefixtures("cache")
def test_the_whole_table_of_gb1_reads_the_same_split(tmp_path: Path) -> None:
    head = "Variants,HD,Count input,Count selected,Fitness,sequence,keep,three_vs_rest,three_vs_rest_validation\n"
    rows = "".join(
        f"V,1,1,1,{i / 2},{protein(i)},{i != 11},{'test' if i >= 8 else 'train'},{'True' if 4 <= i < 8 else ''}\n"
        for i in range(12)
    )
    with zipfile.ZipFile(tmp_path / "four_mutations_full_data.csv.zip", "w") as archive:
        archive.writestr("four_mutations_full_data.csv", head + rows)
    assert [labels(got("gb1", tmp_path), s) for s in SPLITS] == [[0, 0.5, 1, 1.5], [2, 2.5, 3, 3.5], [4, 4.5, 5]]


@pytest.mark.usefixtures("cache")
def test_gnn_ppi_reads_pairs_and_draws_those_that_do_not_interact(tmp_path: Path) -> None:
    names = [f"9606.ENSP{i:04}" for i in range(60)]
    (tmp_path / "protein.SHS27k.sequences.dictionary.tsv").write_text(
        "".join(f"{n}\t{protein(i)}\n" for i, n in enumerate(names))
    )
    generator = np.random.default_rng(0)
    pairs = {tuple(sorted(generator.choice(60, 2, replace=False).tolist())) for _ in range(300)}
    head = "item_id_a\titem_id_b\tmode\taction\tis_directional\ta_is_acting\tscore\n"
    both = [(b, a) for a, b in sorted(pairs)][:20]
    rows = [f"{names[a]}\t{names[b]}\treaction\t\tt\tt\t900\n" for a, b in [*sorted(pairs), *both]]
    (tmp_path / "protein.actions.SHS27k.STRING.txt").write_text(head + "".join(rows) + f"x\t{names[0]}\tb\t\tt\tt\t1\n")
    dataset = got("ppi_human", tmp_path)
    known = {frozenset((protein(a), protein(b))) for a, b in pairs}
    for part in dataset.splits.values():
        assert all((frozenset(r.sequences) in known) == (r.label == 1) for r in part)
        number = sum(r.label for r in part)
        assert number > 0
        assert len(part) - number == pytest.approx(number, rel=0.15), "as many, but for pairs that cannot be completed"
    seen = {s for split in ("train", "validation") for r in dataset.splits[split] for s in r.sequences}
    assert not seen & {s for r in dataset.splits["test"] for s in r.sequences}
    assert dataset.classes == ("no interaction", "interaction")
