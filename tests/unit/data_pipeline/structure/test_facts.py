import dataclasses
import json

import gemmi
import pytest

from data_pipeline.structure.chain import ExperimentFacts
from data_pipeline.structure.facts import entry_name
from data_pipeline.structure.parse import parse_structure
from tests.unit.data_pipeline.structure.models import bcif_bytes, gemmi_structure, helix, mmcif_bytes, pdb_bytes

PDB_REMARKS = (
    b"REMARK   3   FREE R VALUE                     : 0.231\n",
    b"REMARK   3   FREE R VALUE                  (NO CUTOFF) : 0.231\n",
)


def atoms(entry: str) -> bytes:
    return mmcif_bytes(gemmi_structure({"A": ("A" * 9, helix(9))}, entry=entry))


def facts_in(data: bytes, name: str) -> ExperimentFacts:
    return parse_structure(data, name)[0].facts


@pytest.mark.parametrize(
    ("name", "recorded", "expected"),
    [
        ("1ABC.cif", "1ABC", "1abc"),
        ("ab/pdb1abc.ent.gz", "1ABC", "1abc"),
        ("AF-P12345-F1-model_v6.cif.gz", "AF-P12345-F1", "AF-P12345-F1"),
        ("model.cif", "AF-P12345-F1", "AF-P12345-F1"),
        ("1ABC_l_u.pdb", "1ABC", "1ABC_l_u"),
        ("ranked.0.pdb", "", "ranked-0"),
        ("pdb_00001abc.cif", "pdb_00001abc", "pdb_00001abc"),
        ("rank_1.cif", "model", "rank_1"),
        ("", "", "unnamed"),
    ],
)
def test_the_entry_is_named_by_file_and_record(name: str, recorded: str, expected: str) -> None:
    structure = gemmi.Structure()
    structure.info["_entry.id"] = recorded
    assert entry_name(name, structure) == expected


@pytest.mark.parametrize("form", ["mmcif", "bcif"])
def test_mmcif_states_method_resolution_r_free_and_date(form: str) -> None:
    extra = (
        b"_refine.entry_id 1ABC\n_refine.pdbx_refine_id 'X-RAY DIFFRACTION'\n"
        b"_refine.ls_d_res_high 1.90\n_refine.ls_R_factor_R_free 0.2345\n#\n"
    )
    data = atoms("1ABC") + extra
    facts = facts_in(data if form == "mmcif" else bcif_bytes(data), "1abc.cif")
    assert (facts.method, facts.resolution, facts.r_free) == ("x-ray diffraction", 1.9, 0.2345)
    assert (facts.deposition_date, facts.model_version, facts.is_predicted) == ("2020-02-29", None, False)


@pytest.mark.parametrize("remark", PDB_REMARKS)
def test_pdb_remarks_state_the_same(remark: bytes) -> None:
    lines = pdb_bytes(gemmi_structure({"A": ("A" * 9, helix(9))})).splitlines(keepends=True)
    first_atom = next(i for i, line in enumerate(lines) if line.startswith(b"SEQRES"))
    header = [b"REMARK   3\n", b"REMARK   3 REFINEMENT.\n", b"REMARK   3   PROGRAM     : ANY\n", remark]
    facts = facts_in(b"".join(lines[:first_atom] + header + lines[first_atom:]), "1abc.pdb")
    assert (facts.method, facts.resolution, facts.r_free) == ("x-ray diffraction", 1.75, 0.231)
    assert facts.deposition_date == "2020-02-29"


def test_electron_microscopy_states_its_own_resolution() -> None:
    data = atoms("1ABC").replace(b"X-RAY DIFFRACTION", b"ELECTRON MICROSCOPY")
    data += (
        b"_em_3d_reconstruction.entry_id 1ABC\n_em_3d_reconstruction.id 1\n_em_3d_reconstruction.resolution 3.20\n#\n"
    )
    for content in (data, bcif_bytes(data)):
        facts = facts_in(content, "1abc.cif")
        assert (facts.method, facts.resolution, facts.r_free) == ("electron microscopy", 3.2, None)


@pytest.mark.parametrize(
    ("name", "recorded", "method", "version"),
    [
        ("AF-P12345-F1-model_v6.cif", "AF-P12345-F1", "X-RAY DIFFRACTION", "6"),
        ("AF-P12345-F1-model_v11.cif.gz", "AF-P12345-F1", "THEORETICAL MODEL", "11"),
        ("AF-P12345-F1.cif", "AF-P12345-F1", "THEORETICAL MODEL", None),
        ("fold.cif", "fold", "THEORETICAL MODEL", None),
    ],
)
def test_predictions_are_recognised_and_their_version_is_read(
    name: str, recorded: str, method: str, version: str | None
) -> None:
    facts = facts_in(atoms(recorded).replace(b"X-RAY DIFFRACTION", method.encode()), name)
    assert facts.is_predicted
    assert facts.model_version == version


def test_a_file_that_says_nothing_has_no_facts() -> None:
    lines = pdb_bytes(gemmi_structure({"A": ("A" * 9, helix(9))})).splitlines(keepends=True)
    facts = facts_in(b"".join(line for line in lines if line.startswith((b"ATOM", b"TER", b"END"))), "mine.pdb")
    unknown = (facts.method, facts.resolution, facts.r_free, facts.deposition_date, facts.model_version)
    assert unknown == (None,) * 5
    assert (facts.entry, facts.chain_label, facts.chain_author) == ("mine", "A", "A")


ASSEMBLIES = (
    b"loop_\n_pdbx_struct_assembly.id\n_pdbx_struct_assembly.details\n1 author_defined_assembly\n2 ?\n"
    b"XAU 'crystal asymmetric unit, crystal frame'\n#\n"
    b"loop_\n_pdbx_struct_assembly_gen.assembly_id\n_pdbx_struct_assembly_gen.oper_expression\n"
    b"_pdbx_struct_assembly_gen.asym_id_list\n1 1 Axp,Bxp\n2 1 Bxp\n2 '(1-60)(2)' 'Bxp'\nXAU 1 Axp,Bxp,Cxp\n#\n"
)
REMARK_350 = """\
REMARK 350
REMARK 350 BIOMOLECULE: 1
REMARK 350 APPLY THE FOLLOWING TO CHAINS: A, B
REMARK 350   BIOMT1   1  1.000000  0.000000  0.000000        0.00000
REMARK 350   BIOMT2   1  0.000000  1.000000  0.000000        0.00000
REMARK 350   BIOMT3   1  0.000000  0.000000  1.000000        0.00000
REMARK 350
REMARK 350 BIOMOLECULE: 2
REMARK 350 APPLY THE FOLLOWING TO CHAINS: B
REMARK 350   BIOMT1   1  1.000000  0.000000  0.000000        0.00000
REMARK 350   BIOMT2   1  0.000000  1.000000  0.000000        0.00000
REMARK 350   BIOMT3   1  0.000000  0.000000  1.000000        0.00000
"""


def test_a_chain_knows_the_assemblies_that_list_it_in_every_format() -> None:
    structure = gemmi_structure({name: ("A" * 9, helix(9) + 40.0 * i) for i, name in enumerate("ABC")})
    mmcif = mmcif_bytes(structure) + ASSEMBLIES
    lines = pdb_bytes(structure).splitlines(keepends=True)
    sequence = next(i for i, line in enumerate(lines) if line.startswith(b"SEQRES"))
    pdb = b"".join([*lines[:sequence], REMARK_350.encode(), *lines[sequence:]])
    for data in (mmcif, bcif_bytes(mmcif), pdb):
        facts = [chain.facts for chain in parse_structure(data, "1abc.cif")]
        assert [fact.assemblies for fact in facts] == [("1",), ("1", "2"), ()]
        assert json.loads(json.dumps(dataclasses.asdict(facts[1])))["assemblies"] == ["1", "2"]
    assert facts_in(mmcif_bytes(structure), "1abc.cif").assemblies is None


@pytest.mark.parametrize("date", [b"2020-02-30", b"?", b"soon", b"20-02-2020"])
def test_what_is_no_date_is_none(date: bytes) -> None:
    assert facts_in(atoms("1ABC").replace(b"2020-02-29", date), "1abc.cif").deposition_date is None
