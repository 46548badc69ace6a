"""The generator of synthetic proteins: real files, sound geometry, sequences that tell about structure."""

import gzip
import hashlib
from pathlib import Path

import gemmi
import numpy as np
import pytest

from configs.errors import UserError
from configs.source import SyntheticConfig
from data_pipeline.structure.chain import AMINO_ACIDS, Chain
from data_pipeline.structure.geometry import dihedrals
from data_pipeline.structure.parse import parse_structure
from data_pipeline.structure.secondary import dssp_states
from data_pipeline.synthetic.backbone import build_atoms
from data_pipeline.synthetic.entries import synthetic_entries, write_synthetic
from data_pipeline.synthetic.layout import HELIX, STRAND, Layout, Unit
from data_pipeline.synthetic.sequences import ENVIRONMENTS, propensities

CONFIG = SyntheticConfig(
    num_folds=3, families_per_fold=3, members_per_family=4, min_residues=60, max_residues=110, seed=5
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic")
    assert write_synthetic(CONFIG, folder) == 36
    return folder


@pytest.fixture(scope="module")
def chains(folder: Path) -> dict[str, list[Chain]]:
    return {
        path.name.split(".")[0]: parse_structure(path.read_bytes(), path.name) for path in sorted(folder.glob("*.gz"))
    }


def test_files_are_the_same_on_every_run_and_others_for_another_seed(folder: Path, tmp_path: Path) -> None:
    write_synthetic(CONFIG, tmp_path / "again")
    assert _hashes(tmp_path / "again") == _hashes(folder)
    write_synthetic(CONFIG.model_copy(update={"seed": 6}), tmp_path / "again")
    others = _hashes(tmp_path / "again")
    assert others.keys() == _hashes(folder).keys()
    assert not set(others.values()) & set(_hashes(folder).values())


def test_a_complete_folder_is_left_alone_and_a_damaged_one_is_written_again(tmp_path: Path) -> None:
    config = SyntheticConfig(num_folds=1, families_per_fold=1, members_per_family=2)
    write_synthetic(config, tmp_path)
    first, second = sorted(tmp_path.glob("*.gz"))
    stamp = first.stat().st_mtime_ns
    write_synthetic(config, tmp_path)
    assert first.stat().st_mtime_ns == stamp
    second.unlink()
    write_synthetic(config, tmp_path)
    assert second.is_file()


def test_more_folds_or_families_leave_the_earlier_ones_as_they_are() -> None:
    small = dict(synthetic_entries(SyntheticConfig(num_folds=1, families_per_fold=1, members_per_family=1)))
    large = dict(synthetic_entries(SyntheticConfig(num_folds=2, families_per_fold=2, members_per_family=1)))
    assert small.items() <= large.items()


@pytest.mark.parametrize("bounds", [(20, 20), (25, 30), (100, 100)])
def test_lengths_stay_within_the_bounds_that_the_config_sets(bounds: tuple[int, int]) -> None:
    low, high = bounds
    config = SyntheticConfig(
        num_folds=4, families_per_fold=2, members_per_family=1, min_residues=low, max_residues=high
    )
    for _, text in synthetic_entries(config):
        assert all(low <= len(sequence) <= high for sequence in _sequences(text))


def test_bounds_in_the_wrong_order_are_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="min_residues 90 is above max_residues 80"):
        write_synthetic(SyntheticConfig(min_residues=90, max_residues=80), tmp_path)


def test_another_parser_reads_sequence_entities_and_experiment(folder: Path, chains: dict[str, list[Chain]]) -> None:
    for entry, ours in chains.items():
        text = gzip.decompress((folder / f"{entry}.cif.gz").read_bytes()).decode()
        structure = gemmi.make_structure_from_block(gemmi.cif.read_string(text).sole_block())
        assert len(structure[0]) == len(ours)
        for chain in ours:
            # Our parser leaves out the first residues where they were not observed.
            assert any(sequence.endswith(chain.sequence) for sequence in _sequences(text))
        if ours[0].facts.method != "predicted":
            # Two decimals are written.
            assert structure.resolution == pytest.approx(ours[0].facts.resolution, abs=0.005)


def test_facts_vary_over_methods_qualities_and_number_of_chains() -> None:
    config = SyntheticConfig(num_folds=12, families_per_fold=1, members_per_family=10, min_residues=20, max_residues=30)
    parsed = [parse_structure(text.encode(), f"{entry}.cif") for entry, text in synthetic_entries(config)]
    facts = [found[0].facts for found in parsed]
    assert {fact.method for fact in facts} == {"x-ray diffraction", "electron microscopy", "predicted"}
    assert {len(found) for found in parsed} == {1, 2}
    x_ray = [fact for fact in facts if fact.method == "x-ray diffraction"]
    assert all(1.2 <= fact.resolution <= 3.5 and 0.1 < fact.r_free < 0.4 for fact in x_ray)
    # Both sides of the default thresholds of the high-quality subset are met.
    assert {fact.resolution <= 2.5 and fact.r_free <= 0.28 for fact in x_ray} == {True, False}
    assert all(fact.deposition_date for fact in facts)
    pairs = [(found[0].sequence == found[1].sequence) for found in parsed if len(found) == 2]
    assert set(pairs) == {True, False}


def test_atoms_keep_ideal_bonds_and_no_chain_clashes_with_itself(chains: dict[str, list[Chain]]) -> None:
    for found in chains.values():
        for chain in found:
            n, ca, c, o, cb = np.moveaxis(chain.coordinates[chain.backbone_valid], 1, 0)
            # Coordinates are written with three decimals: two roundings of at most 0.0009 Angstrom each.
            assert np.linalg.norm(ca - n, axis=1) == pytest.approx(1.458, abs=0.002)
            assert np.linalg.norm(n[1:] - c[:-1], axis=1) == pytest.approx(1.329, abs=0.002)
            assert np.linalg.norm(o - c, axis=1) == pytest.approx(1.231, abs=0.002)
            observed = np.array(list(chain.sequence))[chain.backbone_valid]
            assert (np.isnan(cb[:, 0]) == (observed == "G")).all()
            apart = np.abs(np.subtract.outer(np.arange(len(ca)), np.arange(len(ca)))) > 2
            distances = np.linalg.norm(ca[:, None] - ca[None], axis=-1)
            # Below 3.8 Angstrom two CA cannot come without their side chains overlapping.
            assert distances[apart].min() > 3.8


def test_chains_are_as_compact_as_real_ones(chains: dict[str, list[Chain]]) -> None:
    ratios = []
    for found in chains.values():
        ca = found[0].coordinates[found[0].backbone_valid, 1]
        radius = np.sqrt(((ca - ca.mean(axis=0)) ** 2).sum(axis=1).mean())
        ratios.append(radius / (2.2 * len(ca) ** 0.38))
    # 2.2 N^0.38 Angstrom is the law of globular chains; a random coil of 90 residues is at 2.4 times that.
    assert np.median(ratios) < 1.4


def test_torsions_come_back_from_the_coordinates_they_built() -> None:
    torsions = Unit(3, 6).torsions
    atoms = np.concatenate([build_atoms(torsions), np.full((len(torsions), 1, 3), np.nan)], axis=1)
    phi, psi, omega = np.rad2deg(dihedrals(atoms)).T
    # Numerical error of a chain of 22 frames in double precision.
    assert phi[1:] == pytest.approx(torsions[1:, 0], abs=1e-6)
    assert psi[:-1] == pytest.approx(torsions[:-1, 1], abs=1e-6)
    assert np.abs(omega[:-1]) == pytest.approx(180.0, abs=1e-6)


def test_dssp_finds_the_intended_helices_and_paired_strands() -> None:
    layout = Layout((Unit(4, 6), Unit(0, 16)), (2, 4, 2))
    kinds = layout.kinds
    loops = {0: 2, 1: 4, 2: 2}
    parts = [np.full((loops[0], 2), [-70.0, 145.0]), layout.units[0].torsions, np.full((loops[1], 2), [-70.0, 145.0])]
    parts += [layout.units[1].torsions, np.full((loops[2], 2), [-70.0, 145.0])]
    atoms = build_atoms(np.concatenate(parts))
    states = np.array(list(dssp_states(np.concatenate([atoms, np.full_like(atoms[:, :1], np.nan)], axis=1))))
    # The ends of a helix and of the outer strands have no partner to bond with.
    assert (states[kinds == HELIX][1:-1] == "H").all()
    assert np.isin(states[kinds == STRAND], ["E", "B"]).mean() > 0.75


def test_members_of_a_family_join_one_cluster_and_families_stay_apart() -> None:
    config = SyntheticConfig(num_folds=3, families_per_fold=4, members_per_family=5, mutation_rate=0.3)
    family, words = [], []
    for entry, text in synthetic_entries(config):
        sequence = _sequences(text)[0]
        family.append(entry.rpartition("-")[0])
        words.append({sequence[i : i + 5] for i in range(len(sequence) - 4)})
    within, between = [], []
    for i in range(len(words)):
        for j in range(i):
            shared = len(words[i] & words[j]) / min(len(words[i]), len(words[j]))
            (within if family[i] == family[j] else between).append(shared)
    # The default clustering joins chains that share a tenth of their 5-mers.
    assert np.mean(np.array(within) >= 0.1) > 0.95
    assert max(between) < 0.1


def test_mutation_rate_is_the_share_of_residues_redrawn() -> None:
    still = SyntheticConfig(num_folds=1, families_per_fold=1, members_per_family=4, mutation_rate=0.0)
    kept = {_sequences(text)[0] for _, text in synthetic_entries(still)}
    assert len(kept) == 1
    free = SyntheticConfig(num_folds=2, families_per_fold=1, members_per_family=4, mutation_rate=1.0)
    found = [_sequences(text)[0] for _, text in synthetic_entries(free)]
    identity = [np.mean([a == b for a, b in zip(found[0], other, strict=True)]) for other in found[1:4]]
    # Independent draws from the same environments agree by chance at less than a third of the places.
    assert max(identity) < 0.35


def test_every_residue_may_stand_anywhere_but_environments_differ() -> None:
    table = propensities()
    assert table.shape == (len(ENVIRONMENTS), len(AMINO_ACIDS))
    # Twenty sums of doubles.
    assert table.sum(axis=1) == pytest.approx(1.0, abs=1e-12)
    assert table.min() > 0
    assert len({int(row.argmax()) for row in table}) >= 6


def _sequences(text: str) -> list[str]:
    """Full sequence of every entity, as another library reads it."""
    structure = gemmi.make_structure_from_block(gemmi.cif.read_string(text).sole_block())
    return [gemmi.one_letter_code(entity.full_sequence) for entity in structure.entities]


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.gz")}
