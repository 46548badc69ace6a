"""One model's evaluation in steps that leave their work on disk: here, again, and as Ray tasks."""

import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from configs.benchmarks import ExecutionConfig, FeaturesConfig
from configs.errors import UserError
from configs.evaluate import EvalConfig, EvalDataConfig
from configs.train import TrainConfig
from eval.evaluation import Data, Evaluation, Job, finish, load_shared, plan, run_task
from eval.intervals import measurement_of
from eval.ray_tasks import run_on_ray
from eval.results import read_records, read_results
from eval.runner import evaluate_model
from eval.tasks import registry
from eval.tasks.protocol import Context, Outcome, TaskFacts, Wants
from tests.unit.eval.makers import train_config, write_checkpoint, write_test_shards


@dataclass(frozen=True)
class CountingTask:
    """Writes a line for every time it runs; then does what it is made for."""

    name: str
    log: Path
    ends: str = "well"
    version: str = "1"
    needs_shards: bool = True
    metrics: tuple[str, ...] = ("mean",)

    def facts(self, context: Context) -> TaskFacts:
        return TaskFacts(self.version, "trunk", "none", "a mean")

    def wants(self, context: Context) -> Wants:
        return Wants(means=tuple(example.sequence for example in context.data.test))

    def run(self, context: Context) -> Outcome:
        with self.log.open("a") as file:
            file.write(f"{self.name}\n")
        if self.ends == "badly":
            raise RuntimeError("no luck")
        if self.ends == "late":
            time.sleep(600)
        means = context.features.means([example.sequence for example in context.data.test])
        rows = [(e.key, e.cluster, float(m.sum()), 1.0) for e, m in zip(context.data.test, means, strict=True)]
        return Outcome((measurement_of("mean", rows),), remarks=("as expected",))


@pytest.fixture
def trained(tmp_path: Path) -> TrainConfig:
    write_test_shards(tmp_path / "shards")
    return train_config(tmp_path / "runs", tmp_path / "shards")


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of three tasks that the registry knows for the length of a test: one, two, and broken."""
    path = tmp_path / "log"
    for name, ends in (("one", "well"), ("two", "well"), ("broken", "badly")):
        monkeypatch.setitem(registry.TASKS, name, CountingTask(name, path, ends))
    return path


def job_of(trained: TrainConfig, tasks: tuple[str, ...], **changes: object) -> Job:
    config = EvalConfig(
        data=EvalDataConfig(shards=trained.data.shards), tasks=tasks, bootstrap_samples=100, device="cpu", **changes
    )
    checkpoint = trained.runs / trained.name / "checkpoints" / "step_00000010"
    if not checkpoint.exists():
        write_checkpoint(trained, 10)
    return Job(str(checkpoint), config, trained.runs / trained.name / "eval" / "step_00000010")


def evaluate(job: Job):
    return evaluate_model(job, load_shared(job.config))


def test_a_task_that_breaks_does_not_take_the_others_with_it(trained: TrainConfig, log: Path) -> None:
    job = job_of(trained, ("broken", "one"))
    results, is_new = evaluate(job)
    assert is_new
    assert [(f.task, f.reason) for f in results.failed] == [("broken", "RuntimeError: no luck")]
    assert {r.task for r in results.results} == {"one"}
    assert results.remarks == {"one": ("as expected",)}
    again, _ = evaluate(job)
    assert log.read_text().split() == ["broken", "one", "broken"], "only what failed runs again"
    assert again.results == results.results


def test_a_task_that_is_added_runs_alone(trained: TrainConfig, log: Path) -> None:
    evaluate(job_of(trained, ("one",)))
    results, is_new = evaluate(job_of(trained, ("one", "two")))
    assert is_new
    assert log.read_text().split() == ["one", "two"]
    assert [r.task for r in results.results] == ["one", "two"]
    assert not evaluate(job_of(trained, ("one", "two")))[1]


def test_an_evaluation_that_was_cut_short_goes_on_where_it_was(trained: TrainConfig, log: Path) -> None:
    job = job_of(trained, ("one", "two"))
    assert plan(job) == ["one", "two"]
    run_task(job, "one")
    results, _ = evaluate(job)
    assert log.read_text().split() == ["one", "two"]
    assert read_results(job.output) == results
    assert set(read_records(job.output)) == {"one", "two"}
    assert finish(job).results == results.results


def test_frozen_tasks_embed_each_sequence_once_between_them(trained: TrainConfig, log: Path) -> None:
    job = job_of(trained, ("one", "two", "secondary_structure", "threedi_fitted"))
    data = load_shared(job.config)
    results, _ = evaluate_model(job, data)
    distinct = {e.sequence for e in (*data.shards.test, *data.shards.fit)}
    assert results.num_embedded == len(distinct)


def test_embeddings_are_removed_at_the_end_unless_they_are_to_be_kept(trained: TrainConfig, log: Path) -> None:
    job = job_of(trained, ("one",))
    evaluate(job)
    folder = job.output.parent / "embeddings"
    assert not list(folder.rglob("*.safetensors"))
    kept = job_of(trained, ("one", "two"), features=FeaturesConfig(keep_cache=True))
    results, _ = evaluate(kept)
    assert results.num_embedded > 0
    assert list(folder.rglob("*.safetensors"))


def test_tasks_on_structures_need_shards() -> None:
    with pytest.raises(UserError, match=r"data.shards is not set and task 'contact' measures on structures"):
        load_shared(EvalConfig(tasks=("contact",)))


def test_an_unknown_task_is_named_with_the_nearest_one() -> None:
    with pytest.raises(UserError, match=r"got 'contcat', which is no task.*did you mean 'contact'"):
        registry.tasks_named(("contcat",))


def test_a_dataset_that_is_not_there_is_a_reason_and_no_error(trained: TrainConfig, tmp_path: Path) -> None:
    job = job_of(trained, ("fold", "threedi_majority"))
    config = job.config.model_copy(
        update={"benchmarks": job.config.benchmarks.model_copy(update={"root": tmp_path / "none"})}
    )
    (tmp_path / "none").mkdir()
    results, _ = evaluate(Job(job.checkpoint, config, job.output))
    assert [s.task for s in results.skipped] == ["fold"]
    assert str(tmp_path / "none") in results.skipped[0].reason


def test_ray_tasks_leave_the_same_records(trained: TrainConfig, ray_cluster: str) -> None:
    names = ("threedi", "threedi_majority")
    here = job_of(trained, names)
    results, _ = evaluate(here)
    there = Job(here.checkpoint, here.config, here.output.with_name("step_00000011"))
    there = Job(
        there.checkpoint,
        there.config.model_copy(update={"execution": ExecutionConfig(ray=True, cpus_per_task=0.5)}),
        there.output,
    )
    other, _ = evaluate(there)
    same = [(r.task, r.metric, r.value, r.ci_low, r.ci_high) for r in results.results]
    assert [(r.task, r.metric, r.value, r.ci_low, r.ci_high) for r in other.results] == same
    assert not other.failed


def test_a_ray_task_that_fails_is_told_from_those_that_do_not(
    trained: TrainConfig, ray_cluster: str, tmp_path: Path
) -> None:
    job = job_of(trained, ("threedi_majority",), execution=ExecutionConfig(ray=True, cpus_per_task=0.5))
    _, failed = run_on_ray(job, ["threedi_majority", "no_such_task"])
    assert set(failed) == {"no_such_task"}
    assert "UserError" in failed["no_such_task"]
    assert set(read_records(job.output)) == {"threedi_majority"}


def test_what_several_models_share_is_read_once(trained: TrainConfig, log: Path) -> None:
    job = job_of(trained, ("one",))
    data = load_shared(job.config)
    assert isinstance(data, Data)
    assert Evaluation(job, data).context.data is Evaluation(job, data).context.data is data.shards
