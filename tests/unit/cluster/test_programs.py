"""What `submit` makes of the words a user typed."""

from pathlib import Path

import pytest

from cluster.programs import PROGRAMS, ROOT, absolute_overrides, resolve_call
from configs.campaign import CampaignConfig
from configs.errors import UserError
from configs.loading import load_config
from configs.train import TrainConfig

BUILD = str(ROOT / "configs/data/demo.yaml")
ALIGN = str(ROOT / "configs/pretrain/demo_align.yaml")
EVAL = str(ROOT / "configs/eval/demo.yaml")


def test_relative_output_becomes_absolute_in_the_users_folder(tmp_path: Path) -> None:
    call = resolve_call(["data_pipeline", "build", BUILD, "output=shards"], tmp_path)
    assert call.program.name == "data_pipeline build"
    assert call.config == "configs/data/demo.yaml"
    assert call.arguments[0] == "configs/data/demo.yaml"
    # The last override of a key wins.
    assert [argument for argument in call.arguments if argument.startswith("output=")][
        -1
    ] == f"output={tmp_path}/shards"


def test_every_relative_path_of_a_config_is_sent_absolute_defaults_included(tmp_path: Path) -> None:
    call = resolve_call(["pretrain", "train", ALIGN, "optimizer.steps=4"], tmp_path)
    sent = dict(argument.split("=", 1) for argument in call.arguments[1:])
    assert sent["optimizer.steps"] == "4"
    for key in ("runs", "data.shards", "teacher.weights", "selection.reference"):
        assert sent[key].startswith(f"{tmp_path}/"), key
    again = load_config(TrainConfig, ALIGN, call.arguments[1:])
    assert absolute_overrides(again, tmp_path) == []


def test_absolute_paths_and_paths_into_configs_stay(tmp_path: Path) -> None:
    overrides = ["runs=/elsewhere/runs", "engine.deepspeed=configs/deepspeed/offload.json"]
    call = resolve_call(["pretrain", "train", ALIGN, *overrides], tmp_path)
    assert [argument for argument in call.arguments if argument.startswith(("runs=", "engine."))] == overrides


def test_a_text_that_names_an_existing_file_is_a_path_and_any_other_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/esm.pt").touch()
    config = load_config(TrainConfig, ALIGN, ["trunk.weights=weights/esm.pt", "tracking.uri=sqlite:///x.db"])
    assert f"trunk.weights={tmp_path}/weights/esm.pt" in absolute_overrides(config, tmp_path)
    config = load_config(TrainConfig, ALIGN, ["trunk.weights=hub"])
    assert not [override for override in absolute_overrides(config, tmp_path) if override.startswith("trunk")]


def test_templates_of_a_campaign_stay(tmp_path: Path) -> None:
    config = load_config(CampaignConfig, ROOT / "configs/campaign/demo.yaml", ["root=here"])
    assert absolute_overrides(config, tmp_path) == [f"root={tmp_path}/here"]


def test_positional_paths_and_output_options_become_absolute(tmp_path: Path) -> None:
    release = resolve_call(
        ["eval", "release", "runs/a", "results", "-o", "out", "--repo", "lab/model", "--push"], tmp_path
    )
    assert release.arguments == (
        *(f"{tmp_path}/runs/a", f"{tmp_path}/results"),
        *("-o", f"{tmp_path}/out", "--repo", "lab/model", "--push"),
    )
    run = resolve_call(["eval", "run", "runs/a", EVAL, "seed=3", "--follow"], tmp_path)
    assert run.arguments[:2] == (f"{tmp_path}/runs/a", "configs/eval/demo.yaml")
    assert run.arguments[-1] == "--follow"
    derive = resolve_call(["pretrain", "derive", "teacher", ALIGN, "shards"], tmp_path)
    assert derive.arguments[:3] == ("teacher", "configs/pretrain/demo_align.yaml", f"{tmp_path}/shards")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain", "trian", ALIGN], "did you mean 'pretrain train'"),
        (["zzz"], "allowed: data_pipeline build"),
        (["data_pipeline", "build"], "CONFIG is missing"),
        (["data_pipeline", "build", "configs/data/dmeo.yaml"], "no such file"),
        (["data_pipeline", "build", BUILD, "split.sed=3"], "did you mean 'seed'"),
    ],
)
def test_mistakes_show_before_anything_is_sent(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve_call(arguments, ROOT)


def test_a_config_outside_the_repository_cannot_be_sent(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("output: shards\n")
    with pytest.raises(UserError, match="lies outside the repository"):
        resolve_call(["data_pipeline", "build", "own.yaml"], tmp_path)


def test_every_program_names_a_package_of_this_repository() -> None:
    assert all((ROOT / program.words[0] / "cli.py").is_file() for program in PROGRAMS)
