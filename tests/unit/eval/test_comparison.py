"""Two evaluations side by side: which may be compared, what is adjusted, and files that a flipped bit does not fool."""

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from configs.errors import UserError
from eval.comparison import check_comparable, compare
from eval.examples import read_examples, write_examples
from eval.intervals import Measurement, scored
from eval.results import TaskRecord, examples_path, write_record
from eval.tasks.protocol import TaskFacts

KEYS = [f"p{i:03d}" for i in range(60)]
LABELS = np.random.default_rng(0).integers(0, 3, 60)


def facts(**changes: str) -> TaskFacts:
    given = {"version": "1", "frozen": "trunk", "head": "linear", "method": "accuracy", "data_sha256": "d" * 64}
    return TaskFacts(**{**given, **changes})


def record(task: str = "fold", protocol: str = "a", skipped: str | None = None, **changes: str) -> TaskRecord:
    return TaskRecord(
        task=task,
        weights_sha256="0" * 64,
        protocol_sha256=protocol * 64,
        facts=facts(**changes),
        skipped=skipped,
        seconds=1.0,
    )


def accuracy(share: float, seed: int = 0, metric: str = "accuracy", keys: list[str] = KEYS) -> Measurement:
    random = np.random.default_rng([seed, int(100 * share)])
    label = LABELS[: len(keys)]
    prediction = np.where(random.random(len(keys)) < share, label, (label + 1) % 3)
    columns = {"prediction": prediction, "label": label}
    return scored(metric, "accuracy", keys, np.arange(len(keys)) // 2, columns, seed)


def evaluation(folder: Path, tasks: dict[str, list[Measurement]], **changes: str) -> Path:
    for task, measurements in tasks.items():
        write_record(record(task, **changes), folder)
        write_examples(examples_path(folder, task), measurements)
    return folder


def test_what_was_written_is_read(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels = random.random((60, 5)) < 0.3
    clusters = np.arange(60) // 3
    rows = random.integers(1, 5, 60)
    given = [
        scored("fmax", "fmax", KEYS, clusters, {"scores": random.random((60, 5), dtype=np.float32), "labels": labels}),
        scored("q3", "accuracy", KEYS, clusters, dict.fromkeys(("prediction", "label"), np.ones(rows.sum())), 0, rows),
        *(accuracy(0.5, seed) for seed in range(2)),
    ]
    write_examples(tmp_path / "fold.safetensors", given)
    found = read_examples(tmp_path / "fold.safetensors")
    assert {metric: [m.seed for m in ms] for metric, ms in found.items()} == {
        "fmax": [0],
        "q3": [0],
        "accuracy": [0, 1],
    }
    for ours, theirs in zip(given, (m for ms in found.values() for m in ms), strict=True):
        assert (ours.metric, ours.keys, ours.statistic) == (theirs.metric, theirs.keys, theirs.statistic)
        assert np.array_equal(ours.clusters, theirs.clusters)
        assert (ours.rows is None) == (theirs.rows is None)
        assert ours.rows is None or np.array_equal(ours.rows, theirs.rows)
        for name, column in ours.columns.items():
            assert column.dtype == theirs.columns[name].dtype
            assert np.array_equal(column, theirs.columns[name])


def test_arrays_that_metrics_share_stand_in_the_file_once(tmp_path: Path) -> None:
    columns = {"scores": np.random.default_rng(0).random((60, 40)), "labels": np.ones((60, 40), dtype=bool)}
    metrics = [scored(name, name, KEYS, np.arange(60), columns) for name in ("fmax", "aupr")]
    write_examples(tmp_path / "one", metrics[:1])
    write_examples(tmp_path / "two", metrics)
    assert (tmp_path / "two").stat().st_size < 1.1 * (tmp_path / "one").stat().st_size


def test_transposed_columns_are_written_as_they_read(tmp_path: Path) -> None:
    scores, labels = np.random.default_rng(0).random((4, 60)).T, (np.arange(240).reshape(4, 60) % 3 == 0).T
    write_examples(tmp_path / "x", [scored("fmax", "fmax", KEYS, np.arange(60), {"scores": scores, "labels": labels})])
    found = read_examples(tmp_path / "x")["fmax"][0]
    assert np.array_equal(found.columns["scores"], scores)
    assert np.array_equal(found.columns["labels"], labels)


def test_no_measurements_are_a_file_too(tmp_path: Path) -> None:
    write_examples(tmp_path / "x", [])
    assert read_examples(tmp_path / "x") == {}


def test_any_flipped_bit_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "fold.safetensors"
    write_examples(path, [accuracy(0.5)])
    whole = path.read_bytes()
    with safe_open(path, framework="numpy") as file:
        assert len(file.keys()) == 4
    for at in np.random.default_rng(0).choice(len(whole), size=200, replace=False):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(at % 8)
        path.write_bytes(bytes(damaged))
        try:
            found = read_examples(path)["accuracy"][0]
        except UserError:
            continue
        # Padding of the header, and the spelling of JSON escapes, carry nothing.
        assert same(found, accuracy(0.5)), at


def same(first: Measurement, second: Measurement) -> bool:
    columns = all(np.array_equal(first.columns[name], second.columns[name]) for name in first.columns)
    return first.keys == second.keys and np.array_equal(first.clusters, second.clusters) and columns


def test_cut_missing_and_foreign_files_are_user_errors(tmp_path: Path) -> None:
    path = tmp_path / "fold.safetensors"
    with pytest.raises(UserError, match="no such file"):
        read_examples(path)
    write_examples(path, [accuracy(0.5)])
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not a file of ours"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read"):
            read_examples(path)


def test_a_better_model_is_seen_and_every_metric_is_adjusted_for(tmp_path: Path) -> None:
    first = evaluation(tmp_path / "a", {"fold": [accuracy(0.3)], "ec": [accuracy(0.5, 1)]})
    second = evaluation(tmp_path / "b", {"fold": [accuracy(0.9)], "ec": [accuracy(0.5, 2)]})
    found = compare(first, second, num_samples=500)
    assert list(found) == ["ec/accuracy", "fold/accuracy"]
    fold, ec = found["fold/accuracy"], found["ec/accuracy"]
    assert fold.difference == pytest.approx(fold.second - fold.first, abs=1e-12)  # float64 rounding only
    assert fold.ci_low > 0
    assert fold.p_value < fold.p_holm == 2 * fold.p_value < 0.05
    assert fold.p_bh == 2 * fold.p_value
    assert ec.p_value > 0.05
    assert (fold.num_examples, fold.num_clusters) == (60, 30)
    assert compare(second, first, num_samples=500)["fold/accuracy"].difference == -fold.difference


def test_results_files_name_their_folders(tmp_path: Path) -> None:
    first = evaluation(tmp_path / "a", {"fold": [accuracy(0.3)]})
    second = evaluation(tmp_path / "b", {"fold": [accuracy(0.9)]})
    (first / "results.json").write_text("{}")
    assert compare(first / "results.json", second, 200) == compare(first, second, 200)


def test_baselines_without_a_model_are_no_tests_to_correct_for(tmp_path: Path) -> None:
    constant = {f"baseline{i}": [accuracy(0.4, 5)] for i in range(5)}
    first = evaluation(tmp_path / "a", {"fold": [accuracy(0.3)], **constant})
    second = evaluation(tmp_path / "b", {"fold": [accuracy(0.9)], **constant})
    found = compare(first, second, num_samples=500)
    assert found["fold/accuracy"].p_holm == found["fold/accuracy"].p_value
    baseline = found["baseline0/accuracy"]
    assert (baseline.is_test, baseline.difference, baseline.p_value, baseline.p_holm) == (False, 0.0, 1.0, 1.0)


def test_unseen_proteins_are_compared_where_they_are_unseen_for_both(tmp_path: Path) -> None:
    first = evaluation(tmp_path / "a", {"fold": [accuracy(0.3, keys=KEYS[:50], metric="accuracy_unseen")]})
    second = evaluation(tmp_path / "b", {"fold": [accuracy(0.9, keys=KEYS[:40], metric="accuracy_unseen")]})
    found = compare(first, second, num_samples=200)["fold/accuracy_unseen"]
    assert found.num_examples == 40
    other = evaluation(tmp_path / "c", {"fold": [accuracy(0.9, keys=KEYS[:40])]})
    whole = evaluation(tmp_path / "d", {"fold": [accuracy(0.3)]})
    with pytest.raises(UserError, match="different examples"):
        compare(whole, other, num_samples=200)


def test_skipped_tasks_and_undefined_metrics_are_left_out(tmp_path: Path) -> None:
    constant = {"prediction": np.ones(60), "label": np.arange(60.0)}
    undefined = scored("spearman", "spearman", KEYS, np.arange(60), constant)
    tasks = {"fold": [accuracy(0.3), undefined], "ec": [accuracy(0.3)]}
    first, second = evaluation(tmp_path / "a", tasks), evaluation(tmp_path / "b", tasks)
    write_record(record("ec", skipped="no 3Di head"), second)
    assert list(compare(first, second, num_samples=200)) == ["fold/accuracy"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": "2"}, "task 'fold' has versions '1' and '2'"),
        ({"data_sha256": "e" * 64}, "task 'fold' has data"),
        ({"head": "mlp"}, "task 'fold' has heads 'linear' and 'mlp'"),
        ({"protocol": "b"}, "task 'fold' has protocols"),
    ],
)
def test_numbers_that_do_not_mean_the_same_are_refused(changes: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        check_comparable({"fold": record()}, {"fold": record(**changes)})
    assert "\n" not in str(caught.value)


def test_evaluations_without_a_common_task_are_refused() -> None:
    with pytest.raises(UserError, match="no task in common"):
        check_comparable({"fold": record()}, {"ec": record("ec")})
    check_comparable({"fold": record(), "ec": record("ec")}, {"ec": record("ec", version="1")})
