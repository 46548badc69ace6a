"""The whole road in one campaign: synthetic structures to a release folder that transformers loads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, EsmForMaskedLM

from pretrain.batch import Packed
from pretrain.checkpoints import list_checkpoints, open_checkpoint
from pretrain.model.load import load_model

ROOT = Path(__file__).parents[2]
SEQUENCES = ("MKTAYIAKQRQISFVKSHFSRQ", "GSHMLEDPVDAFKLLGAWERTY")
LOGIT_TOLERANCE = 1e-5
"""Two float32 implementations of a 4-layer trunk differ in the order of sums only."""


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory, ray_cluster: str) -> tuple[Path, str]:
    """The campaign's folder and what it printed."""
    folder = tmp_path_factory.mktemp("road")
    done = subprocess.run(
        [sys.executable, "-m", "cluster", "run", "tests/flow/road.yaml", f"root={folder}"],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": ray_cluster},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder, done.stdout


def test_the_closing_table_names_losses_metrics_and_artifacts(road: tuple[Path, str]) -> None:
    folder, printed = road
    for expected in ("masked language", "3Di accuracy, own head", "pseudo-perplexity", str(folder / "release")):
        assert expected in printed
    assert "(missing)" not in printed


def test_every_checkpoint_is_evaluated_with_intervals(road: tuple[Path, str]) -> None:
    run = road[0] / "runs" / "align"
    checkpoints = list_checkpoints(run)
    assert [path.name for path in checkpoints] == ["step_00000002", "step_00000004"]
    for path in checkpoints:
        content = json.loads((run / "eval" / path.name / "results.json").read_text())
        assert content["weights_sha256"] == open_checkpoint(path).weights_sha256
        values = {(row["task"], row["metric"]): row for row in content["results"]}
        assert {"threedi", "threedi_fitted", "threedi_lookup", "secondary_structure", "contact"} <= {
            t for t, _ in values
        }
        row = values["threedi", "accuracy"]
        assert row["ci_low"] <= row["value"] <= row["ci_high"]


def test_transformers_gives_the_trunks_logits_from_the_release(road: tuple[Path, str]) -> None:
    release = road[0] / "release"
    theirs = EsmForMaskedLM.from_pretrained(release).eval()
    model = load_model(open_checkpoint(road[0] / "runs" / "align"))
    tokenizer = AutoTokenizer.from_pretrained(release)
    for sequence in SEQUENCES:
        tokens = tokenizer(sequence, return_tensors="pt")["input_ids"]
        packed = Packed(tokens[0], (tokens.shape[1],))
        with torch.inference_mode():
            ours = model.trunk.lm_logits(model.trunk(packed))
            torch.testing.assert_close(theirs(tokens).logits[0], ours, atol=LOGIT_TOLERANCE, rtol=0)


def test_the_run_stands_in_mlflow_with_config_code_and_data(road: tuple[Path, str]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{road[0] / 'runs' / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = {run.info.run_name: run for run in client.search_runs(experiments)}
    assert {"teacher", "reference", "align"} <= set(runs)
    assert runs["align"].info.status == "FINISHED"
    assert runs["align"].data.params["losses.structure"] == "0.5"
    history = client.get_metric_history(runs["align"].info.run_id, "loss")
    assert [point.step for point in history] == [1, 2, 3, 4]


def test_no_artifact_is_a_pickle(road: tuple[Path, str]) -> None:
    files = [path for name in ("shards", "release", "runs/align/checkpoints") for path in (road[0] / name).rglob("*")]
    files = [path for path in files if path.is_file()]
    assert len(files) > 20
    for path in files:
        assert path.suffix not in {".pt", ".pth", ".pkl", ".bin", ".ckpt"}, path
        # Protocol 2 and later start so; torch's own files are zip archives.
        assert path.read_bytes()[:2] not in {b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK"}, path
