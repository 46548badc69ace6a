"""What a job is made of."""

import shlex
import sys
from pathlib import Path

import pytest

from cluster import submit
from cluster.programs import ROOT, resolve_call
from cluster.submit import EXCLUDES, package, working_tree_commit
from configs.errors import UserError

CALL = resolve_call(["data_pipeline", "build", str(ROOT / "configs/data/demo.yaml"), "output=/x y/shards"], ROOT)


def test_entrypoint_is_the_program_with_quoted_arguments() -> None:
    job = package(CALL, "http://127.0.0.1:8265")
    words = shlex.split(job.entrypoint)
    assert words[:4] == [sys.executable, "-m", "data_pipeline", "build"]
    assert "output=/x y/shards" in words


def test_interpreter_elsewhere_is_not_the_path_of_this_machine() -> None:
    assert package(CALL, "http://head:8265").entrypoint.startswith("python -m ")
    assert package(CALL, "http://head:8265", "/opt/venv/bin/python").entrypoint.startswith("/opt/venv/bin/python -m ")


def test_commit_travels_in_environment_and_metadata_and_no_secret_does(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "very-secret")
    monkeypatch.setattr(submit, "working_tree_commit", lambda: "abc-dirty")
    job = package(CALL, "http://127.0.0.1:8265")
    assert job.runtime_env["env_vars"]["SAPLM_COMMIT"] == "abc-dirty"
    assert job.metadata["commit"] == "abc-dirty"
    assert job.metadata["program"] == "data_pipeline build"
    assert job.metadata["config"] == "configs/data/demo.yaml"
    assert "very-secret" not in repr(job)


def test_commit_of_a_changed_tree_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "ROOT", tmp_path)
    assert working_tree_commit() is None
    submit._git("init", "-q")
    (tmp_path / "file").write_text("one")
    submit._git("add", "file")
    submit._git("-c", "user.name=n", "-c", "user.email=e@x", "commit", "-qm", "first")
    commit = working_tree_commit()
    assert len(commit) == 40
    (tmp_path / "file").write_text("two")
    assert working_tree_commit() == f"{commit}-dirty"


def test_package_holds_the_configs_but_neither_data_nor_runs(tmp_path: Path) -> None:
    packaging = pytest.importorskip("ray._private.runtime_env.packaging")
    for name in (
        "configs/data/demo.yaml",
        "pretrain/loop.py",
        "data/big",
        "runs/a/weights",
        ".git/x",
        ".venv/y",
        "a.db",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    archive = tmp_path.parent / f"{tmp_path.name}.zip"
    packaging.create_package(str(tmp_path), archive, include_gitignore=True, excludes=list(EXCLUDES))
    import zipfile

    names = {name for name in zipfile.ZipFile(archive).namelist() if not name.endswith("/")}
    assert names == {"configs/data/demo.yaml", "pretrain/loop.py"}


def test_a_config_that_git_ignores_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "ROOT", tmp_path)
    submit._git("init", "-q")
    (tmp_path / ".gitignore").write_text("configs/\n")
    with pytest.raises(UserError, match="is ignored by git"):
        package(CALL, "http://127.0.0.1:8265")
