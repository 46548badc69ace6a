"""Every layout of measured mutations, on files with the publishers' own columns; the real ones are counted."""

import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.benchmarks import BenchmarksConfig
from configs.errors import UserError
from eval.datasets.assay_store import assays_of
from eval.datasets.variants import Assay, Assays
from eval.models.protocol import RESIDUES
from eval.tasks.protocol import DatasetMissing

REFERENCE = (
    "DMS_index,DMS_id,DMS_filename,UniProt_ID,target_seq,coarse_selection_type\n"
    "0,AAA_HUMAN_Author_2020,AAA_HUMAN_Author_2020.csv,AAA_HUMAN,MKTAY,Activity\n"
    "1,BBB_YEAST_Author_2021,BBB_YEAST_Author_2021.csv,BBB_YEAST,ACDEF,Stability\n"
    "2,CCC_ECOLI_Author_2022,CCC_ECOLI_Author_2022.csv,CCC_ECOLI,GHIKL,Binding\n"
)
SCAN = (
    "mutant,mutated_sequence,DMS_score,DMS_score_bin\n"
    "K2A,MATAY,0.5,1\nK2A:T3C,MACAY,-1.5,0\nT3*,MK,0.1,0\nA4A,MKTAY,1.0,1\nY5W,MKTAW,,0\n"
)
OTHER = "mutant,mutated_sequence,DMS_score,DMS_score_bin\nA1C,CCDEF,1,1\nC2D,ADDEF,2,1\n"


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAPLM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def put(folder: Path, path: str, text: str) -> None:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text(text)


def read(name: str, folder: Path) -> Assays:
    return assays_of(name, BenchmarksConfig(sources={name: str(folder)}))


def check_scans(found: Assays, with_facts: bool = True) -> None:
    first, second = found.assays
    assert (first.key, first.uniprot, first.sequence) == ("AAA_HUMAN_Author_2020", "AAA_HUMAN", "MKTAY")
    assert (first.category, second.category) == (("Activity", "Stability") if with_facts else ("", ""))
    assert first.variants == ("K2A", "K2A:T3C")
    assert first.scores.tolist() == [0.5, -1.5]
    assert first.owner.tolist() == [0, 1, 1]
    assert first.position.tolist() == [1, 1, 2]
    assert [RESIDUES[i] for i in first.wild] == ["K", "K", "T"]
    assert [RESIDUES[i] for i in first.mutant] == ["A", "A", "C"]
    assert first.positions.tolist() == [1, 2]
    # A stop, a variant that changes nothing, and one without a score.
    assert any(note.startswith("3 variants") for note in found.notes)


@pytest.mark.parametrize("place", ["reference_files/", ""])
@pytest.mark.parametrize("form", ["folder", "zip", "flat zip"])
def test_scans_are_read_as_proteingym_gives_them(place: str, form: str, tmp_path: Path) -> None:
    put(tmp_path, f"{place}DMS_substitutions.csv", REFERENCE)
    files = {"AAA_HUMAN_Author_2020.csv": SCAN, "BBB_YEAST_Author_2021.csv": OTHER}
    folder = "DMS_ProteinGym_substitutions"
    if form == "folder":
        for name, text in files.items():
            put(tmp_path, f"{folder}/{name}", text)
    else:
        with zipfile.ZipFile(tmp_path / f"{folder}.zip", "w") as archive:
            for name, text in files.items():
                archive.writestr(name if form == "flat zip" else f"{folder}/{name}", text)
    found = read("proteingym", tmp_path)
    check_scans(found)
    assert "1 assays of the reference file have no file here" in found.notes


def test_scans_are_read_from_the_hubs_parquet_files(tmp_path: Path) -> None:
    (tmp_path / "DMS_substitutions").mkdir()
    rows = [line.split(",") for line in SCAN.splitlines()[1:]]
    table = {
        "DMS_id": ["AAA_HUMAN_Author_2020"] * len(rows),
        "target_seq": ["MKTAY"] * len(rows),
        "mutant": [row[0] for row in rows],
        "mutated_sequence": [row[1] for row in rows],
        "DMS_score": [float(row[2]) if row[2] else None for row in rows],
        "DMS_score_bin": [int(row[3]) for row in rows],
    }
    pq.write_table(pa.table(table), tmp_path / "DMS_substitutions" / "train-00000-of-00002.parquet")
    rows = [line.split(",") for line in OTHER.splitlines()[1:]]
    table = {
        "DMS_id": ["BBB_YEAST_Author_2021"] * 2,
        "target_seq": ["ACDEF"] * 2,
        "mutant": [row[0] for row in rows],
        "mutated_sequence": [row[1] for row in rows],
        "DMS_score": [1.0, 2.0],
        "DMS_score_bin": [1, 1],
    }
    pq.write_table(pa.table(table), tmp_path / "DMS_substitutions" / "train-00001-of-00002.parquet")
    check_scans(read("proteingym", tmp_path), with_facts=False)


def test_single_sites_take_selection_types_from_the_reference_file(tmp_path: Path) -> None:
    put(tmp_path, "DMS_substitutions.csv", REFERENCE)
    folder = "ginnm+SingleSiteProteinGYM/"
    put(tmp_path, folder + "README.md", "# SingleSiteProteinGYM")
    head = "mutant,score,esm_if1_gvp4_t16_142M_UR50,esm_if1_gvp4_t16_142M_UR50\n"
    # Releases order the words of a name differently: AAA_HUMAN_2020_Author is AAA_HUMAN_Author_2020.
    for key, sequence, variant in (
        ("AAA_HUMAN_2020_Author", "MKT\nAY", "K2A"),
        ("BBB_YEAST_Someone_1999", "ACDEF", "A1C"),
        ("ZZZ_MOUSE_Someone_1999", "ACDEF", "A1D"),
    ):
        put(tmp_path, f"{folder}gym_single/mutant/{key}.csv", f"{head}{variant},-0.1,-5.1,-5.1\n")
        put(tmp_path, f"{folder}gym_single/fasta/{key}.fasta", f">{key}.csv\n{sequence}\n")
    found = read("proteingym", tmp_path)
    assert {assay.key: assay.category for assay in found.assays} == {
        "AAA_HUMAN_2020_Author": "Activity",
        "BBB_YEAST_Someone_1999": "Stability",
        "ZZZ_MOUSE_Someone_1999": "",
    }
    assert any("ZZZ_MOUSE_Someone_1999" in note for note in found.notes)


CLINICAL_REFERENCE = "DMS_id,target_seq,file_length,DMS_filename\nNP_000007.1,MKTAY,5,NP_000007.1.csv\n"
CLINICAL = (
    "protein,protein_sequence,mutant,mutated_sequence,DMS_bin_score\n"
    "NP_000007.1,MKTAY,K2A,MATAY,Pathogenic\nNP_000007.1,MKTAY,T3C,MKCAY,Benign\n"
)


def check_clinical(found: Assays) -> None:
    (assay,) = found.assays
    assert assay.key == assay.uniprot == "NP_000007.1"
    assert assay.variants == ("K2A", "T3C")
    assert assay.scores.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("place", ["reference_files/", ""])
def test_clinical_variants_are_read_as_proteingym_gives_them(place: str, tmp_path: Path) -> None:
    put(tmp_path, f"{place}clinical_substitutions.csv", CLINICAL_REFERENCE)
    put(tmp_path, "clinical_ProteinGym_substitutions/NP_000007.1.csv", CLINICAL)
    check_clinical(read("clinical", tmp_path))


def test_clinical_variants_are_read_from_the_hubs_parquet_files(tmp_path: Path) -> None:
    (tmp_path / "clinical_substitutions").mkdir()
    names, *rows = (line.split(",") for line in CLINICAL.splitlines())
    table = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    pq.write_table(pa.table(table), tmp_path / "clinical_substitutions" / "train-00000-of-00001.parquet")
    check_clinical(read("clinical", tmp_path))


FIREPROT = ",experiment_id,uniprot_id,pdb_id_corrected,position,wild_type,mutation,ddG,pdb_position,pdb_sequence\n"


def test_stability_is_minus_ddg_and_repeated_measurements_are_averaged(tmp_path: Path) -> None:
    rows = (
        "0,a,P06654,1PGA,1,M,A,-0.25,0,MTYKL\n"
        "1,b,P06654,1PGA,2,T,C,1.0,1,MTYKL\n"
        "2,c,P06654,1PGA,2,T,C,2.0,1,MTYKL\n"
        "3,d,P0ABQ4,1PGA,2,X,C,2.0,1,MXYKL\n"
        "4,e,P0ABQ4,1PGA,3,Y,C,3.0,2,MXYKL\n"
        "5,f,P06654,1PGA,1,M,C,0.5,0,MTYKL\n"
    )
    put(tmp_path, "fireprot_train.csv", FIREPROT + rows)
    first, second = read("ddg", tmp_path).assays
    assert (first.key, first.sequence, first.variants) == ("1PGA", "MTYKL", ("M1A", "T2C", "M1C"))
    assert first.scores.tolist() == [0.25, -1.5, -0.5]
    assert (second.key, second.sequence, second.variants) == ("1PGA#2", "MXYKL", ("Y3C",))


@pytest.mark.parametrize("zip_it", [True, False])
def test_wild_types_of_flips_variants_are_recovered(zip_it: bool, tmp_path: Path) -> None:
    wild, other = "MKTAYIAKQRQISFVKSHFSRQ", "MKTAYIAKQRDDDDDDDDDDDD"
    rows = ["sequence,target,set,validation", f"{wild},neutral,train,False"]
    for i, (target, part) in enumerate(
        (("effect", "train"), ("neutral", "test"), ("effect", "test"), ("effect", "test"))
    ):
        rows.append(f"{wild[: 5 * i]}W{wild[5 * i + 1 :]},{target},{part},False")
    # A protein of the same length that shares the beginning, and one seen only once.
    rows += [f"{other[:i]}C{other[i + 1 :]},neutral,train,False" for i in range(12, 15)]
    rows += ["ACDEFGHIKLMN,effect,test,False"]
    text = "\n".join(rows) + "\n"
    if zip_it:
        with zipfile.ZipFile(tmp_path / "splits.zip", "w") as archive:
            archive.writestr("splits/mixed.csv", text)
    else:
        put(tmp_path, "splits/mixed.csv", text)
    found = read("sav", tmp_path)
    (assay,) = found.assays
    assert assay.sequence == wild
    assert dict(zip(assay.variants, assay.scores.tolist(), strict=True)) == {"I6W": 1.0, "Q11W": 0.0, "K16W": 0.0}
    assert any(note.startswith("1 test sequences") for note in found.notes)


def test_a_variant_that_does_not_fit_its_wild_type_is_named(tmp_path: Path) -> None:
    put(tmp_path, "DMS_substitutions.csv", REFERENCE)
    wrong = SCAN.replace("K2A,MATAY", "L2A,MATAY")
    put(tmp_path, "DMS_ProteinGym_substitutions/AAA_HUMAN_Author_2020.csv", wrong)
    with pytest.raises(UserError, match="variant L2A, but the wild type has 'K' there"):
        read("proteingym", tmp_path)
    put(tmp_path / "two", "DMS_substitutions.csv", REFERENCE)
    put(tmp_path / "two", "DMS_ProteinGym_substitutions/AAA_HUMAN_Author_2020.csv", SCAN.replace("K2A,", "K9A,"))
    with pytest.raises(UserError, match="only 5 residues"):
        read("proteingym", tmp_path / "two")


def test_a_table_without_a_column_is_named(tmp_path: Path) -> None:
    put(tmp_path, "DMS_substitutions.csv", REFERENCE)
    put(tmp_path, "DMS_ProteinGym_substitutions/AAA_HUMAN_Author_2020.csv", "mutant,score\nK2A,1\n")
    with pytest.raises(UserError, match="has no column 'DMS_score'"):
        read("proteingym", tmp_path)


def test_a_benchmark_that_is_not_there_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DatasetMissing, match=r"holds none of its layouts.*benchmarks.sources.clinical"):
        read("clinical", tmp_path)
    monkeypatch.delenv("SAPLM_DATA", raising=False)
    with pytest.raises(DatasetMissing, match="no place is named"):
        assays_of("clinical", BenchmarksConfig())


@pytest.mark.data
def test_the_real_single_site_scans_are_whole(real_data: Path) -> None:
    found = assays_of("proteingym", BenchmarksConfig(root=real_data / "benchmarks"))
    # data/README.md: 67 assays; some proteins were assayed more than once.
    assert len(found.assays) == 67
    assert len({assay.sequence for assay in found.assays}) == 54
    assert sum(len(assay.scores) for assay in found.assays) == 276_912
    assert all(assay.category for assay in found.assays)
    assert all(np.array_equal(assay.wild, wild_numbers(assay)) for assay in found.assays)


def wild_numbers(assay: Assay) -> np.ndarray:
    return np.array([RESIDUES.index(assay.sequence[i]) for i in assay.position])


@pytest.mark.data
def test_real_stability_changes_are_mostly_losses(real_data: Path) -> None:
    found = assays_of("ddg", BenchmarksConfig(root=real_data / "benchmarks"))
    scores = np.concatenate([assay.scores for assay in found.assays])
    assert len(scores) > 2500
    # Most mutations destabilise; -ddG is negative for them, which settles the sign of the table.
    assert (scores < 0).mean() > 0.6
