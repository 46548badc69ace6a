"""What the log says of a selection, and the picture of it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from configs.errors import UserError
from data_pipeline.schema import INT16_SCALE, MISSING_INT16, Sample, to_milli_angstrom
from data_pipeline.structure.secondary import secondary_structure
from pretrain.batch import Batch
from pretrain.cli import app
from pretrain.collate import Item, collate
from pretrain.losses.selection_report import CLASSES, selection_statistics
from pretrain.losses.terms import LossTerm, Statistic, Terms
from pretrain.sampler import Crop
from pretrain.secondary_states import residue_states
from pretrain.selection_plot import LOSSES, plot_selection, running_mean, selection_figure
from pretrain.vocab import alphabet
from tests.benchmarks._chains import real_chains
from tests.unit.pretrain.pools import make_batch
from tests.unit.pretrain.training import make_chain

NAN = float("nan")


def described(plddt: list[float], bfactor: list[float], secondary: list[int]) -> Batch:
    batch = make_batch([len(plddt)], seed=0)
    return replace(
        batch,
        plddt=torch.tensor(plddt),
        bfactor=torch.tensor(bfactor),
        secondary=torch.tensor(secondary, dtype=torch.int8),
    )


def figures(statistics: dict[str, Statistic]) -> dict[str, tuple[float, float]]:
    """Sum and count of what there is."""
    return {name: (float(s.sum), float(s.count)) for name, s in statistics.items() if s.count > 0}


def test_kept_and_all_residues_are_counted_by_class_among_those_that_take_part() -> None:
    batch = described(
        [10.0, 50.0, 69.9, 70.0, 95.0, NAN, NAN, 30.0],
        [NAN, NAN, NAN, NAN, NAN, 19.0, 200.0, NAN],
        [0, 0, 1, 2, -1, 1, 2, 0],
    )
    rows = torch.tensor([True] * 7 + [False])
    kept = torch.tensor([False, True, False, True, True, True, False])
    found = selection_statistics("structure", kept, batch, rows)
    assert set(found) == {f"kept_structure_{name}" for name in CLASSES}
    assert figures(found) == {
        "kept_structure_plddt_0_50": (0, 1),
        "kept_structure_plddt_50_70": (1, 2),
        "kept_structure_plddt_70_90": (1, 1),
        "kept_structure_plddt_90_100": (1, 1),
        "kept_structure_bfactor_0_20": (1, 1),
        "kept_structure_bfactor_60_up": (0, 1),
        "kept_structure_helix": (1, 2),
        "kept_structure_strand": (1, 2),
        "kept_structure_coil": (1, 2),
    }


def test_figures_of_a_batch_without_descriptions_are_none_at_all() -> None:
    batch = replace(make_batch([9], seed=0), plddt=None)
    assert (
        selection_statistics("structure", torch.ones(9, dtype=torch.bool), batch, torch.ones(9, dtype=torch.bool)) == {}
    )


def test_parts_of_a_pool_add_up_to_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    n = 500
    batch = described(
        (100 * torch.rand(n, generator=generator)).tolist(),
        (80 * torch.rand(n, generator=generator)).tolist(),
        torch.randint(-1, 3, (n,), generator=generator).tolist(),
    )
    rows, kept = torch.rand(n, generator=generator) < 0.8, torch.rand(n, generator=generator) < 0.6
    whole = figures(selection_statistics("structure", kept[rows], batch, rows))
    parts = []
    for part in (torch.arange(n) < 123, torch.arange(n) >= 123):
        chosen = rows & part
        parts.append(figures(selection_statistics("structure", kept[chosen], batch, chosen)))
    for name, (total, count) in whole.items():
        assert total == sum(part.get(name, (0, 0))[0] for part in parts)
        assert count == sum(part.get(name, (0, 0))[1] for part in parts)


def test_the_log_never_holds_a_figure_that_is_no_number() -> None:
    batch = described([NAN] * 9, [30.0] * 9, [-1] * 9)
    everything = torch.ones(9, dtype=torch.bool)
    terms = Terms(
        {"structure": LossTerm(torch.tensor(1.0), torch.tensor(1.0))},
        {"structure": 1.0},
        selection_statistics("structure", everything, batch, everything),
    )
    logged = terms.logged()
    assert logged["kept_structure_bfactor_20_40"] == 1.0
    assert all(np.isfinite(value) for value in logged.values())


def with_facts(number: int, method: str | None, angles: np.ndarray | None = None) -> Sample:
    sample = make_chain(number)
    return replace(sample, facts={} if method is None else {"method": method}, dihedrals=angles)


def test_a_chains_facts_say_whether_its_column_is_plddt_or_b_factor() -> None:
    samples = [with_facts(1, "predicted"), with_facts(2, "x-ray diffraction"), with_facts(3, None)]
    items = [Item(Crop(n, 2, len(s) - 3), s, 0, None) for n, s in enumerate(samples)]
    batch = collate(items, alphabet("esm2"), 0.15, 0, 0, describe=True)
    values = torch.from_numpy(np.concatenate([s.bfactor[2:-1] for s in samples]))
    predicted = batch.protein == 0
    assert torch.equal(batch.plddt[predicted], values[predicted])
    assert torch.equal(batch.bfactor[~predicted], values[~predicted])
    assert batch.plddt[~predicted].isnan().all()
    assert batch.bfactor[predicted].isnan().all()
    assert batch.secondary.shape == values.shape
    plain = collate(items, alphabet("esm2"), 0.15, 0, 0)
    assert plain.plddt is plain.bfactor is plain.secondary is None


def stored(degrees: list[tuple[float, float]]) -> np.ndarray:
    angles = np.array([(*pair, 180.0) for pair in degrees])
    return np.where(np.isnan(angles), MISSING_INT16, np.nan_to_num(angles) / 180 * INT16_SCALE).astype(np.int16)


HELIX, STRAND = (-60.0, -45.0), (-120.0, 130.0)


def test_states_are_runs_in_the_regions_of_the_ramachandran_plane_and_never_cross_chains() -> None:
    first = [(NAN, -45.0)] + [HELIX] * 4 + [(60.0, 40.0)] + [STRAND] * 3 + [HELIX] * 3
    second = [HELIX] * 2 + [STRAND] * 2 + [(-120.0, -175.0)] + [(-120.0, NAN)]
    samples = []
    for degrees in (first, second):
        sample, n = make_chain(5), len(degrees)
        everything = {"valid": np.ones(n, dtype=bool), "dihedrals": stored(degrees)}
        samples.append(replace(sample, sequence=sample.sequence[:n], **everything))
    chains = [(sample, slice(0, None)) for sample in samples]
    assert residue_states(chains).tolist() == [2, 0, 0, 0, 0, 2, 1, 1, 1, 2, 2, 2, 2, 2, 1, 1, 1, 2]
    samples[0].valid[2] = False
    assert residue_states(chains[:1]).tolist()[:4] == [2, 0, -1, 0]
    assert residue_states([(samples[0], slice(1, 4))]).tolist() == [2, -1, 2], "a crop of three is no run of four"


def test_states_agree_with_hydrogen_bonds_on_real_chains(real_data: Path) -> None:
    same, helix_same, total = 0, 0, 0
    for number, (sequence, coordinates) in enumerate(real_chains()[::300]):
        valid = np.isfinite(coordinates[:, :3]).all(axis=(1, 2))
        known = {"sequence": sequence, "valid": valid, "coordinates": to_milli_angstrom(coordinates)}
        sample = replace(make_chain(number), dihedrals=None, **known)
        ours, theirs = residue_states([(sample, slice(0, None))]), secondary_structure(coordinates, sequence)
        known = theirs >= 0
        same += int((ours == theirs)[known].sum())
        helix_same += int(((ours == 0) == (theirs == 0))[known].sum())
        total += int(known.sum())
    # 0.86 and 0.95 on more chains: good enough to see which kind of residue is kept.
    assert same / total > 0.82
    assert helix_same / total > 0.92


def make_rows(steps: int, losses: list[str], classes: list[str]) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []
    for step in range(1, steps + 1):
        row = {"step": step, "loss": 2.0}
        for loss in losses:
            row[f"selected_fraction_{loss}"] = 0.8
            # A class that is absent from every third pool leaves its figure out.
            row |= {f"kept_{loss}_{name}": 0.7 + 0.01 * k for k, name in enumerate(classes) if (step + k) % 3}
        rows.append(row)
    return rows


def test_the_picture_has_a_panel_for_what_was_logged_and_none_for_what_was_not(tmp_path: Path) -> None:
    rows = make_rows(60, ["structure", "sequence_to_structure_2"], ["helix", "coil", "plddt_50_70"])
    figure = selection_figure(rows, "run")
    # Two losses by two properties: nothing was logged of B-factors.
    assert len(figure.axes) == 4
    titles = [panel.get_title(loc="left") for panel in figure.axes[:2]]
    assert titles == [LOSSES["structure"], f"{LOSSES['sequence_to_structure']}, teacher 2"]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for written in (plot_selection(tmp_path), plot_selection(tmp_path, tmp_path / "other.png")):
        assert written.read_bytes().startswith(b"\x89PNG")


def test_the_command_draws_a_run_and_says_where(tmp_path: Path) -> None:
    rows = make_rows(5, ["structure"], ["helix"])
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = CliRunner().invoke(app, ["plot-selection", str(tmp_path), "-o", str(tmp_path / "kept.png")])
    assert done.exit_code == 0, done.output
    assert done.output == f"wrote {tmp_path / 'kept.png'}\n"
    assert (tmp_path / "kept.png").is_file()


def test_a_run_without_selection_or_without_metrics_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no metrics\.jsonl"):
        plot_selection(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    with pytest.raises(UserError, match="logged no selected fractions"):
        plot_selection(tmp_path)
    (tmp_path / "metrics.jsonl").write_text(json.dumps(make_rows(1, ["structure"], ["helix", "coil"])[0]) + "\n")
    with pytest.raises(UserError, match="cannot be written"):
        plot_selection(tmp_path, tmp_path / "nowhere" / "x.png")


def test_running_means_skip_what_is_missing() -> None:
    values = np.array([1.0, NAN, 3.0, NAN, NAN, NAN])
    np.testing.assert_array_equal(running_mean(values, 3), [1.0, 2.0, 3.0, 3.0, NAN, NAN])
    np.testing.assert_array_equal(running_mean(values, 1), values)
