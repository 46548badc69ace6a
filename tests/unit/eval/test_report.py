"""The page: self-contained, complete, and true to what was measured."""

import json
import re
from pathlib import Path

import numpy as np

from eval.examples import write_examples
from eval.intervals import Measurement, scored
from eval.plots import smoothed
from eval.report import read_metrics, write_report
from eval.results import examples_path, write_record, write_results
from eval.tables import first_and_last, format_estimate
from tests.unit.eval.test_results import make_record, make_results


def measurement(values: list[float]) -> Measurement:
    count = len(values)
    columns = {"values": np.array(values), "weights": np.ones(count)}
    return scored("accuracy", "mean", [f"k{i}" for i in range(count)], np.arange(count), columns)


def write_run(folder: Path, gains: float = 0.1) -> Path:
    for step, shift in ((10, 0.0), (20, gains)):
        step_folder = folder / "eval" / f"step_{step:08d}"
        step_folder.mkdir(parents=True)
        values = np.clip(np.linspace(0.1, 0.6, 30) + shift, 0, 1)
        write_record(make_record(), step_folder)
        write_examples(examples_path(step_folder, "threedi"), [measurement(values.tolist())])
        write_results(make_results(step=step), step_folder)
    rows = [{"step": step, "loss": 3.0 / step, "loss_mlm": 2.0 / step} for step in range(1, 21)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 21, "lo')
    (folder / "config.yaml").write_text("name: <b>small</b>\n")
    return folder


def test_the_page_refers_to_nothing_outside_itself(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    page = write_report(run, run / "eval").read_text()
    references = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'\s>)]+)""", page)
    assert references
    assert all(reference.startswith("data:") for reference in references)
    assert "<script" not in page
    assert "&lt;b&gt;small" in page


def test_the_page_holds_facts_values_and_a_text_for_every_picture(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    page = write_report(run, run / "eval").read_text()
    for fact in ("small", "m" * 64, f"{20:064d}", "step 10, 20", "0.500 [0.400, 0.600]", "better"):
        assert fact in page, fact
    images = re.findall(r"<img [^>]*>", page)
    assert len(images) == 4  # 3Di bars, 3Di curve, two training losses
    assert all(re.search(r'alt="[^"]{20,}"', image) for image in images)
    assert {path.name for path in (run / "eval" / "report_files").glob("*.png")} == {
        "threedi.png",
        "threedi_bars.png",
        "train_loss.png",
        "train_loss_mlm.png",
    }


def test_evaluations_of_another_protocol_are_named_and_not_mixed_in(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    write_results(make_results(step=10, protocol_sha256="q" * 64), run / "eval" / "step_00000010")
    page = write_report(run, run / "eval").read_text()
    assert "another protocol: step 10" in page
    assert "1: step 20" in page


def test_without_results_there_is_no_page(tmp_path: Path) -> None:
    assert write_report(tmp_path, tmp_path / "eval") is None


def test_no_gain_is_not_called_better(tmp_path: Path) -> None:
    results = [make_results(step=10), make_results(step=20)]
    better = first_and_last(results, write_run(tmp_path / "a") / "eval")[0]
    worse = first_and_last(results, write_run(tmp_path / "b", gains=-0.05) / "eval")[0]
    same = first_and_last(results, write_run(tmp_path / "c", gains=0.0) / "eval")[0]
    assert (better.verdict, worse.verdict, same.verdict) == ("better", "worse", "")
    assert better.difference.startswith("+0.100 [")


def test_a_value_without_interval_is_written_without_one() -> None:
    result = make_results().results[0]
    assert format_estimate(result) == "0.500 [0.400, 0.600]"
    assert format_estimate(result.model_copy(update={"ci_low": None, "ci_high": None})) == "0.500"
    assert format_estimate(None) == "-"


def test_rows_of_a_resumed_run_replace_those_of_the_same_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3}\n{"step": 2, "loss": 9}\n{"step": 2, "loss": 2}\nbroken\n')
    assert [row["loss"] for row in read_metrics(path)] == [3, 2]
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_smoothing_keeps_constants_and_ends() -> None:
    assert np.allclose(smoothed(np.full(50, 2.0), 0.2), 2.0)
    values = np.arange(40, dtype=np.float64)
    assert np.allclose(smoothed(values, 0.3), values)  # centred windows keep a straight line
    assert smoothed(np.array([1.0])).tolist() == [1.0]


def test_a_report_without_shards_says_nothing_of_them(tmp_path: Path) -> None:
    results = make_results(manifest_sha256=None, fit_split=None, num_fit_chains=0, num_test_chains=0, num_embedded=1234)
    folder = tmp_path / "eval" / "step_00000100"
    folder.mkdir(parents=True)
    write_results(results, folder)
    text = write_report(tmp_path, tmp_path / "eval").read_text()
    assert "None" not in text
    assert "evaluated on shards" not in text
    assert "1,234 sequences, each once" in text
