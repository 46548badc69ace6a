import numpy as np
import pytest

from data_pipeline.structure.geometry import CA, O
from data_pipeline.structure.secondary import COIL, HELIX, UNASSIGNED, dssp_states, secondary_structure
from tests.unit.data_pipeline.structure.models import backbone, helix, random_fold


def test_an_ideal_helix_is_a_helix_but_for_its_ends() -> None:
    assert dssp_states(helix(20)) == "-" + "H" * 18 + "-"


def test_an_ideal_three_ten_helix_is_g() -> None:
    states = dssp_states(backbone([(-49.0, -26.0)] * 20))
    assert set(states[2:-2]) == {"G"}


def test_a_lone_strand_has_no_partner_and_is_coil() -> None:
    assert (secondary_structure(backbone([(-120.0, 130.0)] * 15)) == COIL).all()


def test_two_strands_side_by_side_are_a_ladder() -> None:
    strand = backbone([(-139.0, 135.0)] * 9)
    best = max(_paired(strand, shift) for shift in np.arange(-8.0, 8.0, 0.2))
    assert best >= 6, "antiparallel strands at 4.8 Angstrom bond somewhere along their common axis"


def _paired(strand: np.ndarray, shift: float) -> int:
    """Residues in state E of a strand and its copy, turned around and set beside it where its oxygens point."""
    ca = strand[:, CA]
    along = (ca[-1] - ca[0]) / np.linalg.norm(ca[-1] - ca[0])
    centre = ca.mean(axis=0)
    aside = (strand[4, O] - strand[4, 2]) - along * np.dot(strand[4, O] - strand[4, 2], along)
    aside /= np.linalg.norm(aside)
    normal = np.cross(along, aside)
    half_turn = 2 * np.outer(normal, normal) - np.eye(3)
    other = (strand - centre) @ half_turn.T + centre + 4.8 * aside + shift * along
    return dssp_states(np.concatenate([strand, other])).count("E")


def test_the_helix_stops_at_a_chain_break() -> None:
    broken = np.concatenate([helix(12), helix(12) + 50.0])
    assert dssp_states(broken) == ("-" + "H" * 10 + "-") * 2


def test_residues_with_missing_atoms_are_not_assigned() -> None:
    chain = helix(20)
    chain[8, O] = np.nan
    states = secondary_structure(chain)
    assert states[8] == UNASSIGNED
    assert (states[1:7] == HELIX).sum() >= 4
    assert dssp_states(np.full((4, 5, 3), np.nan)) == "XXXX"


@pytest.mark.parametrize("num_residues", [0, 1, 2, 3, 5])
def test_the_shortest_chains_have_states_too(num_residues: int) -> None:
    assert len(dssp_states(helix(6)[:num_residues])) == num_residues


def test_proline_donates_no_hydrogen_bond() -> None:
    chain = helix(20)
    assert dssp_states(chain, "A" * 20) == dssp_states(chain)
    assert dssp_states(chain, "P" * 20).count("H") == 0


def test_states_do_not_depend_on_where_the_chain_lies() -> None:
    chain = random_fold(80, seed=2)
    turned = chain[:, :, [1, 2, 0]] + 25.0
    assert dssp_states(turned) == dssp_states(chain)
