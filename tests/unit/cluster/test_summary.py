"""The closing table says what the artifacts say, and what is missing."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from cluster.artifacts import read_evaluations, read_training
from cluster.summary import print_summary
from configs.campaign import CampaignConfig, StageConfig, SummaryConfig


@pytest.fixture
def campaign(tmp_path: Path) -> CampaignConfig:
    summary = SummaryConfig(
        shards=Path("{root}/shards"),
        training=(Path("{root}/runs/align"), Path("{root}/runs/mlm")),
        evaluations=(Path("{root}/runs/align"), Path("{root}/runs/mlm/eval")),
        report=Path("{root}/report.html"),
        tracking=Path("{root}/mlflow.db"),
        release=Path("{root}/release"),
    )
    return CampaignConfig(root=tmp_path, stages=(StageConfig(name="one", command=("x",)),), summary=summary)


def test_everything_that_was_measured_is_in_the_table(campaign: CampaignConfig) -> None:
    _write_artifacts(campaign.root, aligned=0.55, control=0.42)
    text = _text(campaign)
    assert "kept, total" in text
    assert "270" in text
    assert "dropped: duplicate_sequence" in text
    # Rows 0-4 of 20 average 3.0 - 0.02 = 2.98, rows 15-19 average 3.0 - 0.17 = 2.83.
    assert "2.980 -> 2.830" in text
    assert "first checkpoint, step 100" in text
    assert "0.300 [0.280, 0.320]" in text
    assert "0.550 [0.530, 0.570]" in text
    assert "contact P@L/5, long range" in text
    assert "The aligned model is first, 0.130 above the next (MLM-only control" in text
    assert f"{campaign.root}/release" in text
    assert "12.0 minutes" in text


def test_the_note_says_when_the_aligned_model_is_not_first(campaign: CampaignConfig) -> None:
    _write_artifacts(campaign.root, aligned=0.41, control=0.42)
    text = _text(campaign)
    assert (
        "not first yet: MLM-only control, head fitted afterwards, step 200 is 0.010 above it (intervals overlap)"
        in text
    )
    assert "216 training chains in 200 steps" in text
    assert "on both trunks: aligned 0.560, control 0.420" in " ".join(text.split())


def test_missing_artifacts_are_named_instead_of_a_crash(campaign: CampaignConfig) -> None:
    text = _text(campaign)
    assert "nothing was built" in text
    assert f"no results in {campaign.root}/runs/align" in text
    assert "release" in text
    assert text.count("(missing)") == 3


def test_lines_fit_a_hundred_columns_without_a_terminal(campaign: CampaignConfig) -> None:
    _write_artifacts(campaign.root, aligned=0.55, control=0.42)
    tables = _text(campaign).split("\nreport")[0]
    assert max(map(len, tables.splitlines())) <= 100
    assert "…" not in tables


def test_a_row_of_metrics_cut_off_by_a_crash_is_left_out(tmp_path: Path) -> None:
    run = tmp_path / "align"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n{"step": 3, "lo')
    training = read_training(run)
    assert training.steps == 2
    assert training.losses["loss"] == (1.5, 1.5)


def test_checkpoints_are_ordered_by_step(tmp_path: Path) -> None:
    for step in (900, 1000, 100):
        _write_results(tmp_path / "eval", step, {})
    assert [evaluation.step for evaluation in read_evaluations(tmp_path)] == [100, 900, 1000]


def _text(campaign: CampaignConfig) -> str:
    stream = io.StringIO()
    print_summary(campaign, 720.0, Console(file=stream))
    # Notes are wrapped at the width; compare them on one line.
    text = stream.getvalue()
    return text if "not first" not in text else " ".join(text.split())


def _write_artifacts(root: Path, aligned: float, control: float) -> None:
    (root / "shards").mkdir()
    split = {"samples": 216, "clusters": 48, "high_quality": 90}
    manifest = {
        "kept": 270,
        "dropped": {"duplicate_sequence": 12, "too_short": 1},
        "splits": {"train": split, "test": {**split, "samples": 54}},
    }
    (root / "shards/manifest.json").write_text(json.dumps(manifest))
    for name in ("align", "mlm"):
        run = root / "runs" / name
        run.mkdir(parents=True)
        rows = [
            {
                "step": i + 1,
                "loss": 3.0 - i / 100,
                "loss_mlm": 2.9,
                "loss_structure": 2.5,
                "loss_contrast": 5.0,
                "lr": 1.0,
            }
            for i in range(20)
        ]
        (run / "metrics.jsonl").write_text(
            "".join(json.dumps({**row, "tokens_per_second": 9000}) + "\n" for row in rows)
        )
        (run / "status.json").write_text(json.dumps({"state": "finished", "step": 20, "total_steps": 20}))
    lookup = {("threedi_lookup", "accuracy"): 0.39, ("threedi_majority", "accuracy"): 0.31}
    own = {("pseudo_perplexity", "pseudo_perplexity"): 15.2, ("contact", "P@L/5_long"): 0.2}
    _write_results(root / "runs/align/eval", 100, {("threedi", "accuracy"): 0.30, **own, **lookup})
    _write_results(
        root / "runs/align/eval",
        200,
        {("threedi", "accuracy"): aligned, ("threedi_fitted", "accuracy"): 0.56, **own, **lookup},
    )
    _write_results(root / "runs/mlm/eval", 200, {("threedi_fitted", "accuracy"): control, **lookup})


def _write_results(folder: Path, step: int, values: dict[tuple[str, str], float]) -> None:
    rows = [
        {"task": task, "metric": metric, "value": value, "ci_low": value - 0.02, "ci_high": value + 0.02}
        for (task, metric), value in values.items()
    ]
    path = folder / f"step_{step:08d}"
    path.mkdir(parents=True)
    (path / "results.json").write_text(json.dumps({"step": step, "num_test_chains": 54, "results": rows}))
